"""Settings of the whole package: what they take, how far they reach, and that they leave no trace where told so."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import st_gchb
from st_gchb._logging import logger, track
from st_gchb._settings import bars_disabled, without_bars
from st_gchb.errors import InputError
from st_gchb.model import STGCHB
from st_gchb.pp.patches import cache_folder

settings = st_gchb.settings


@pytest.fixture(autouse=True)
def _as_before():
    with settings.override():
        yield


@pytest.mark.parametrize(("value", "level"), [("warning", "WARNING"), (" Info ", "INFO"), (40, "ERROR")])
def test_verbosity_is_a_level_by_name_or_number(value, level):
    settings.verbosity = value
    assert settings.verbosity == level
    assert logging.getLogger("st_gchb").level == getattr(logging, level)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verbosity", "loud"),
        ("verbosity", True),
        ("verbosity", 10.0),
        ("verbosity", []),
        ("progress_bars", 1),
        ("progress_bars", "yes"),
        ("cache_dir", ""),
        ("cache_dir", b"/tmp"),
        ("cache_dir", 3),
        ("cache_dir", "/tmp/\0"),
        ("cache_dir", "~nobody-of-this-name/cache"),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 1.0),
        ("seed", True),
        ("seed", "1"),
    ],
)
def test_a_value_that_a_setting_cannot_take(name, value):
    before = repr(settings)
    with pytest.raises(InputError, match=rf"settings\.{name}="):
        setattr(settings, name, value)
    assert repr(settings) == before


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        settings.cache_dir = tmp_path / "taken"


def test_a_setting_that_is_misspelled():
    with pytest.raises(AttributeError, match="there are the settings verbosity, progress_bars, cache_dir, seed"):
        settings.verbose = 1
    with pytest.raises(InputError, match="there are the settings"), settings.override(verbose=1):
        pass


def test_an_override_ends_however_the_block_does():
    settings.seed = 3
    with pytest.raises(KeyError), settings.override(seed=4, verbosity="ERROR", progress_bars=True):
        {}["absent"]
    with settings.override(seed=4, verbosity="ERROR", progress_bars=True):
        assert (settings.seed, settings.verbosity, settings.progress_bars) == (4, "ERROR", True)
    assert settings.seed == 3
    assert settings.verbosity != "ERROR"
    with pytest.raises(InputError), settings.override(seed=5, verbosity="loud"):
        pass
    assert settings.seed == 3


def test_none_puts_a_setting_back(monkeypatch, tmp_path):
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path / "of the environment"))
    settings.cache_dir, settings.seed = tmp_path / "mine", 9
    assert cache_folder() == tmp_path / "mine" / "features"
    settings.cache_dir = settings.seed = settings.verbosity = settings.progress_bars = None
    assert settings.cache_dir == tmp_path / "of the environment"
    assert settings.seed == 0


def test_all_are_shown():
    shown = repr(settings)
    assert [line.split(" = ")[0].strip() for line in shown.splitlines()[1:]] == [
        "verbosity",
        "progress_bars",
        "cache_dir",
        "seed",
    ]


def test_the_cache_folder_reaches_features_checkpoints_and_data_sets(tmp_path):
    from st_gchb.datasets import cache_folder as downloads
    from st_gchb.model import checkpoint_folder

    settings.cache_dir = tmp_path
    assert cache_folder() == tmp_path / "features"
    assert downloads("her2st", None) == tmp_path / "datasets" / "her2st"
    assert checkpoint_folder(None, {"a": "b"}).parent == tmp_path / "checkpoints"
    tissue = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=20)
    st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=150)
    assert list((tmp_path / "features").iterdir())


def test_the_seed_reaches_whatever_is_given_none(tmp_path):
    size = {"n_rows": 7, "n_cols": 7, "n_genes": 30}
    asked = st_gchb.datasets.synthetic_tissue(2, seed=5, **size)
    settings.seed = 5
    tissue = st_gchb.datasets.synthetic_tissue(2, **size)
    assert np.array_equal(asked.X.toarray(), tissue.X.toarray())
    st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=150, cache=False)
    STGCHB.setup_anndata(tissue, slice_key="slice")
    assert STGCHB(tissue, n_top_genes=20).seed == 5
    assert STGCHB(tissue, n_top_genes=20, seed=0).seed == 0
    result = st_gchb.evaluate.evaluate(tissue, methods=["mean"], n_top_genes=20)
    assert set(result.scores["seed"]) == {5, 6, 7}
    assert set(st_gchb.evaluate.evaluate_fold(tissue, "S1", methods=["mean"], n_top_genes=20).scores["seed"]) == {5}


class _Terminal(io.StringIO):
    def isatty(self):
        return True


LOOKED_AT = {
    "a terminal": {"stderr": _Terminal()},
    "a notebook": {"IPython": SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"IPKernelApp": {}}))},
    "ipython at a terminal": {
        "stderr": _Terminal(),
        "IPython": SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"TerminalIPythonApp": {}})),
    },
}
NOT_LOOKED_AT = {
    "a log file": {"stderr": io.StringIO()},
    "no console": {"stderr": None},
    "ipython that is imported alone": {"stderr": io.StringIO(), "IPython": SimpleNamespace(get_ipython=lambda: None)},
}


@pytest.mark.parametrize(
    ("values", "disabled"),
    [
        ({}, None),
        ({"verbosity": "INFO"}, None),
        ({"verbosity": "WARNING"}, True),
        ({"verbosity": "WARNING", "progress_bars": True}, False),
        ({"verbosity": "INFO", "progress_bars": False}, True),
    ],
)
@pytest.mark.parametrize("where", [*LOOKED_AT, *NOT_LOOKED_AT])
def test_progress_bars_go_by_verbosity_and_by_who_looks_at_them_unless_they_are_set(
    values, disabled, where, monkeypatch
):
    there = LOOKED_AT | NOT_LOOKED_AT
    monkeypatch.setitem(sys.modules, "IPython", there[where].get("IPython"))
    monkeypatch.setattr(sys, "stderr", there[where].get("stderr", io.StringIO()))
    settings.verbosity = None
    with settings.override(**values):
        assert bars_disabled() is (where in NOT_LOOKED_AT if disabled is None else disabled)
        assert settings.progress_bars is (disabled is not True)


@pytest.mark.parametrize("stream", [io.StringIO, _Terminal])
def test_a_log_file_holds_no_bars(stream, monkeypatch):
    """Neither those of steps nor that of training."""
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(sys, "stdout", stream())
    settings.verbosity = "INFO"
    tissue = st_gchb.datasets.synthetic_tissue(2, n_rows=6, n_cols=6, n_genes=20)
    st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=150, cache=False)
    STGCHB.setup_anndata(tissue, slice_key="slice")
    STGCHB(tissue, n_top_genes=20).train(2, enable_checkpointing=False)
    said = sys.stderr.getvalue() + sys.stdout.getvalue()
    bars = {what: what in said for what in ("Patches of 2 slices:", "Epoch 2/2:", "Calibration:   0%")}
    assert bars == dict.fromkeys(bars, stream is _Terminal)


def test_bars_are_switched_off_in_one_thread_alone():
    settings.progress_bars = True
    found = []
    with without_bars():
        assert bars_disabled() is True
        other = threading.Thread(target=lambda: found.append(bars_disabled()))
        other.start()
        other.join()
    assert found == [False]


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_steps_and_of_training(shown, capfd):
    tissue = st_gchb.datasets.synthetic_tissue(2, n_rows=6, n_cols=6, n_genes=20)
    with settings.override(progress_bars=shown):
        list(track(range(3), "Counting"))
        st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=150, cache=False)
        STGCHB.setup_anndata(tissue, slice_key="slice")
        capfd.readouterr()
        list(track(range(3), "Counting"))
        STGCHB(tissue, n_top_genes=20).train(2, enable_checkpointing=False)
    said = capfd.readouterr()
    assert ("Counting" in said.err) is shown
    fitting = re.findall(r"Fitting: [a-z ]+:[^\r]*? (\d)/(\d) ", said.err)
    assert fitting == ([(str(step), "5") for step in range(5)] if shown else [])
    assert ("Epoch 2/2" in said.out + said.err) is shown
    assert ("Calibration:   0%" in said.err) is shown
    with settings.override(progress_bars=shown):
        STGCHB(tissue, n_top_genes=20).train(1, enable_checkpointing=False, enable_progress_bar=False)
    said = capfd.readouterr()
    assert "%" not in said.out + said.err


def test_messages_reach_the_root_logger_and_the_console_once(caplog, capsys):
    """A caplog test must not depend on what ran before it."""
    settings.verbosity = "INFO"
    logger.info("slices: %d", 3)
    assert caplog.messages == ["slices: 3"]
    assert capsys.readouterr().err == "INFO     slices: 3\n"
    console = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(console)
    try:
        logger.info("once")
        assert capsys.readouterr().err == "once\n"
    finally:
        logging.getLogger().removeHandler(console)
    to_a_file = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(to_a_file)
    try:
        logger.info("to both")
        assert to_a_file.stream.getvalue() == "to both\n"
        assert capsys.readouterr().err == "INFO     to both\n"
    finally:
        logging.getLogger().removeHandler(to_a_file)


def test_settings_and_errors_bring_nothing_heavy():
    heavy = ["scvi", "anndata", "numpy", "pandas", "torch", "lightning"]
    code = "import sys, st_gchb\nst_gchb.settings.verbosity = 'ERROR'\nst_gchb.errors.InputError\n"
    code += f"print(st_gchb.settings.verbosity, *[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["ERROR"]
