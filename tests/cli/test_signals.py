"""What becomes of work that is told to end: its status, its last line, and what lies on disk then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import anndata
import pytest
from PIL import Image

import st_gchb
from forks import ForkServer

CHILD = Path(__file__).with_name("signaled.py")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"ST_GCHB_CACHE": str(folder / "cache")}


def run_child(programs: ForkServer, folder: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the command line in a process of its own, once for each job; what each ended with."""
    result = programs.run(CHILD.read_text(), json.dumps(jobs), env=environment(folder), cwd=folder)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def train(slides: Path, out: Path, *more: str) -> list[str]:
    command = [
        "train",
        "--data",
        str(slides),
        "--slices",
        "S1",
        "S2",
        "--encoder",
        "texture",
        "--patch-um",
        "150",
        "--views",
        "1",
        "--n-top-genes",
        "20",
    ]
    return [*command, "--max-epochs", "4", "--device", "cpu", "--out", str(out), *more]


MOMENTS = {
    "imports": {"at": "import scvi._settings", "signals": ["SIGTERM"], "forget": ["scvi", "st_gchb"]},
    "embedding": {"at": "st_gchb.pp.encoders._runner:EncoderRunner.run_all", "signals": ["SIGTERM"]},
    "an epoch": {"at": "st_gchb.train._checkpoints:Progress.on_train_epoch_start", "nth": 3, "signals": ["SIGTERM"]},
    "Ctrl-C": {"at": "st_gchb.train._checkpoints:Progress.on_train_epoch_start", "nth": 3, "signals": ["SIGINT"]},
    "a closed terminal": {"at": "st_gchb.train._data:TrainingData.batch", "nth": 8, "signals": ["SIGHUP"]},
    "two at once": {
        "at": "st_gchb.train._checkpoints:Progress.on_train_epoch_start",
        "nth": 3,
        "after": True,
        "signals": ["SIGINT", "SIGTERM", "SIGTERM"],
    },
    "writing a checkpoint": {
        "at": "st_gchb.train._checkpoints:write_checkpoint",
        "signals": ["SIGTERM"],
        "first": {"at": "st_gchb.train._checkpoints:Progress.on_train_epoch_start", "nth": 3, "signals": ["SIGTERM"]},
    },
    "a swallowed exception": {
        "at": "st_gchb.train._data:TrainingData.batch",
        "nth": 8,
        "signals": ["SIGTERM"],
        "swallowed": True,
    },
    "calibration": {"at": "st_gchb.model._crossfit:embed_reference", "signals": ["SIGTERM"]},
    "saving": {"at": "st_gchb.model._saving:_write_tensors", "signals": ["SIGTERM"]},
}


@pytest.fixture(scope="module")
def ended(slides: Path, programs: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Training that was told to end at each of the moments, and the folders that it worked in."""
    base = tmp_path_factory.mktemp("ended")
    features = base / "features"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ST_GCHB_CACHE", str(features))
        st_gchb.pp.embed_patches(
            anndata.read_h5ad(slides), encoder="texture", patch_um=150, n_views=1, slice_key="slice"
        )
    jobs = []
    for name, moment in MOMENTS.items():
        folder = base / name.replace(" ", "_")
        folder.mkdir()
        if name != "embedding":
            shutil.copytree(features, folder / "cache")
        jobs.append(moment | {"argv": train(slides, folder / "model"), "cache": str(folder / "cache")})
    # What was half imported is of no use to the jobs after it: that one has a process of its own.
    found = [*run_child(programs, base, jobs[0]), *run_child(programs, base, *jobs[1:])]
    return {name: one | {"folder": base / name.replace(" ", "_")} for name, one in zip(MOMENTS, found, strict=True)}


def left(folder: Path) -> set[str]:
    """Files below a folder, but for features that are kept for the next call."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != "features"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_training_that_is_told_to_end_is_no_success(ended, moment):
    one = ended[moment]
    number = getattr(signal, MOMENTS[moment]["signals"][0])
    assert one["status"] == 128 + number
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    advice = "with --resume the same command goes on from there"
    if moment == "saving":
        advice = f"the model was complete by then, and is in {one['folder'] / 'model'}"
    assert one["stderr"].splitlines()[-1] == f"st-gchb: {how}; {advice}"
    assert "Traceback" not in one["stderr"]
    assert "NameError" not in one["stdout"] + one["stderr"]
    assert one["handlers"] == "as before"


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_half_written_is_left(ended, moment):
    one = ended[moment]
    files = left(one["folder"])
    if moment == "saving":
        assert {"model.json", "network.safetensors", "reference.safetensors", "origin.parquet"} == files
        return
    expected = set()
    if moment not in ("imports", "embedding"):
        expected = {"network.checkpoint"}
    assert {name for name in files if not name.startswith("fold_")} == expected
    assert not (one["folder"] / "model").exists()


def test_training_goes_on_from_an_early_checkpoint(ended, slides, programs):
    """Well before the ten seconds between two checkpoints are over, one was written."""
    folder = ended["two at once"]["folder"]
    assert "epochs done: network 2" in ended["two at once"]["stderr"]
    (again,) = run_child(programs, folder, {"argv": train(slides, folder / "model", "--resume")})
    assert again["status"] == 0
    assert "goes on after epoch 2" in again["stderr"]
    assert (folder / "model" / "model.json").is_file()
    assert "network.checkpoint" not in left(folder)


def test_a_queue_that_ends_a_training_sees_143(slides, programs, tmp_path):
    """From outside, at a line that training says."""
    start = "import sys; from st_gchb.cli import main; sys.exit(main())"
    options = {"cwd": tmp_path, "env": environment(tmp_path)}
    training = programs.start(start, *train(slides, tmp_path / "model"), **options)
    deadline = time.monotonic() + 300
    while "Calibration: training without" not in training.stderr and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(training.pid, signal.SIGTERM)
    programs.wait(training)
    assert training.returncode == 143, training.stderr
    last = training.stderr.splitlines()[-1]
    assert last == "st-gchb: ended by SIGTERM; with --resume the same command goes on from there"
    assert not (tmp_path / "model").exists()


SCRIPT = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs this in the background has it ignored
import st_gchb
from st_gchb.errors import TerminatedError
from st_gchb.model import STGCHB
from st_gchb.train._checkpoints import Progress

tissue = st_gchb.datasets.synthetic_tissue(2, n_rows=6, n_cols=6, n_genes=20)
st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=150, cache=False)
STGCHB.setup_anndata(tissue, slice_key="slice")
model = STGCHB(tissue, n_top_genes=20)
number = [signal.SIGTERM]
begun = Progress.on_train_epoch_start
def end(self, trainer, module):
    begun(self, trainer, module)
    if trainer.current_epoch == 2:
        os.kill(os.getpid(), number[0])
Progress.on_train_epoch_start = end
options = {"max_epochs": 4, "enable_progress_bar": False, "checkpoint_dir": "checkpoints"}

before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
for kind in (TerminatedError, SystemExit):
    try:
        try:
            model.train(**options)
        except Exception:
            print("swallowed")
    except kind as error:
        print(type(error).__name__, error.code, error.signal.name, model.is_trained_)
number[0] = signal.SIGINT
try:
    model.train(**options)
except KeyboardInterrupt as error:
    print(type(error).__name__, model.is_trained_)
print(before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))

heard = []
number[0] = signal.SIGTERM
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
try:
    model.train(**options)
except TerminatedError as error:
    print("beside a handler of one's own:", error.code, len(heard))
Progress.on_train_epoch_start = begun
thread = threading.Thread(target=lambda: model.train(**options, calibrate=False))
thread.start(); thread.join()
print("in a thread:", model.is_trained_, len(heard))
signal.signal(signal.SIGTERM, signal.SIG_DFL)
Progress.on_train_epoch_start = end
model.train(**options)
print("not reached")
"""


def test_training_in_a_script_of_the_users(programs, tmp_path):
    result = programs.run(SCRIPT, cwd=tmp_path)
    assert result.stdout.splitlines() == [
        *["TerminatedError 143 SIGTERM False"] * 2,
        "KeyboardInterrupt False",
        "True",
        "beside a handler of one's own: 143 1",
        "in a thread: True 1",
    ], result.stderr
    # Not caught, it ends the script with the status that the signal has, and the log says how to go on.
    assert result.returncode == 143
    assert "Traceback" not in result.stderr
    assert "The checkpoint is in checkpoints (epochs done: network 2)" in result.stderr
    assert "resume=True" in result.stderr


@pytest.fixture(scope="module")
def images(tissue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides and a table of them."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("S1", "S2"):
        Image.fromarray(tissue.uns["spatial"][name]["images"]["hires"]).save(folder / f"{name}.png")
    (folder / "slides.csv").write_text("path,name\nS1.png,one\nS2.png,two\n")
    return folder


TEXTURE = ["--encoder", "texture", "--patch-um", "150", "--views", "1", "--n-top-genes", "20"]
RUN = "st_gchb.pp.encoders._runner:EncoderRunner.run_all"


def other_commands(slides: Path, model: Path, images: Path, out: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Moment and arguments of the other commands, and what each says of going on."""
    data = ["--data", str(slides), "--out", str(out), "--device", "cpu"]
    many = ["predict-many", str(images / "slides.csv"), "--model", str(model), "--out", str(out), "--device", "cpu"]
    return {
        "predict": (
            {"at": RUN, "argv": ["predict", *data, "--model", str(model), "--slices", "S3"]},
            "the same command predicts it anew",
        ),
        "predict-many": (
            {"at": RUN, "nth": 2, "argv": [*many, "--um-per-px", "1", "--spacing", "100um"]},
            "the same command goes on from there",
        ),
        "evaluate": (
            {"at": RUN, "argv": ["evaluate", *data, *TEXTURE, "--methods", "mean", "ridge"]},
            "the same command goes on from there",
        ),
        "demo": ({"at": RUN, "argv": ["demo", *data, *TEXTURE]}, "the same command starts anew"),
    }


CASES = [
    (command, name) for command in ("predict", "predict-many", "evaluate", "demo") for name in ("SIGTERM", "SIGINT")
]


@pytest.fixture(scope="module")
def others_ended(slides, model, images, programs, tmp_path_factory) -> dict[tuple[str, str], dict[str, Any]]:
    """The other commands, told to end while patches are encoded, each in a folder of its own; then again to the end."""
    base = tmp_path_factory.mktemp("others")
    jobs = []
    for command, name in CASES:
        folder = base / f"{command}_{name}"
        folder.mkdir()
        job, advice = other_commands(slides, model, images, folder / "out")[command]
        jobs.append(job | {"signals": [name], "cache": str(folder / "cache"), "folder": str(folder), "advice": advice})
    again = [{"argv": job["argv"], "cache": job["cache"]} for job in jobs if job["argv"][0] == "predict-many"]
    found = run_child(programs, base, *jobs, *again)
    ended = {case: job | one for case, job, one in zip(CASES, jobs, found, strict=False)}
    many = [case for case in CASES if case[0] == "predict-many"]
    return ended | {(*case, "again"): one for case, one in zip(many, found[len(jobs) :], strict=True)}


@pytest.mark.parametrize(("command", "name"), CASES)
def test_other_commands_that_are_told_to_end_are_no_success(others_ended, command, name):
    one = others_ended[command, name]
    assert one["status"] == 128 + getattr(signal, name)
    how = "interrupted" if name == "SIGINT" else "ended by SIGTERM"
    assert one["stderr"].splitlines()[-1] == f"st-gchb: {how}; {one['advice']}"
    assert "Traceback" not in one["stderr"]
    assert one["handlers"] == "as before"
    out = Path(one["folder"]) / "out"
    if command != "predict-many":
        assert not out.exists() or not left(out)
        return
    # The slide that was done stays, and the same command does the other one alone.
    again = others_ended[command, name, "again"]
    assert again["status"] == 0
    assert "1 done" in again["stdout"]
    assert "1 kept" in again["stdout"]
    assert sorted(path.name for path in out.glob("*.h5ad")) == ["one.h5ad", "two.h5ad"]
