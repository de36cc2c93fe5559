"""The benchmark's slide in small: each chunk decoded once, within the memory that is allowed."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import st_gchb
from st_gchb.io import open_image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = 4000


@pytest.fixture(scope="module")
def bench():
    """The script and the modules beside it, which it imports by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        slides = importlib.import_module("slides")
        module = importlib.import_module("large_slide")
        for one in (slides, module):
            patch.setattr(one, "PERIOD", 512)  # less to filter
        yield module
        for name in ("slides", "large_slide"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def path(bench, tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "slide.tif"
    bench.make_slide(path, SIZE, levels=4)
    return path


def test_the_slide_is_a_pyramid_of_known_scale(path):
    slide = open_image(path)
    assert slide.shape_px == (SIZE, SIZE)
    assert slide.downsamples == [1, 2, 4, 8]
    assert slide.um_per_px == pytest.approx(0.5)
    fine, coarse = slide.read(0, 2000, 2400, 2000, 2400), slide.read(2, 500, 600, 500, 600)
    blocks = fine.reshape(100, 4, 100, 4, 3).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), coarse.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("memory_mb", [512, 12])
def test_a_slide_is_predicted_within_the_memory(model, bench, path, watched_windows, memory_mb):
    """48 MB of pixels; at the smaller bound a third of them would not fit."""
    slide = open_image(path)
    slide.levels = [bench.Counted(level, slide.chunks(i)) for i, level in enumerate(slide.levels)]
    query = st_gchb.pp.tile_tissue(slide, spacing_um=150, name="slide")
    assert query.n_obs > 80
    assert slide.levels[0].times.max() == 0  # tissue is found on a coarse level
    for level in slide.levels:
        level.times[:] = 0
    st_gchb.pp.embed_patches_like(
        query, model.rules_.features, image=slide, memory_mb=memory_mb, batch_size=16, cache=False
    )
    prediction = model.predict(query)
    assert prediction.n_obs == query.n_obs
    assert np.isfinite(prediction.layers["st_gchb"]).all()
    read = [level.times for level in slide.levels if level.times.any()]
    assert len(read) == 1
    assert read[0].max() == 1
    assert 0 < max(band.peak_bytes for band in watched_windows) <= memory_mb * 1e6


@pytest.mark.usefixtures("bench")
def test_one_command_and_its_help(monkeypatch, capsys):
    """As ``python`` runs it, but in this process: the libraries that the script imports take seconds in another one."""
    monkeypatch.setattr(sys, "argv", ["large_slide.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / "large_slide.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "--memory-mb" in capsys.readouterr().out
