"""The breast tumors, from small files in their layout and from the real sections."""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import sparse

from st_gchb._errors import CoordinateError, DownloadError, ExpressionError, ImageError, InputError, MissingFileError
from st_gchb.datasets import _her2st, her2st
from st_gchb.io.images import read_thumbnail
from st_gchb.io.sections import read_wide_counts

from .conftest import write_counts


def test_rows_are_joined_by_array_position(her2st_folder):
    adata = her2st(["C2", "C3"], path=her2st_folder)
    assert list(adata.obs_names[:4]) == ["C2_10x20", "C2_11x20", "C2_10x21", "C2_12x22"]
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    # A matrix in another order is sorted by all that read it, each in a copy.
    assert adata.X.has_sorted_indices
    indices = np.split(adata.X.indices, adata.X.indptr[1:-1])
    assert all((np.diff(row) > 0).all() for row in indices)
    frame = adata.to_df()
    assert frame.loc["C2_10x20", ["ERBB2", "ACTB", "GAPDH"]].tolist() == [3, 4, 5]
    assert frame.loc["C3_12x22", ["ACTB", "FASN", "ERBB2"]].tolist() == [109, 110, 111]
    assert frame.loc["C3_12x22", "GAPDH"] == 0
    assert adata.obs.loc["C2_10x21", ["array_col", "array_row"]].tolist() == [10, 21]
    assert adata.obs["slice"].cat.categories.tolist() == ["C2", "C3"]
    assert set(adata.obs["patient"]) == {"C"}
    np.testing.assert_allclose(adata["C2_11x20"].obsm["spatial"], [[11 * 30.5, 20 * 15.25]])


def test_image_and_scale(her2st_folder):
    library = her2st("C2", path=her2st_folder, hires_side_px=160).uns["spatial"]["C2"]
    assert library["images"]["hires"].shape == (160, 120, 3)
    assert library["images"]["hires"].dtype == np.uint8
    assert library["scalefactors"]["tissue_hires_scalef"] == pytest.approx(0.25)
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / 287)
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(143.5)
    assert library["metadata"]["source_image_path"] == str((her2st_folder / "C2.jpg").resolve())


def test_spots_without_counts_are_dropped_with_a_message(her2st_folder, caplog):
    with caplog.at_level(logging.INFO, logger="st_gchb"):
        adata = her2st(["C3"], path=her2st_folder)
    assert list(adata.obs_names) == ["C3_10x20", "C3_11x20", "C3_12x22"]
    assert (
        "1 of 4 spots under tissue in C3_selection.tsv have no counts in C3.tsv.gz (25.0%, such as '10x21')"
        in caplog.text
    )


def test_written_and_read_again(her2st_folder, tmp_path):
    import anndata as ad

    adata = her2st(["C2", "C3"], path=her2st_folder)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.X.toarray(), adata.X.toarray())
    assert set(again.uns["spatial"]) == {"C2", "C3"}


def test_folder_of_the_repository(her2st_folder, tmp_path):
    root = tmp_path / "clone" / "data"
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs/C/C2"):
        (root / folder).mkdir(parents=True)
    shutil.copy(her2st_folder / "C2.tsv.gz", root / "ST-cnts")
    shutil.copy(her2st_folder / "C2_selection.tsv", root / "ST-spotfiles")
    shutil.copy(her2st_folder / "C2.jpg", root / "ST-imgs/C/C2/5714_HE_BT_C2.jpg")
    assert her2st(["C2"], path=root).n_obs == her2st(["C2"], path=root.parent).n_obs == 4


def test_downloaded(her2st_folder, server, tmp_path, monkeypatch):
    places = {
        "C2.tsv.gz": "ST-cnts/C2.tsv.gz",
        "C2_selection.tsv": "ST-spotfiles/C2_selection.tsv",
        "C2.jpg": "ST-imgs/C/C2/5714_HE_BT_C2.jpg",
    }
    sums = {}
    for name, place in places.items():
        server.files[place] = (her2st_folder / name).read_bytes()
        sums[name] = hashlib.sha256(server.files[place]).hexdigest()
    monkeypatch.setattr(_her2st, "_ROOT", server.address)
    monkeypatch.setattr(_her2st, "_SHA256", sums)
    adata = her2st(["C2"], cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(adata.X.toarray(), her2st(["C2"], path=her2st_folder).X.toarray())
    monkeypatch.setattr(_her2st, "_SHA256", {**sums, "C2.jpg": "0" * 64})
    with pytest.raises(DownloadError, match=r"C2\.jpg .*not the file"):
        her2st(["C2"], cache_dir=tmp_path / "other")


def test_published_addresses():
    addresses = [file.url for file in _her2st.section_files("C3")]
    root = "https://raw.githubusercontent.com/almaan/her2st/master/data"
    assert addresses == [
        f"{root}/ST-cnts/C3.tsv.gz",
        f"{root}/ST-spotfiles/C3_selection.tsv",
        f"{root}/ST-imgs/C/C3/5714_HE_BT_D1.jpg",
    ]


@pytest.mark.parametrize("name", ["Z9", "c2", "C22", ""])
def test_unknown_section(her2st_folder, name):
    with pytest.raises(InputError, match=r"unknown section.*B4, C2.*has C2, C3"):
        her2st([name], path=her2st_folder)


def test_section_without_a_known_address():
    with pytest.raises(InputError, match="A1.*path= or ST_GCHB_DATA"):
        her2st(["A1"])


def test_section_that_the_folder_lacks(her2st_folder):
    with pytest.raises(MissingFileError, match=r"A1\.jpg  from  no known address"):
        her2st(["A1"], path=her2st_folder)


def test_sections_none_or_twice(her2st_folder):
    with pytest.raises(InputError, match="found none"):
        her2st([], path=her2st_folder)
    with pytest.raises(InputError, match="twice"):
        her2st(["C2", "C2"], path=her2st_folder)
    with pytest.raises(InputError, match="hires_side_px"):
        her2st(["C2"], path=her2st_folder, hires_side_px=0)


def test_truncated_image(her2st_folder):
    image = her2st_folder / "C2.jpg"
    image.write_bytes(image.read_bytes()[:9000])
    with pytest.raises(ImageError, match=r"C2\.jpg.*damaged"):
        her2st(["C2"], path=her2st_folder)


def test_truncated_counts(her2st_folder):
    counts = her2st_folder / "C2.tsv.gz"
    counts.write_bytes(counts.read_bytes()[:-20])
    with pytest.raises(ExpressionError, match=r"C2\.tsv\.gz.*damaged"):
        her2st(["C2"], path=her2st_folder)


@pytest.mark.parametrize("value", [-1, 0.5, "nan", "inf", "many"])
def test_values_that_are_no_counts(her2st_folder, value):
    table = np.array([[1, 2], [3, value]], dtype=object)
    write_counts(her2st_folder / "C2.tsv.gz", ["10x20", "11x20"], ["A", "B"], table)
    with pytest.raises(ExpressionError, match=r"C2\.tsv\.gz"):
        her2st(["C2"], path=her2st_folder)


def test_tables_that_do_not_fit(her2st_folder):
    write_counts(her2st_folder / "C2.tsv.gz", ["1x1", "2x2"], ["A", "B"], np.ones((2, 2), int))
    with pytest.raises(InputError, match="no spot is in both"):
        her2st(["C2"], path=her2st_folder)
    spots = pd.read_csv(her2st_folder / "C3_selection.tsv", sep="\t")
    spots.loc[1, "pixel_x"] = np.nan
    spots.to_csv(her2st_folder / "C3_selection.tsv", sep="\t", index=False)
    with pytest.raises(CoordinateError, match="the 2 spots do not spread"):
        her2st(["C3"], path=her2st_folder)
    spots.drop(columns="pixel_y").to_csv(her2st_folder / "C3_selection.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="pixel_y"):
        her2st(["C3"], path=her2st_folder)


def test_spots_that_are_not_selected_are_left_out(her2st_folder):
    spots = pd.read_csv(her2st_folder / "C2_selection.tsv", sep="\t")
    spots.loc[0, "selected"] = 0
    spots.to_csv(her2st_folder / "C2_selection.tsv", sep="\t", index=False)
    assert "C2_10x20" not in her2st(["C2"], path=her2st_folder).obs_names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    counts=arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(0, 10**6)),
    names=st.lists(st.sampled_from(["A", "B", "C.1", "A.1"]), min_size=5, max_size=5),
)
def test_counts_as_they_were_written(tmp_path, counts, names):
    path, names = tmp_path / "t.tsv.gz", names[: counts.shape[1]]
    rows = [f"{i}x{i}" for i in range(len(counts))]
    write_counts(path, rows, names, counts)
    expected = pd.DataFrame(counts.T, index=names).groupby(level=0).sum().T
    found = read_wide_counts(path)
    assert found.var_names.is_unique
    assert list(found.obs_names) == rows
    np.testing.assert_array_equal(found.to_df()[expected.columns].to_numpy(), expected.to_numpy())


def test_ragged_table(tmp_path):
    path = tmp_path / "t.tsv.gz"
    with gzip.open(path, "wt") as file:
        file.write("\tA\tB\n1x1\t1\t2\n2x2\t1\n")
    with pytest.raises(ExpressionError):
        read_wide_counts(path)


def test_thumbnail_keeps_places(tmp_path):
    # A JPEG of this side is decoded at a quarter of it, rounded up: the last pixel stands for less.
    pixels = np.full((1003, 1003, 3), 255, np.uint8)
    pixels[900:960, 930:990] = 0
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    small, scale = read_thumbnail(tmp_path / "a.jpg", 210)
    dark = 255.0 - small[..., 0]
    center = [np.average(part + 0.5, weights=dark) / scale for part in np.indices(dark.shape)]
    np.testing.assert_allclose(center, [930, 960], atol=0.5)
    assert read_thumbnail(tmp_path / "a.jpg", 5000)[1] == 1.0


@pytest.mark.tissue
def test_real_sections(her2st_path):
    adata = her2st(path=her2st_path)
    sizes = adata.obs["slice"].value_counts()
    assert sizes.to_dict() == {"C2": 187, "C3": 180, "C4": 184, "C5": 181}
    assert adata.var_names.is_unique
    totals = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), adata.obs_names).groupby(adata.obs["slice"]).mean()
    np.testing.assert_allclose(totals[["C2", "C3", "C4", "C5"]], [10303, 11297, 12032, 11128], atol=0.51)
    # Spots lie on tissue: darker than the slide.
    for name, library in adata.uns["spatial"].items():
        image, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
        x, y = (adata.obsm["spatial"][adata.obs["slice"] == name] * scale).astype(int).T
        assert image[y, x].mean() < image.mean() - 20


@pytest.mark.tissue
def test_checksums_are_those_of_the_published_files(her2st_path):
    for name, expected in _her2st._SHA256.items():
        assert hashlib.sha256((her2st_path / name).read_bytes()).hexdigest() == expected
