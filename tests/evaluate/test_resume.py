"""An evaluation that was stopped goes on where it stopped, and never with the runs of another one."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest

import st_gchb
from st_gchb._errors import InputError
from st_gchb.evaluate import METHODS, evaluate, evaluate_fold, write_report
from st_gchb.model import PRESETS, STGCHB
from st_gchb.train import STGCHBTrainingPlan

QUICK = {"n_top_genes": 20, "seeds": [0, 1], "device": "cpu"}
CALLS: list[tuple[str, int]] = []
STOP_AT: list[int] = []


@pytest.fixture(scope="module")
def _two(_tissue):
    return _tissue[_tissue.obs["slice"] != "S3"].copy()


@pytest.fixture
def two(_two):
    """Two slices, each of which is trained on once."""
    return _two.copy()


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()
    STOP_AT.clear()


def noise(task, scale=1.0):
    if len(CALLS) in STOP_AT:
        raise KeyboardInterrupt
    CALLS.append((task.test.obs["slice"].iloc[0], task.seed))
    return scale * np.random.default_rng([task.seed, task.test.n_obs]).random((task.test.n_obs, len(task.panel)))


OWN = {"noise": noise, "louder": partial(noise, scale=2.0)}


ONE = {"methods": {"noise": noise}, **QUICK, "seeds": [0]}


@pytest.fixture(scope="module")
def own_kept(_two, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return evaluate(_two.copy(), methods=OWN, runs_dir=folder, **QUICK), folder


@pytest.fixture
def own(own_kept, tmp_path):
    """Evaluation of two methods of one's own whose eight runs lie in the test's folder."""
    result, folder = own_kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return result


@pytest.fixture(scope="module")
def one_kept(_two, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return evaluate(_two.copy(), runs_dir=folder, **ONE), folder


@pytest.fixture
def one(one_kept, tmp_path):
    """The same of one method and seed, with two runs."""
    result, folder = one_kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return result


def assert_same(one, other):
    pd.testing.assert_frame_equal(one.scores, other.scores, check_exact=True)
    pd.testing.assert_frame_equal(one.genes, other.genes, check_exact=True)
    assert one.settings == other.settings
    np.testing.assert_array_equal(one.pictured.layers["st_gchb"], other.pictured.layers["st_gchb"])
    np.testing.assert_array_equal(one.pictured.layers["measured"], other.pictured.layers["measured"])
    pd.testing.assert_frame_equal(one.pictured.obs, other.pictured.obs)


@pytest.mark.usefixtures("sketched_figures")
@pytest.mark.parametrize("by", ["slice", "patient"])
def test_goes_on_where_it_stopped(tissue, tmp_path, by):
    whole = evaluate(tissue, methods=OWN, by=by, **QUICK)
    n_runs = len(whole.scores)
    CALLS.clear()
    STOP_AT.append(5)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tissue, methods=OWN, by=by, runs_dir=tmp_path / "runs", **QUICK)
    assert len(list((tmp_path / "runs").glob("*.json"))) == 5
    STOP_AT.clear()
    resumed = evaluate(tissue, methods=OWN, by=by, runs_dir=tmp_path / "runs", **QUICK)
    assert len(CALLS) == n_runs
    assert resumed.runs == {"made": n_runs - 5, "taken": 5}
    assert_same(whole, resumed)
    again = evaluate(tissue, methods=OWN, by=by, runs_dir=tmp_path / "runs", **QUICK)
    assert len(CALLS) == n_runs
    assert again.runs == {"made": 0, "taken": n_runs}
    assert_same(whole, again)
    write_report(again, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["runs"] == again.runs


@pytest.mark.slow
def test_a_killed_process(tissue, programs, tmp_path):
    """Killed for good in the third run, and gone on with by another process."""
    tissue.write_h5ad(tmp_path / "tissue.h5ad")
    (tmp_path / "mine.py").write_text(
        "import os, signal, sys\nfrom pathlib import Path\nimport anndata, numpy as np\n"
        "from st_gchb.evaluate import evaluate\n\n"
        "def noise(task):\n"
        "    if 'deadly' in sys.argv and len(list(Path('runs').glob('*.json'))) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return np.random.default_rng([task.seed, task.test.n_obs]).random((task.test.n_obs, len(task.panel)))\n\n"
        "def run():\n"
        "    data, options = anndata.read_h5ad('tissue.h5ad'), dict(n_top_genes=20, seeds=[0], device='cpu')\n"
        "    return evaluate(data, methods={'noise': noise}, runs_dir='runs', **options)\n"
    )
    code = "import mine; r = mine.run(); print(r.runs); r.scores.to_json('scores.json', double_precision=15)"
    killed = programs.run(code, "deadly", cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2
    ended = programs.run(code, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "{'made': 1, 'taken': 2}"
    whole = evaluate(tissue, methods={"noise": noise}, **(QUICK | {"seeds": [0]}))
    assert (tmp_path / "scores.json").read_text() == whole.scores.to_json(double_precision=15)


def test_one_fold_gives_its_runs_to_all(two, tmp_path):
    evaluate_fold(two, "S1", methods=OWN, runs_dir=tmp_path, **QUICK)
    assert evaluate(two, methods=OWN, runs_dir=tmp_path, **QUICK).runs == {"made": 4, "taken": 4}


def test_a_figure_that_was_not_kept_is_made(two, own, tmp_path):
    turned = {"louder": OWN["louder"], "noise": OWN["noise"]}
    result = evaluate(two, methods=turned, runs_dir=tmp_path, **QUICK)
    assert result.runs == {"made": 1, "taken": 7}
    assert result.pictured.layers["st_gchb"].max() > 1
    assert evaluate(two, methods=turned, runs_dir=tmp_path, **QUICK).runs["made"] == 0


def other_count(adata):
    adata.X[0, np.flatnonzero(adata.X[0].toarray())[0]] += 1


def other_feature(adata):
    adata.obsm["X_patch"][3, 3] += 1e-3


def other_position(adata):
    adata.obsm["spatial"][0, 0] += 1


def other_slice(adata):
    names = adata.obs["slice"].astype(str)
    names.iloc[0] = "S2"
    adata.obs["slice"] = names.to_numpy()


def other_gene(adata):
    adata.var_names = ["Other", *adata.var_names[1:]]


CHANGES = {
    "counts": (other_count, {}),
    "features": (other_feature, {}),
    "positions": (other_position, {}),
    "slices": (other_slice, {}),
    "genes": (other_gene, {}),
    "panel": (None, {"n_top_genes": 21}),
    "markers": (None, {"markers": True}),
    "seed": (None, {"seeds": [7]}),
    "keyword": (None, {"methods": {"noise": partial(noise, scale=3.0)}}),
    "name": (None, {"methods": {"other": noise}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_runs_are_no_answer(two, one, tmp_path, change):
    spoil, options = CHANGES[change]
    base = {"runs_dir": tmp_path, **ONE}
    if options.get("markers"):
        options = {"markers": [one.genes["gene"].iloc[0]]}
    if spoil is not None:
        spoil(two)
    assert evaluate(two, **(base | options)).runs == {"made": 2, "taken": 0}
    assert evaluate(two, **(base | options)).runs == {"made": 0, "taken": 2}
    assert list(tmp_path.glob("*.damaged*")) == []


def test_what_no_run_depends_on_does_not_matter(two, one, tmp_path):
    base = {"runs_dir": tmp_path, **ONE}
    two.X = two.X.toarray()
    two.obs["weather"] = "fine"
    assert evaluate(two, **base).runs["made"] == 0


def test_another_version(two, one, tmp_path, monkeypatch):
    base = {"runs_dir": tmp_path, **ONE}
    monkeypatch.setattr("st_gchb.evaluate._run_cache.__version__", "99.0")
    assert evaluate(two, **base).runs["taken"] == 0


def test_a_changed_preset_is_another_method(tissue, tmp_path, monkeypatch):
    short = {"max_epochs": 1}
    methods = {name: partial(METHODS[name], **short) for name in ("default", "bleep")}
    base = {"methods": methods, "runs_dir": tmp_path, **QUICK, "seeds": [0]}
    assert evaluate_fold(tissue, "S1", **base).runs == {"made": 2, "taken": 0}
    assert evaluate_fold(tissue, "S1", **base).runs == {"made": 0, "taken": 2}
    # A keyword that says what the preset says is the same method.
    methods["default"] = partial(methods["default"], beta=PRESETS["default"].beta)
    assert evaluate_fold(tissue, "S1", **base).runs == {"made": 0, "taken": 2}
    changed = PRESETS["default"].__class__(**{**vars(PRESETS["default"]), "dropout": 0.123})
    monkeypatch.setitem(PRESETS, "default", changed)
    assert evaluate_fold(tissue, "S1", **base).runs == {"made": 1, "taken": 1}


def test_the_model_goes_on_with_the_same_numbers(tissue, tmp_path):
    """What was trained before a run leaves no trace in it."""
    methods = {"bleep": partial(METHODS["bleep"], max_epochs=1), "mean": METHODS["mean"]}
    whole = evaluate(tissue, methods=methods, **QUICK)
    evaluate_fold(tissue, "S2", methods=methods, runs_dir=tmp_path, **QUICK)
    resumed = evaluate(tissue, methods=methods, runs_dir=tmp_path, **QUICK)
    assert resumed.runs["taken"] == 4
    assert_same(whole, resumed)


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, task):
        self.calls += 1
        return noise(task)


def test_methods_that_cannot_be_told_apart_are_made_every_time(two, tmp_path, caplog):
    counting = Counting()
    methods = {"object": counting, "closure": lambda task: noise(task), "noise": noise}
    with caplog.at_level(logging.INFO, "st_gchb"):
        for _ in range(2):
            result = evaluate_fold(two, "S1", methods=methods, runs_dir=tmp_path, **QUICK)
    assert result.runs == {"made": 4, "taken": 2}
    assert counting.calls == 4
    assert "['closure', 'object'] are made every time" in caplog.text
    assert f"2 of 6 runs taken from {tmp_path}" in caplog.text


def cut(content):
    return content[: len(content) // 2]


def changed(content):
    return content.replace(b'"AG": 0.', b'"AG": 0.9', 1).replace(b'"AG": -0.', b'"AG": 0.9', 1)


DAMAGE = {"empty": lambda _: b"", "cut": cut, "garbage": lambda _: b"\x93NUMPY\x00\xff", "changed": changed}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_told_and_made_again(two, own, tmp_path, caplog, damage):
    base = {"methods": OWN, "runs_dir": tmp_path, **QUICK}
    path = sorted(tmp_path.glob("*.json"))[2]
    content = path.read_bytes()
    for number in range(2):
        broken = DAMAGE[damage](content)
        assert broken != content
        path.write_bytes(broken)
        caplog.clear()
        resumed = evaluate(two, **base)
        assert resumed.runs == {"made": 1, "taken": 7}
        assert_same(own, resumed)
        aside = path.with_name(path.name + [".damaged", ".damaged1"][number])
        assert aside.read_bytes() == broken
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert str(path) in warning
        assert aside.name in warning
        assert path.read_bytes() == content


def test_a_run_of_another_name(two, own, tmp_path, caplog):
    base = {"methods": OWN, "runs_dir": tmp_path, **QUICK}
    one, other, *_ = sorted(tmp_path.glob("*.json"))
    shutil.copy(one, other)
    assert evaluate(two, **base).runs == {"made": 1, "taken": 7}
    assert "another run" in caplog.text
    assert other.with_name(other.name + ".damaged").exists()


def test_a_folder_in_the_place_of_a_run(two, own, tmp_path):
    base = {"methods": OWN, "runs_dir": tmp_path, **QUICK}
    path = min(tmp_path.glob("*.json"))
    path.unlink()
    path.mkdir()
    (path / "precious").touch()
    assert evaluate(two, **base).runs == {"made": 1, "taken": 7}
    assert (path.with_name(path.name + ".damaged") / "precious").exists()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_prediction(two, own, tmp_path, caplog, damage):
    base = {"methods": OWN, "runs_dir": tmp_path, **QUICK}
    (path,) = tmp_path.glob("*.npy")
    if damage == "cut":
        path.write_bytes(cut(path.read_bytes()))
    else:
        path.unlink()
    resumed = evaluate(two, **base)
    assert resumed.runs == {"made": 1, "taken": 7}
    assert path.name in caplog.text
    assert_same(own, resumed)


def test_fresh(two, tmp_path):
    base = {"methods": {"noise": noise}, "runs_dir": tmp_path, **QUICK}
    evaluate(two, **base)
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / "S1-noise-seed0-0123456789ab.json.damaged").write_text("")
    (tmp_path / ".S1-noise-seed0-0123456789ab.x7_8abcd.json").write_text("")
    with pytest.raises(InputError):
        evaluate(two, overwrite=True, **(base | {"seeds": []}))
    assert len(list(tmp_path.iterdir())) == 8
    assert evaluate(two, overwrite=True, **base).runs == {"made": 4, "taken": 0}
    assert len(list(tmp_path.iterdir())) == 6
    assert (tmp_path / "notes.json").read_text() == "mine"


def test_a_file_where_the_folder_should_be(two, tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(InputError, match="runs' is no folder"):
        evaluate(two, methods=OWN, runs_dir=tmp_path / "runs", **QUICK)
    assert CALLS == []


def test_a_disk_that_is_full_loses_nothing(two, own_kept, tmp_path, monkeypatch, caplog):
    whole, _ = own_kept

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("st_gchb._artifacts.os.replace", full)
    result = evaluate(two, methods=OWN, runs_dir=tmp_path, **QUICK)
    assert_same(whole, result)
    assert caplog.text.count("No space left") == 8
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_training_is_ctrl_c(tissue, tmp_path, monkeypatch):
    """Lightning would end the process with status 1, and be deaf to the next Ctrl-C."""
    import signal

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(STGCHBTrainingPlan, "training_step", stop)
    # A process that was started in the background is deaf to Ctrl-C from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    methods = {"mean": METHODS["mean"], "bleep": METHODS["bleep"]}
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate_fold(tissue, "S1", methods=methods, runs_dir=tmp_path, **QUICK)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert {path.name.rsplit("-", 1)[0] for path in tmp_path.glob("*.json")} == {"S1-mean-seed0", "S1-mean-seed1"}


@pytest.fixture
def epochs(monkeypatch):
    """Epochs that are begun, by number; before that of ``epochs[-1]``, a training is interrupted."""
    begun: list[int] = []
    stop: list[int] = []
    start = STGCHBTrainingPlan.on_train_epoch_start

    def counted(plan):
        if plan.current_epoch in stop:
            raise RuntimeError("power")
        begun.append(plan.current_epoch)
        return start(plan)

    monkeypatch.setattr(STGCHBTrainingPlan, "on_train_epoch_start", counted)
    return begun, stop


PRESET = {"bleep": partial(METHODS["bleep"], max_epochs=4, k=10)}


def test_a_training_goes_on_from_its_last_epoch(two, tmp_path, epochs, caplog):
    begun, stop = epochs
    call = {"methods": PRESET, "n_top_genes": 20, "seeds": [0], "device": "cpu"}
    whole = evaluate_fold(two, "S1", **call)
    assert begun == [0, 1, 2, 3]
    begun.clear()
    stop.append(2)
    with pytest.raises(RuntimeError, match="power"):
        evaluate_fold(two, "S1", runs_dir=tmp_path, **call)
    assert begun == [0, 1]
    assert "The same call goes on from it." in caplog.text
    assert "resume=" not in caplog.text
    (folder,) = tmp_path.glob("S1-bleep-seed0-*.checkpoints")
    assert [file.name for file in folder.iterdir()] == ["network.checkpoint"]
    begun.clear()
    stop.clear()
    resumed = evaluate_fold(two, "S1", runs_dir=tmp_path, **call)
    assert begun == [2, 3]
    assert_same(resumed, whole)
    assert not folder.exists()
    assert evaluate_fold(two, "S1", runs_dir=tmp_path, **call).runs == {"made": 0, "taken": 1}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_damaged_checkpoint_and_one_that_is_overwritten(two, tmp_path, epochs, caplog, overwrite):
    begun, stop = epochs
    call = {"methods": PRESET, "n_top_genes": 20, "seeds": [0], "device": "cpu", "runs_dir": tmp_path}
    stop.append(1)
    with pytest.raises(RuntimeError, match="power"):
        evaluate_fold(two, "S1", **call)
    (file,) = tmp_path.rglob("network.checkpoint")
    if not overwrite:
        file.write_bytes(file.read_bytes()[:-9])
    (file.parent / "notes.txt").touch()
    begun.clear()
    stop.clear()
    evaluate_fold(two, "S1", overwrite=overwrite, **call)
    assert begun == [0, 1, 2, 3]
    assert ("is damaged, or of another training" in caplog.text) != overwrite
    assert not file.parent.exists()


def test_another_end_in_a_method_stays_that_end(two):
    def leave(task):
        sys.exit(3)

    with pytest.raises(SystemExit) as caught:
        evaluate_fold(two, "S1", methods={"leave": leave}, **QUICK)
    assert caught.value.code == 3


def test_a_graph_that_is_there_already_counts(two, one, tmp_path):
    base = {"runs_dir": tmp_path, **ONE}
    STGCHB.setup_anndata(two, slice_key="slice")
    assert evaluate(two, **base).runs["taken"] == 0
    assert evaluate(two, **base).runs["made"] == 0


def test_runs_of_other_parts_are_others(two, tmp_path):
    """The same numbers are weighted otherwise where other columns are a part."""
    st_gchb.pp.embed_patches(two, encoder="texture", patch_um=(80, 150), n_views=1, cache=False)
    options = {"methods": ["mean"], "runs_dir": tmp_path / "runs", **QUICK}
    evaluate(two, **options)
    first = set((tmp_path / "runs").rglob("*"))
    two.uns["X_patch"]["patch_um"] = np.array([80.0, 160.0])
    evaluate(two, **options)
    second = set((tmp_path / "runs").rglob("*"))
    assert first < second
    two.uns["X_patch"]["patch_um"] = np.array([80.0, 150.0])
    evaluate(two, **options)
    assert set((tmp_path / "runs").rglob("*")) == second


def test_predictions_of_all_runs_are_kept_on_demand(tissue, tmp_path):
    call = {"methods": {"noise": noise, "mean": METHODS["mean"]}, "runs_dir": tmp_path, **QUICK}
    assert evaluate(tissue, **call).predictions == {}
    first, again = (evaluate(tissue, keep_predictions=True, **call) for _ in range(2))
    assert (first.runs["taken"], again.runs["taken"]) == (1, 12)  # the one that is drawn had its prediction
    runs = [(fold, name, seed) for fold in ("S1", "S2", "S3") for name in ("noise", "mean") for seed in (0, 1)]
    assert list(first.predictions) == runs
    for run_id, prediction in first.predictions.items():
        np.testing.assert_allclose(again.predictions[run_id], prediction, rtol=1e-6)
        assert prediction.shape == ((tissue.obs["slice"] == run_id[0]).sum(), 20)
