"""The page of a prediction, file by file: tiles, values, names, and what is refused before anything is written."""

from __future__ import annotations

import errno
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from scipy import sparse

import st_gchb
from pages import GENES, numbers_in, prediction, put_together, record_of, slide_pixels, values_of
from st_gchb.errors import (
    CoordinateError,
    DamageError,
    ImageError,
    InputError,
    MissingFileError,
    MissingKeyError,
    SliceError,
    StoreError,
)
from st_gchb.io import SlideImage
from st_gchb.pl import report

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def two_slices() -> AnnData:
    one, other = prediction(), prediction()
    other.layers["st_gchb"] = other.layers["st_gchb"] + 1
    both = AnnData(
        np.concatenate([one.X, other.X]),
        obs=one.obs.iloc[[*range(one.n_obs)] * 2].reset_index(drop=True).rename("s{}".format),
        var=one.var,
        layers={"st_gchb": np.concatenate([one.layers["st_gchb"], other.layers["st_gchb"]])},
        obsm={"spatial": np.concatenate([one.obsm["spatial"]] * 2)},
    )
    both.obs["slice"] = ["S1"] * one.n_obs + ["S2"] * one.n_obs
    both.uns["spatial"] = {"S1": one.uns["spatial"]["S1"], "S2": other.uns["spatial"]["S1"]}
    return both


# ---- Contents ----


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, lambda values: values.astype(np.float64)])
def test_each_gene_is_a_script_with_its_values(tmp_path, kind):
    pred = prediction()
    values = pred.layers["st_gchb"].copy()
    pred.layers["st_gchb"] = kind(values)
    page = report(pred, tmp_path / "page")
    assert page == tmp_path / "page" / "index.html"
    record = record_of(page.parent)
    assert record["genes"]["names"] == GENES
    assert record["genes"]["expected"] == [0.4, 0.7, None, 0.1, -0.2, 0.5]
    for number in range(len(GENES)):
        np.testing.assert_array_equal(values_of(page.parent, number), values[:, number])
    spots = record["spots"]
    assert spots["names"] == list(pred.obs_names)
    np.testing.assert_array_equal(np.column_stack([numbers_in(spots[axis]) for axis in "xy"]), pred.obsm["spatial"])
    np.testing.assert_array_equal(numbers_in(spots["confidence"]), pred.obs["st_gchb_confidence"].astype(np.float32))
    np.testing.assert_array_equal(numbers_in(spots["outlier"]), pred.obs["st_gchb_outlier"])
    assert (spots["diameter"], record["slide"]["um_per_px"]) == (50.0, 0.5)


def test_genes_are_named_or_the_most_predictable_and_columns_are_shown_too(tmp_path):
    pred = prediction()
    report(pred, tmp_path / "named", ["CD74", "st_gchb_confidence", "ERBB2"])
    record = record_of(tmp_path / "named")
    assert record["genes"] == {
        "names": ["CD74", "st_gchb_confidence", "ERBB2"],
        "expected": [None, None, 0.4],
        "columns": [1],
    }
    assert record["first"] == 0
    np.testing.assert_array_equal(values_of(tmp_path / "named", 0), pred.layers["st_gchb"][:, 2])
    np.testing.assert_allclose(values_of(tmp_path / "named", 1), pred.obs["st_gchb_confidence"], rtol=1e-6)
    report(pred, tmp_path / "some", n_genes=3)
    record = record_of(tmp_path / "some")
    assert record["genes"]["names"] == ["COL1A1", GENES[5], "ERBB2"]
    assert record["first"] is None
    report(pred, tmp_path / "one", "ERBB2")
    assert record_of(tmp_path / "one")["genes"]["names"] == ["ERBB2"]


def test_many_genes_are_written_part_by_part(tmp_path, monkeypatch):
    pred = prediction()
    monkeypatch.setattr("st_gchb.pl.page._contents._BLOCK", 2 * pred.n_obs)
    report(pred, tmp_path / "page", GENES[::-1])
    for number in range(len(GENES)):
        np.testing.assert_array_equal(values_of(tmp_path / "page", number), pred.layers["st_gchb"][:, -1 - number])


def test_names_are_text_wherever_they_stand(tmp_path):
    page = report(prediction(), tmp_path / "page", title='<b>S1</b> & "co"').parent
    html = (page / "index.html").read_text()
    assert "<b>S1" not in html
    assert '<h1 id="title">&lt;b&gt;S1&lt;/b&gt; &amp; &quot;co&quot;</h1>' in html
    assert "{{" not in html
    assert not re.search(r"https?://", html)
    assert sorted(file.name for file in (page / "data" / "genes").iterdir()) == [f"{i}.js" for i in range(len(GENES))]
    assert record_of(page)["title"] == '<b>S1</b> & "co"'


def test_the_provenance_is_told_and_many_slices_are_counted(tmp_path):
    report(prediction(), tmp_path / "page")
    told = dict(record_of(tmp_path / "page")["provenance"])
    assert told["Model"] == "abc123"
    assert told["Image encoder"] == "resnet50, texture"
    # Folders of the machine that computed it are nobody's business.
    assert told["Encoder's weights"] == "resnet50.safetensors, default"
    assert told["SHA-256 of the weights, first digits"] == "0123456789ab"
    assert told["Reference slices"].endswith("R11 and 8 more")
    assert record_of(tmp_path / "page")["verdict"] == {"text": "looks <well>", "in_range": True}
    plain = prediction()
    del plain.uns["st_gchb"]
    del plain.obs["st_gchb_confidence"], plain.obs["st_gchb_outlier"], plain.var["st_gchb_expected_pcc"]
    report(plain, tmp_path / "plain")
    record = record_of(tmp_path / "plain")
    assert (record["provenance"], record["verdict"], record["genes"]["expected"]) == ([], None, [None] * len(GENES))
    assert not {"confidence", "outlier"} & set(record["spots"])


def test_values_of_x_and_values_that_are_missing(tmp_path):
    pred = prediction()
    pred.X[:, 0] = np.where(np.arange(pred.n_obs) % 2, np.nan, 2.5)
    report(pred, tmp_path / "page", "ERBB2", layer=None)
    np.testing.assert_array_equal(values_of(tmp_path / "page", 0), pred.X[:, 0])
    assert record_of(tmp_path / "page")["unit"] == "X"
    assert not record_of(tmp_path / "page")["predicted"]


def test_the_same_page_twice_is_the_same_bytes_and_holds_the_licence(tmp_path):
    report(prediction(), tmp_path / "one")
    report(prediction(), tmp_path / "two")
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    assert b"Redistribution and use" in files["page/openseadragon.LICENSE.txt"]
    assert files["page/openseadragon.min.js"].startswith(b"//! openseadragon 6.1.1")
    # Others than the one who wrote it may read it.
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "one").rglob("*"))
    assert all(path.stat().st_mode & 0o011 for path in (tmp_path / "one").rglob("*") if path.is_dir())


def test_one_of_several_slices(tmp_path):
    both = two_slices()
    with pytest.raises(SliceError, match=r"2 slices.*S1.*S2"):
        report(both, tmp_path / "page")
    report(both, tmp_path / "page", "ERBB2", slice="S2")
    np.testing.assert_array_equal(values_of(tmp_path / "page", 0), both.layers["st_gchb"][36:, 0])
    assert record_of(tmp_path / "page")["spots"]["names"] == list(both.obs_names[36:])


def test_a_table_of_a_spatialdata(tmp_path):
    from spatialdata.models import Image2DModel

    pred = prediction()
    pred.uns["spatial"]["S1"]["metadata"] = {}
    sdata = st_gchb.pp.to_spatialdata(pred)
    assert "st_gchb" in sdata.tables
    report(sdata, tmp_path / "page", "COL1A1")
    np.testing.assert_array_equal(values_of(tmp_path / "page", 0), pred.layers["st_gchb"][:, 1])
    spots = record_of(tmp_path / "page")["spots"]
    np.testing.assert_allclose(np.column_stack([numbers_in(spots[axis]) for axis in "xy"]), pred.obsm["spatial"])
    sdata.images["another"] = Image2DModel.parse(np.zeros((3, 600, 800), np.uint8), dims=("c", "y", "x"))
    report(sdata, tmp_path / "named", "COL1A1", image="another")
    assert put_together(tmp_path / "named", 10, 600, 800).max() < 5


# ---- Tiles ----


@QUICK
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([7, 100, 254, 512]))
def test_tiles_of_any_slide_are_what_deep_zoom_asks_for(tmp_path_factory, height, width, strip):
    folder = tmp_path_factory.mktemp("pages") / "page"
    pred = prediction()[:1].copy()
    pred.obsm["spatial"] = np.array([[width / 2, height / 2]])
    slide = slide_pixels(height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("st_gchb.pl.page._tiles._STRIP_PX", strip)
        patch.setattr("st_gchb.io.images._chunks._FREE_PX", 64)
        report(pred, folder, "ERBB2", image=slide)
    top = math.ceil(math.log2(max(height, width)))
    assert {file.name for file in (folder / "slide_files").iterdir()} == {str(level) for level in range(top + 1)}
    for level in range(top + 1):
        size = [math.ceil(side / 2 ** (top - level)) for side in (height, width)]
        pixels = put_together(folder, level, *size)
        if level == top:
            assert np.abs(pixels.astype(int) - slide).max() <= 8
        assert np.abs(pixels.mean(axis=(0, 1)) - slide.mean(axis=(0, 1))).max() <= 8 + 2 ** (top - level) / 4
    assert f'<Size Width="{width}" Height="{height}"/>' in (folder / "slide.dzi").read_text()


def test_halved_scales_show_the_same_slide(tmp_path):
    report(prediction(), tmp_path / "page", "ERBB2")
    for level, step in ((10, 1), (9, 2), (8, 4), (7, 8)):
        pixels = put_together(tmp_path / "page", level, math.ceil(600 / step), math.ceil(800 / step))
        expected = slide_pixels()[step // 2 :: step, step // 2 :: step]
        assert np.abs(pixels[: len(expected), : expected.shape[1]].astype(int) - expected).mean() < 3


@pytest.mark.parametrize(("finest", "halvings"), [(0.5, 1), (0.25, 0), (0.2, 0), (0.99, 1), (1.0, 2)])
def test_a_fine_slide_is_halved_and_spots_follow(tmp_path, finest, halvings):
    pred = prediction(um_per_px=0.25)
    report(pred, tmp_path / "page", "ERBB2", finest_um_per_px=finest)
    record = record_of(tmp_path / "page")
    step = 2**halvings
    assert record["slide"]["um_per_px"] == 0.25 * step
    assert (record["slide"]["width"], record["slide"]["height"]) == (800 // step, 600 // step)
    np.testing.assert_allclose(numbers_in(record["spots"]["x"]), pred.obsm["spatial"][:, 0] / step)
    assert record["spots"]["diameter"] == 50 / step


class Level:
    """A level whose windows are counted, and cannot be decoded below a row."""

    chunks = (100, 100)

    def __init__(self, pixels: np.ndarray, damaged_from: int | None = None) -> None:
        self.pixels, self.shape, self.damaged_from, self.n_read = pixels, pixels.shape, damaged_from, 0

    def __getitem__(self, window: Any) -> np.ndarray:
        self.n_read += 1
        if self.damaged_from is not None and window[0].stop > self.damaged_from:
            raise DamageError("broken")
        return self.pixels[window]


def test_a_level_of_the_file_that_has_the_scale_is_read(tmp_path):
    fine, coarse = Level(slide_pixels()), Level(slide_pixels(300, 400))
    slide = SlideImage([fine, coarse], [1.0, 2.0], um_per_px=0.25)
    report(prediction(um_per_px=0.25), tmp_path / "page", "ERBB2", image=slide)
    assert fine.n_read == 0
    assert coarse.n_read > 0
    assert np.abs(put_together(tmp_path / "page", 9, 300, 400).astype(int) - coarse.pixels).max() <= 8
    # A level of another scale, such as a third, is of no use.
    fine, coarse = Level(slide_pixels()), Level(slide_pixels(200, 267))
    report(prediction(um_per_px=0.25), tmp_path / "third", "ERBB2", image=SlideImage([fine, coarse], [1.0, 3.0], 0.25))
    assert coarse.n_read == 0
    # One that is finer than wanted saves reading the finest.
    fine, coarse = Level(slide_pixels()), Level(slide_pixels(300, 400))
    slide = SlideImage([fine, coarse], [1.0, 2.0], um_per_px=0.25)
    report(prediction(um_per_px=0.25), tmp_path / "four", "ERBB2", image=slide, finest_um_per_px=1.0)
    assert (fine.n_read, record_of(tmp_path / "four")["slide"]["width"]) == (0, 200)


def test_places_that_cannot_be_decoded_are_white_and_told(tmp_path, caplog):
    slide = SlideImage([Level(slide_pixels(), damaged_from=400)], [1.0])
    report(prediction(), tmp_path / "page", "ERBB2", image=slide)
    pixels = put_together(tmp_path / "page", 10, 600, 800)
    assert pixels[410:].min() >= 245
    assert np.abs(pixels[:390].astype(int) - slide_pixels()[:390]).max() <= 8
    assert "33.3 % of the slide cannot be decoded" in caplog.text


def test_memory_grows_with_the_width_alone(tmp_path):
    class Tall:
        shape = (12_000, 1_000, 3)

        def __getitem__(self, window: Any) -> np.ndarray:
            sides = [len(range(*part.indices(side))) for part, side in zip(window, self.shape[:2], strict=True)]
            return np.full((*sides, 3), 200, np.uint8)

    pred = prediction()
    tracemalloc.start()
    report(pred, tmp_path / "page", "ERBB2", image=SlideImage([Tall()], [1.0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The slide is 36 MB.
    assert peak < 25e6


# ---- What is refused ----


def without_image() -> AnnData:
    pred = prediction()
    pred.uns["spatial"]["S1"]["images"] = {}
    return pred


def with_a_lost_file() -> AnnData:
    pred = prediction()
    pred.uns["spatial"]["S1"]["metadata"]["source_image_path"] = "/nowhere/slide.svs"
    return pred


def without_places() -> AnnData:
    pred = prediction()
    del pred.obsm["spatial"]
    return pred


def beyond_the_slide() -> AnnData:
    pred = prediction()
    pred.obsm["spatial"] = pred.obsm["spatial"] * 4
    return pred


def twice() -> AnnData:
    pred = prediction()
    pred.var_names = [*GENES[:-1], "ERBB2"]
    return pred


def many_genes(n: int = 20_000) -> AnnData:
    pred = prediction(n_side=2)
    wide = AnnData(np.zeros((4, n), np.float32), obs=pred.obs, obsm=dict(pred.obsm), uns=dict(pred.uns))
    wide.layers["st_gchb"] = wide.X
    return wide


def many_expected() -> AnnData:
    pred = many_genes(5500)
    pred.var["st_gchb_expected_pcc"] = 0.5
    return pred


BAD = {
    "no image": (without_image, {}, ImageError, r"Pass image= with the path of the full-resolution image"),
    "a lost file": (with_a_lost_file, {}, MissingFileError, r"slide\.svs.*image= with its path now, or image_key="),
    "no places": (without_places, {}, CoordinateError, r"obsm\['spatial'\]"),
    "another slide": (beyond_the_slide, {}, CoordinateError, "outside the image"),
    "20,000 genes": (many_genes, {}, InputError, r"20,000 genes; .* at most 5,000.*n_genes=2000.*genes="),
    "too many chosen": (many_expected, {"n_genes": 5001}, InputError, "at most 5,000"),
    "none to choose by": (many_genes, {"n_genes": 5}, MissingKeyError, "st_gchb_expected_pcc.*genes="),
    "named and counted": (prediction, {"n_genes": 2, "genes": "ERBB2"}, InputError, "Leave one of them out"),
    "no gene": (prediction, {"genes": []}, InputError, "no gene to show"),
    "an unknown gene": (prediction, {"genes": ["ERBB3"]}, MissingKeyError, r"nearest names are \['ERBB2'"),
    "a gene named twice": (prediction, {"genes": ["CD74", "CD74"]}, InputError, "more than once"),
    "one name of two genes": (twice, {}, InputError, "several genes"),
    "an unknown layer": (prediction, {"layer": "counts"}, MissingKeyError, "no layer 'counts'"),
    "an unknown slice": (prediction, {"slice": "S9"}, SliceError, "no slice 'S9'"),
    "an unknown image": (prediction, {"image_key": "lowres"}, MissingKeyError, "no 'lowres'"),
    "no object": (lambda: None, {}, InputError, "expected"),
    "a table of an AnnData": (prediction, {"table": "st_gchb"}, InputError, "for SpatialData"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_shown_is_told_and_nothing_is_left(what, tmp_path):
    make, options, error, message = BAD[what]
    with pytest.raises(error, match=message):
        report(make(), tmp_path / "page", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_if_asked_and_only_if_it_holds_a_page(tmp_path):
    (tmp_path / "page").mkdir()
    report(prediction(), tmp_path / "page", "ERBB2")
    with pytest.raises(InputError, match="overwrite=True"):
        report(prediction(), tmp_path / "page", "CD74")
    assert record_of(tmp_path / "page")["genes"]["names"] == ["ERBB2"]
    report(prediction(), tmp_path / "page", "CD74", overwrite=True)
    assert record_of(tmp_path / "page")["genes"]["names"] == ["CD74"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name, said in (("thesis", "other files than a page"), ("file", "Name a folder")):
        with pytest.raises(InputError, match=said):
            report(prediction(), tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page", "thesis"]
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_full_disk_leaves_the_earlier_page(tmp_path, monkeypatch):
    report(prediction(), tmp_path / "page", "ERBB2")
    earlier = files_of(tmp_path / "page")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(StoreError, match="No space left"):
            report(prediction(), tmp_path / "page", "CD74", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    assert files_of(tmp_path / "page") == earlier


def test_spots_of_unknown_size_and_pixels_of_unknown_size(tmp_path, caplog):
    pred = prediction(um_per_px=None)
    del pred.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"]
    caplog.set_level("INFO", logger="st_gchb")
    report(pred, tmp_path / "page", "ERBB2")
    record = record_of(tmp_path / "page")
    assert (record["spots"]["diameter"], record["slide"]["um_per_px"]) == (40.0, None)
    assert "half of their distance" in caplog.text
    report(pred, tmp_path / "told", "ERBB2", diameter_px=30, um_per_px=0.7)
    record = record_of(tmp_path / "told")
    assert (record["spots"]["diameter"], record["slide"]["um_per_px"]) == (30.0, 0.7)
