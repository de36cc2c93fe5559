"""The page on extending the package does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import st_gchb
from st_gchb.pp.encoders import FACTORIES

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def examples() -> dict[str, str]:
    """Python blocks of each section, as a reader would paste them one after the other."""
    sections = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    code = {
        title: "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }
    return {title: block for title, block in code.items() if block}


EXAMPLES = examples()


def run(title: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(EXAMPLES[title], f"{PAGE.name}: {title}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Run in a folder of its own, and forget afterwards what was registered."""
    monkeypatch.chdir(tmp_path)
    yield
    st_gchb.io.READERS.clear()
    FACTORIES.clear()


def test_each_example_is_tested_and_fits_on_a_screen():
    assert set(EXAMPLES) == set(CHECKS)
    assert max(block.count("\n") for block in EXAMPLES.values()) <= 30


def check_method(names):
    table = names["result"].table()
    assert table.index.tolist() == ["forest", "ridge"]
    assert table["AG", "mean"].notna().all()


def check_format(names):
    image = st_gchb.io.open_image("slide.raw")
    assert (image.um_per_px, image.shape_px) == (2.0, (600, 800))
    assert (image.read(0, 10, 50, 700, 900) == names["pixels"][10:50, 700:]).all()
    query = names["query"]
    assert query.obsm["X_patch"].shape == (query.n_obs, 107)
    assert query.n_obs > 20
    assert image.levels[0].chunks == (256, 256)


def check_encoder(names):
    predicted = names["predicted"]
    assert predicted.layers["st_gchb"].shape == (names["query"].n_obs, 20)
    assert predicted.uns["st_gchb"]["encoder"] == "small-cnn"
    assert set(names["reference"].uns["X_patch"]["n_features"]) == {64}


def check_graph(names):
    built, taken = names["rule"], names["model"].rules_.graph
    assert (built.mode, taken.mode, taken.n_neighbors) == ("delaunay", "knn", 6)
    assert names["predicted"].n_obs == names["query"].n_obs


CHECKS = {
    "An encoder": check_encoder,
    "A spot graph": check_graph,
    "A method for the evaluation": check_method,
    "A slide format": check_format,
}


@pytest.mark.parametrize("title", CHECKS)
def test_examples_run(title):
    CHECKS[title](run(title))
