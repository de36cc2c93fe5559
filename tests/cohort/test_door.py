"""What is wrong with all slides, or with the list of them, is told before any is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from st_gchb._errors import (
    EncoderError,
    InputError,
    MissingFileError,
    MissingKeyError,
    ModelFileError,
    STGCHBError,
    StoreError,
    WeightsUnavailableError,
)
from st_gchb.cohort import Slide, embed_slides, predict_slides, slides_of
from st_gchb.model import STGCHB

from .conftest import READ, TEXTURE


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, InputError, "k=0; expected a whole number of 1 or more"),
        ({"k": 10**6}, InputError, "Pass a k between 1 and"),
        ({"layer": "none"}, STGCHBError, "none"),
        ({"weighting": "median"}, InputError, "weighting='median'; expected 'softmax', 'mean'"),
        ({"grid": "round"}, InputError, "grid='round'; expected 'hex'"),
        ({"tissue": "any"}, InputError, "tissue='any'; expected"),
        ({"min_tissue": 1.5}, InputError, "expected a share"),
        ({"memory_mb": 0}, InputError, "memory_mb"),
        ({"device": "tpu"}, InputError, "device='tpu'; expected 'auto'"),
        ({"threads": 0}, InputError, "threads=0; expected a whole number of 1 or more"),
        ({"threads": True}, InputError, "threads=True"),
        ({"um_per_px": -1.0}, InputError, "um_per_px=-1.0; expected a positive size of a pixel"),
        ({"spacing_um": "wide"}, InputError, "spacing_um='wide'"),
        ({"client": "tcp://host:8786"}, InputError, "client='tcp://host:8786'; expected a Client or None"),
    ],
)
def test_options_that_cannot_be(model, images, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        predict_slides(model, images, tmp_path / "out", **READ | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "resnet49"}, EncoderError, "resnet49"),
        ({"encoder": 3}, InputError, "encoder=3; expected the name of an encoder, which every worker can build"),
        ({"encoder": "mobilenet_v2", "weights": "none.pt"}, WeightsUnavailableError, "no such weights file"),
        ({"n_views": 3}, InputError, "n_views=3"),
        ({"precision": "half"}, InputError, "precision='half'; expected"),
        ({"patch_um": -150.0}, InputError, "patch_um=-150"),
        ({"stain_norm": "macenko"}, InputError, "one for all slides, as st_gchb.pp.fit_stain"),
    ],
)
def test_features_that_cannot_be(images, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        embed_slides(images, tmp_path / "out", **TEXTURE | READ | options)
    assert not (tmp_path / "out").exists()


def test_models_that_are_none(model, images, tmp_path):
    with pytest.raises(MissingFileError, match="There is no model folder"):
        predict_slides(tmp_path / "none", images, tmp_path / "out")
    other = STGCHB.load(model, accelerator="cpu")
    other.save(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.json").write_text("{}")
    with pytest.raises(ModelFileError, match="damaged"):
        predict_slides(tmp_path / "damaged", images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("slides", "error", "message"),
    [
        ([], InputError, "there is no slide"),
        (["a/x.svs", "b/x.svs"], InputError, "two slides would write the same result 'x': .*a/x.svs and .*b/x.svs"),
        (["a/x.svs", "b/X.tif"], InputError, "two slides would write the same result"),
        (["x.svs", 7], InputError, "slides holds a int; expected paths"),
        ("x.svs", InputError, "is one path; expected a list of paths"),
        ("none.csv", MissingFileError, "no such table of slides"),
        (pd.DataFrame({"file": ["x.svs"]}), MissingKeyError, r"no column 'path' \(found \['file'\]\)"),
        (pd.DataFrame({"path": ["x.svs", None]}), InputError, "row 2 of the slides has no path"),
        (pd.DataFrame({"path": ["x.svs"], "um_per_px": ["half"]}), InputError, "row 1 .*um_per_px='half'"),
        (pd.DataFrame({"path": ["x.svs"], "spacing_um": [0]}), InputError, "row 1 .*spacing_um='0'"),
    ],
)
def test_lists_that_cannot_be(slides, error, message):
    with pytest.raises(error, match=message):
        slides_of(slides)


NO_UTF8 = os.fsdecode(b"scans\xff")
"""Name of a folder on a disk whose names are Latin-1, as Python holds it."""


@pytest.mark.parametrize("name", [NO_UTF8, "scans\ud800"])
def test_paths_that_are_no_utf8(tmp_path, name):
    """They would fail when the report is written, after all slides are done."""
    for slides in ([f"{tmp_path}/{name}/x.svs"], pd.DataFrame({"path": [f"{name}/x.svs"]}, dtype=object)):
        with pytest.raises(InputError, match="row 1 of the slides: the path .* is no valid UTF-8.*Rename the file"):
            slides_of(slides)
    table = pd.DataFrame({"path": ["x.h5ad"], "image": [f"{name}.tif"]}, dtype=object)
    with pytest.raises(InputError, match="row 1 of the slides: the image .* is no valid UTF-8"):
        slides_of(table)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (NO_UTF8, StoreError, "out=.* is no valid UTF-8, and the report holds.*Name another folder"),
        ("out\ud800", InputError, "out is a PosixPath; expected a path"),
        ("out\0", InputError, "out is a PosixPath; expected a path"),
    ],
)
def test_folders_of_results_that_are_no_utf8(model, images, tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        predict_slides(model, images, tmp_path / name, **READ)
    with pytest.raises(error, match=message):
        embed_slides(images, tmp_path / name, **TEXTURE | READ)
    assert not list(tmp_path.iterdir())


def one_slide(name):
    """A table of one slide; of Python's strings, since pandas 3's own type refuses half of a surrogate pair."""
    return pd.DataFrame({"path": ["x.svs"], "name": [name]}, dtype=object)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", ".hidden", "..", "x.", " x", "x ", "a\nb", "a:b", "what?", "x" * 201, "\ud800", NO_UTF8],
)
def test_names_that_are_no_names_of_files(name):
    with pytest.raises(InputError, match="row 1 of the slides: the name .* Give another one in the column 'name'"):
        slides_of(one_slide(name))


@given(st.text(min_size=1, max_size=210))
def test_a_name_is_refused_or_is_the_name_of_one_file(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names")
    try:
        (slide,) = slides_of(one_slide(name))
    except InputError:
        return
    assert slide.name == name
    for ending in ("h5ad", "begun"):
        (folder / f"{name}.{ending}").write_text("")
    assert len(list(folder.iterdir())) == 2


def test_names_by_file_or_folder(tmp_path):
    (tmp_path / "S7" / "outs").mkdir(parents=True)
    (tmp_path / "sample.v2").mkdir()
    paths = ["A1.svs", "A2.ome.tif", "TCGA-A1-01Z-00-DX1.B34C.svs", "b.zarr", "c.h5ad"]
    found = slides_of([*paths, tmp_path / "S7" / "outs", tmp_path / "sample.v2"])
    names = ["A1", "A2", "TCGA-A1-01Z-00-DX1.B34C", "b", "c", "S7", "sample.v2"]
    assert [slide.name for slide in found] == names
    assert all(Path(slide.path).is_absolute() for slide in found)


def test_a_table_in_a_file(tmp_path, monkeypatch, caplog):
    """Paths are relative to it, empty cells are not given, text is left as text."""
    monkeypatch.chdir("/")
    (tmp_path / "he.tif").write_text("")
    text = "\ufeffpath,name,image,um_per_px,patient\nouts,007,he.tif,0.5,P1\nb.zarr,NA,he_element,,P2\n/c/d.svs,,,,\n"
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    with caplog.at_level("INFO"):
        found = slides_of(tmp_path / "slides.csv", um_per_px=0.25, spacing_um=100)
    assert found == [
        Slide("007", str(tmp_path / "outs"), str(tmp_path / "he.tif"), 0.5, 100.0),
        Slide("NA", str(tmp_path / "b.zarr"), "he_element", 0.25, 100.0),
        Slide("d", "/c/d.svs", None, 0.25, 100.0),
    ]
    assert "Columns of the table that are not used: patient" in caplog.text
    (tmp_path / "slides.tsv").write_text("path\tname\na.svs\tx\n")
    assert slides_of(tmp_path / "slides.tsv")[0].name == "x"
    (tmp_path / "bad.csv").write_bytes(b"path\n\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as a table"):
        slides_of(tmp_path / "bad.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="cannot be read as a table"):
        slides_of(tmp_path / "empty.csv")
    # A number would end at the NUL: 15 µm apart instead of 150, and a hundred times as many spots.
    (tmp_path / "nul.csv").write_bytes(b"path,spacing_um\na.svs,15\0.0\n")
    with pytest.raises(InputError, match="table of slides cannot be read .it holds NUL characters"):
        slides_of(tmp_path / "nul.csv")
