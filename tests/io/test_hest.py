"""Samples of HEST-1k in the folders of the release; every part missing, damaged, or of another sample."""

from __future__ import annotations

import json
import logging
import shutil

import anndata as ad
import h5py
import numpy as np
import pytest

import st_gchb
from hest_folders import image_of, table_of, um_per_px_of, write_sample, write_slide
from st_gchb._errors import CoordinateError, InputError, MissingFileError, MissingKeyError, ScaleError
from st_gchb.io import read_section


@pytest.fixture(scope="module")
def tissue():
    return st_gchb.datasets.synthetic_tissue(2, n_rows=6, n_cols=6, n_genes=20, seed=1)


@pytest.fixture(scope="module")
def made(tissue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    write_sample(folder, tissue, "S1", "TENX9")
    write_sample(folder, tissue, "S2", "TENX95", patient=None, organ="Brain")
    return folder


@pytest.fixture
def hest(made, tmp_path):
    """A copy of the release that a test may damage."""
    return shutil.copytree(made, tmp_path / "hest")


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_sample_by_its_id(made, tissue, caplog):
    read = read_section(made, name="TENX9")
    assert not caplog.records
    expected = table_of(tissue, "S1")
    assert read.obs_names.tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(read.obsm["spatial"], expected.obsm["spatial"])
    np.testing.assert_array_equal(read.X.toarray(), expected.X.toarray())
    (only,) = st_gchb.pp.slices_of(read)
    um = um_per_px_of(tissue, "S1")
    assert (only.name, only.um_per_px) == ("TENX9", um)
    assert only.image.name == str(made / "wsis/TENX9.tif")
    assert only.image.shape_px == image_of(tissue, "S1").shape[:2]
    values = {column: read.obs[column].unique().tolist() for column in ("slice", "organism", "tissue", "patient")}
    assert values == {
        "slice": ["TENX9"],
        "organism": ["Homo sapiens"],
        "tissue": ["Breast"],
        "patient": ["Patient 1"],
    }
    assert read.obs["has_patch"].tolist() == [True] * (read.n_obs - 2) + [False] * 2


def test_what_is_not_known_is_not_made_up(made, tmp_path):
    read = read_section(made, name="TENX95")
    assert "patient" not in read.obs
    metadata = read.uns["spatial"]["TENX95"]["metadata"]
    assert metadata["disease_state"] == "Cancer"
    assert not {"patient", "subseries", "spot_diameter", "treatment_comment"} & set(metadata)
    read.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert again.uns["spatial"]["TENX95"]["metadata"]["organ"] == "Brain"


@pytest.mark.parametrize("place", ["", "st", "st/TENX95.h5ad"])
def test_every_way_to_name_a_sample(made, monkeypatch, place):
    name = None if place.endswith("h5ad") else "TENX95"
    read = read_section(made / place, name=name)
    monkeypatch.chdir(made / "st")
    for other in (read_section("TENX95.h5ad"), read_section("..", name="TENX95"), read_section(".", name="TENX95")):
        assert set(other.obs["slice"]) == {"TENX95"} == set(read.obs["slice"])
        assert other.obs["has_patch"].tolist() == read.obs["has_patch"].tolist()


def test_samples_that_are_joined_stay_apart(made):
    parts = [read_section(made, name=name) for name in ("TENX9", "TENX95")]
    joined = ad.concat(parts, join="outer", uns_merge="unique", index_unique="_")
    assert set(joined.obs["slice"]) == {"TENX9", "TENX95"} == set(joined.uns["spatial"])
    assert joined.uns["spatial"]["TENX9"]["metadata"]["organ"] == "Breast"
    assert joined.obs["patient"].isna().sum() == parts[1].n_obs


def test_it_goes_into_a_model(made):
    reference = ad.concat(
        [read_section(made, name=name) for name in ("TENX9", "TENX95")], uns_merge="unique", index_unique="_"
    )
    st_gchb.pp.embed_patches(reference, encoder="texture", patch_um=112, n_views=1, cache=False)
    assert np.isfinite(reference.obsm["X_patch"]).all()
    st_gchb.model.STGCHB.setup_anndata(reference)


# Which sample.


def test_a_sample_that_is_not_named(made):
    with pytest.raises(InputError, match=r"found 2 HEST samples, \['TENX9', 'TENX95'\]\. Pass name="):
        read_section(made)


def test_an_id_is_no_prefix(hest):
    for part in ("st/TENX9.h5ad", "wsis/TENX9.tif", "metadata/TENX9.json"):
        (hest / part).unlink()
    with pytest.raises(MissingFileError, match=r"no HEST sample 'TENX9'; found \['TENX95'\].*\*TENX9\[_\.\]\*\*"):
        read_section(hest, name="TENX9")
    assert set(read_section(hest).obs["slice"]) == {"TENX95"}


def test_a_release_without_expression(hest):
    shutil.rmtree(hest / "st")
    with pytest.raises(MissingFileError, match=r"st: the folder of HEST-1k holds no expression"):
        read_section(hest)


# Missing parts.


def test_without_the_image(hest, tissue, caplog):
    (hest / "wsis/TENX9.tif").unlink()
    with pytest.raises(MissingFileError, match=r"wsis/TENX9\.tif: the whole-slide image .* is missing\. Fetch all"):
        read_section(hest, name="TENX9")
    read = read_section(hest, name="TENX9", allow_missing=True)
    assert "patches come from the down-scaled one" in caplog.text
    assert st_gchb.pp.slices_of(read)[0].scale < 1
    um = um_per_px_of(tissue, "S1")
    write_slide(hest / "elsewhere.tif", image_of(tissue, "S1"), um)
    read = read_section(hest, name="TENX9", image=hest / "elsewhere.tif")
    assert read.uns["spatial"]["TENX9"]["metadata"]["source_image_path"] == str(hest / "elsewhere.tif")
    write_slide(hest / "elsewhere.tif", image_of(tissue, "S1")[:, :-60], um)
    with pytest.raises(InputError, match="Are both of sample 'TENX9'"):
        read_section(hest, name="TENX9", image=hest / "elsewhere.tif")


def test_several_images(hest):
    shutil.copy(hest / "wsis/TENX9.tif", hest / "wsis/TENX9.tiff")
    with pytest.raises(InputError, match=r"found 2 images of sample 'TENX9'"):
        read_section(hest, name="TENX9")


def test_without_the_metadata(hest, tissue, caplog):
    (hest / "metadata/TENX9.json").unlink()
    with pytest.raises(MissingFileError, match=r"metadata/TENX9\.json: the metadata .* are missing.*um_per_px="):
        read_section(hest, name="TENX9")
    read = read_section(hest, name="TENX9", um_per_px=um_per_px_of(tissue, "S1"))
    assert "organism, tissue and patient are not known" in caplog.text
    assert "organism" not in read.obs


def test_without_the_patches(hest):
    shutil.rmtree(hest / "patches")
    assert "has_patch" not in read_section(hest, name="TENX9").obs


@pytest.mark.parametrize("value", [None, 0, -1, "wide", float("nan")])
def test_without_the_size_of_a_pixel(hest, value):
    edit(hest / "metadata/TENX9.json", pixel_size_um_estimated=value)
    with pytest.raises(MissingKeyError, match=r"TENX9\.json: pixel_size_um_estimated is .*expected the size"):
        read_section(hest, name="TENX9")


def test_without_positions(hest):
    table = ad.read_h5ad(hest / "st/TENX9.h5ad")
    del table.obsm["spatial"]
    table.write_h5ad(hest / "st/TENX9.h5ad")
    with pytest.raises(MissingKeyError, match=r"TENX9\.h5ad: has no positions"):
        read_section(hest, name="TENX9")


# Parts that contradict each other.


def test_metadata_of_another_sample(hest):
    shutil.copy(hest / "metadata/TENX95.json", hest / "metadata/TENX9.json")
    with pytest.raises(InputError, match=r"TENX9\.json: the metadata are of sample 'TENX95'; expected 'TENX9'"):
        read_section(hest, name="TENX9")


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_damaged_metadata(hest, content):
    (hest / "metadata/TENX9.json").write_text(content)
    with pytest.raises(InputError, match=r"TENX9\.json: the sample's metadata"):
        read_section(hest, name="TENX9")


def test_the_image_says_another_size_of_a_pixel(hest, tissue, caplog):
    um = um_per_px_of(tissue, "S1")
    write_slide(hest / "wsis/TENX9.tif", image_of(tissue, "S1"), 2 * um)
    with pytest.raises(ScaleError, match=r"TENX9.*two sizes of a pixel.*TENX9\.json.*the resolution of .*TENX9\.tif"):
        read_section(hest, name="TENX9")
    read = read_section(hest, name="TENX9", um_per_px=um)
    assert read.uns["spatial"]["TENX9"]["scalefactors"]["microns_per_pixel"] == um
    assert "two sizes of a pixel" in caplog.text


def test_the_patches_say_another_size_of_a_pixel(hest, tissue):
    with h5py.File(hest / "patches/TENX9.h5", "a") as file:
        file["img"].attrs["pixel_size"] = 1.2 * um_per_px_of(tissue, "S1")
    with pytest.raises(ScaleError, match=r"pixel_size of .*patches/TENX9\.h5"):
        read_section(hest, name="TENX9")


def test_the_metadata_say_another_size_of_the_image(hest):
    edit(hest / "metadata/TENX9.json", fullres_px_width=20000)
    with pytest.raises(InputError, match=r"TENX9\.tif: the image is \d+ px wide; expected 20000, fullres_px_width"):
        read_section(hest, name="TENX9")


def test_an_image_that_is_not_that_of_the_down_scaled_one(hest, tissue):
    cut = image_of(tissue, "S1")[:-60]
    edit(hest / "metadata/TENX9.json", fullres_px_height=len(cut))
    write_slide(hest / "wsis/TENX9.tif", cut, um_per_px_of(tissue, "S1"))
    with pytest.raises(InputError, match=r"as the down-scaled image in .*st/TENX9\.h5ad says"):
        read_section(hest, name="TENX9")


def moved(path, some, by):
    table = ad.read_h5ad(path)
    table.obsm["spatial"][some] += by
    table.write_h5ad(path)


def test_spots_beyond_the_image(hest, caplog):
    (hest / "patches/TENX9.h5").unlink()
    path = hest / "st/TENX9.h5ad"
    moved(path, slice(0, 1), 1e5)
    read = read_section(path)
    assert "1 of" in caplog.text
    assert "are not on the image" in caplog.text
    assert "0000000000000000-1" not in read.obs_names
    moved(path, slice(1, 12), -1e5)
    with pytest.raises(CoordinateError, match="That is more than a tenth"):
        read_section(path)
    assert read_section(path, allow_missing=True).n_obs == read.n_obs - 11
    moved(path, slice(None), 1e6)
    with pytest.raises(CoordinateError, match="are not on the image.*Fetch all files"):
        read_section(path, allow_missing=True)


def test_patches_of_another_sample(hest):
    with h5py.File(hest / "patches/TENX9.h5", "a") as file:
        n = len(file["barcode"])
        del file["barcode"]
        file["barcode"] = np.array([f"other{i}" for i in range(n)], dtype="S")
    with pytest.raises(InputError, match=r"patches/TENX9\.h5: no barcode of the .* is a spot of .*st/TENX9\.h5ad"):
        read_section(hest, name="TENX9")


def test_patches_from_elsewhere(hest):
    with h5py.File(hest / "patches/TENX9.h5", "a") as file:
        file["coords"][...] += 40
    with pytest.raises(CoordinateError, match=r"lie .* px \(median\) from the spots"):
        read_section(hest, name="TENX9")


def test_damaged_patches(hest):
    path = hest / "patches/TENX9.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"patches/TENX9\.h5: the patches cannot be read"):
        read_section(hest, name="TENX9")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("img", None, "expected 'img'"),
        ("barcode", None, "and 'barcode'"),
        ("img", np.zeros((3, 224, 224), np.uint8), "expected square RGB"),
        ("img", np.zeros((3, 224, 200, 3), np.uint8), "expected square RGB"),
        ("img", np.zeros((3, 224, 224, 3), np.float32), "expected square RGB"),
        ("barcode", np.array(["a", "b"], dtype="S"), "expected one barcode"),
        ("coords", np.zeros((2, 2)), "expected one barcode"),
        ("coords", np.zeros(0), "expected one barcode"),
    ],
)
def test_patches_without_a_part(hest, part, value, message):
    with h5py.File(hest / "patches/TENX9.h5", "a") as file:
        del file[part]
        if value is not None:
            file[part] = value
    with pytest.raises((InputError, MissingKeyError), match=message):
        read_section(hest, name="TENX9")


def test_two_patches_of_one_spot(hest):
    with h5py.File(hest / "patches/TENX9.h5", "a") as file:
        file["barcode"][1] = file["barcode"][0]
    with pytest.raises(InputError, match=r"1 barcodes name several patches, first '0000000000000000-1'"):
        read_section(hest, name="TENX9")


def test_spots_that_are_named_twice(hest):
    path = hest / "st/TENX9.h5ad"
    table = ad.read_h5ad(path)
    table.obs_names = ["a"] * table.n_obs
    table.write_h5ad(path)
    with pytest.raises(InputError, match="spots are named more than once"):
        read_section(path)


def test_the_library_s_own_metadata(hest, caplog):
    """As save() of the library writes them: other names of the sides, no id."""
    path = hest / "metadata/TENX9.json"
    content = json.loads(path.read_text())
    kept = {"pixel_size_um_estimated": content["pixel_size_um_estimated"], "fullres_height": 99999}
    path.write_text(json.dumps(kept))
    with pytest.raises(InputError, match="expected 99999, fullres_height"):
        read_section(hest, name="TENX9")
    path.write_text(json.dumps(kept | {"fullres_height": content["fullres_px_height"]}))
    with caplog.at_level(logging.WARNING):
        assert "organism" not in read_section(hest, name="TENX9").obs
    assert not caplog.records
