"""Cohorts: samples of every format in one AnnData of their common genes, and errors that name the row."""

from __future__ import annotations

import logging
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

import st_gchb
from hest_folders import image_of, write_sample, write_slide
from st_gchb._errors import (
    CoordinateError,
    ExpressionError,
    ImageError,
    InputError,
    MissingFileError,
    ScaleError,
    SliceError,
)
from st_gchb.evaluate import leave_one_out
from st_gchb.io import read_cohort, read_section
from st_gchb.io.sections import open_section
from st_gchb.model import STGCHB

from .conftest import GENES, he_image, write_legacy, write_visium, write_visium_hd

PATCHES = {"encoder": "texture", "patch_um": 150, "n_views": 1, "cache": False}


@pytest.fixture(scope="module")
def tissue():
    """Slices that have the genes of the other formats, and more."""
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=20, seed=2)[:, :12].copy()
    adata.var_names = [f"GENE{11 - i}" for i in range(12)]
    return adata


def slice_of(tissue, name):
    part = tissue[tissue.obs["slice"] == name].copy()
    part.uns["spatial"] = {name: part.uns["spatial"][name]}
    return part


def write_store(path, part, name, factor=2.0):
    """A store whose spots are in µm-like units, half as many as px."""
    pixels = np.moveaxis(part.uns["spatial"][name]["images"]["hires"], -1, 0)
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"))
    spots = np.asarray(part.obsm["spatial"]) / factor
    shapes = ShapesModel.parse(
        spots,
        geometry=0,
        radius=20.0,
        index=np.arange(part.n_obs),
        transformations={"global": Scale([factor] * 2, ("x", "y"))},
    )
    table = ad.AnnData(part.X.copy(), obs=pd.DataFrame(index=part.obs_names), var=pd.DataFrame(index=part.var_names))
    table.obs["region"], table.obs["id"] = pd.Categorical(["spots"] * part.n_obs), np.arange(part.n_obs)
    um = part.uns["spatial"][name]["scalefactors"]["microns_per_pixel"]
    table.uns["spatial"] = {"spots": {"images": {}, "scalefactors": {"microns_per_pixel": um * factor}}}
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="id")
    SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table}).write(path)


@pytest.fixture(scope="module")
def made(tissue, tmp_path_factory):
    """One sample of each format."""
    folder = tmp_path_factory.mktemp("cohort")
    write_visium(folder / "visium/outs")
    tifffile.imwrite(folder / "visium.tif", he_image(), photometric="rgb", tile=(64, 64))
    slice_of(tissue, "S1").write_h5ad(folder / "slide.h5ad")
    write_store(folder / "store.zarr", slice_of(tissue, "S2"), "S2")
    write_sample(folder / "hest", tissue, "S3", "TENX9")
    write_legacy(folder / "legacy", "A1")
    return folder


PATHS = ("visium/outs", "slide.h5ad", "store.zarr", "hest", "legacy")
NAMES = ["visium", "slide", "store", "TENX9", "A1"]


@pytest.fixture(scope="module")
def cohort(made):
    return read_cohort([made / path for path in PATHS])


def of(cohort, name):
    return cohort[cohort.obs["slice"] == name]


def write_sheet(folder, *rows, header="sample,path,image,patient,um_per_px,group"):
    path = folder / "samples.csv"
    path.write_text("\n".join([header, *rows]))
    return path


@pytest.fixture
def refused(tmp_path, made):
    """Refuse a sheet beside a copy of nothing: its paths are those of the samples that were made."""

    def run(*rows, error=InputError, header="sample,path,image,patient,um_per_px,group"):
        path = write_sheet(tmp_path, *[row.replace("@", f"{made}/") for row in rows], header=header)
        with pytest.raises(error) as caught:
            read_cohort(path)
        return str(caught.value)

    return run


# What is read.


def test_every_format_gives_its_slice(cohort, made):
    assert list(cohort.obs["slice"].cat.categories) == NAMES
    assert cohort.obs_names.is_unique
    assert sorted(cohort.var_names) == sorted(GENES)
    single = {
        "visium": read_section(made / "visium/outs").tables["table"],
        "slide": ad.read_h5ad(made / "slide.h5ad"),
        "TENX9": read_section(made / "hest"),
        "A1": read_section(made / "legacy"),
    }
    for name, alone in single.items():
        part = of(cohort, name)
        np.testing.assert_array_equal(part.X.toarray(), alone[:, cohort.var_names].X.toarray())
        np.testing.assert_array_equal(part.obsm["spatial"], alone.obsm["spatial"])
    assert cohort.X.dtype == np.float32
    assert cohort.X.has_sorted_indices


def test_positions_in_a_store_are_px_of_its_image(cohort, tissue):
    np.testing.assert_allclose(of(cohort, "store").obsm["spatial"], slice_of(tissue, "S2").obsm["spatial"])
    um = tissue.uns["spatial"]["S2"]["scalefactors"]["microns_per_pixel"]
    assert cohort.uns["spatial"]["store"]["scalefactors"]["microns_per_pixel"] == pytest.approx(um)


def test_what_was_dropped_is_reported(cohort, tissue):
    table = cohort.uns["cohort"]
    assert table.index.tolist() == NAMES
    assert table["n_genes"].tolist() == [6, 12, 12, 12, 6]
    assert table["n_genes_dropped"].tolist() == [0, 6, 6, 6, 0]
    part = slice_of(tissue, "S1")
    expected = 1 - part[:, GENES].X.sum() / part.X.sum()
    assert table.loc["slide", "counts_dropped"] == pytest.approx(expected)
    assert table.loc["visium", "counts_dropped"] == 0
    assert table["n_spots"].tolist() == cohort.obs["slice"].value_counts(sort=False).tolist()


def test_it_is_written_and_trained_on(cohort, tmp_path):
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    again = ad.read_h5ad(tmp_path / "cohort.h5ad")
    pd.testing.assert_frame_equal(again.uns["cohort"], cohort.uns["cohort"], check_dtype=False)
    # Spots of the legacy array are twice as far apart, which one graph cannot bear.
    again = again[again.obs["slice"] != "A1"].copy()
    st_gchb.pp.embed_patches(again, **PATCHES)
    STGCHB.setup_anndata(again)
    assert np.isfinite(again.obsm["X_patch"]).all()


@pytest.mark.parametrize("name", ["store", "TENX9", "A1"])
def test_patches_are_those_of_the_section_alone(cohort, made, name):
    path = {"store": "store.zarr", "TENX9": "hest", "A1": "legacy"}[name]
    alone = st_gchb.pp.embed_patches(read_section(made / path), copy=True, **PATCHES)
    part = st_gchb.pp.embed_patches(of(cohort, name).copy(), copy=True, **PATCHES)
    np.testing.assert_array_equal(part.obsm["X_patch"], alone.obsm["X_patch"])


def test_small_images_alone_are_kept(cohort, made):
    """The full-resolution image is a path where there is a file; pixels stay where there is none."""
    libraries = cohort.uns["spatial"]
    paths = {name: entry["metadata"].get("source_image_path") for name, entry in libraries.items()}
    assert paths == {
        "visium": None,
        "slide": None,
        "store": str(made / "store.zarr/images/he"),
        "TENX9": str(made / "hest/wsis/TENX9.tif"),
        "A1": str(made / "legacy/A1.jpg"),
    }
    assert list(libraries["visium"]["images"]) == ["hires"]


def test_a_thumbnail_has_its_scale(made, tmp_path):
    read = read_cohort(write_sheet(tmp_path, f"V,{made}/visium,{made}/visium.tif,,,"))
    entry = read.uns["spatial"]["V"]
    height = entry["images"]["hires"].shape[0]
    assert entry["scalefactors"]["tissue_hires_scalef"] == pytest.approx(height / 480)
    assert entry["metadata"]["source_image_path"] == str(made / "visium.tif")


def test_a_sheet_names_samples_patients_and_groups(made, tmp_path):
    shutil.copytree(made / "legacy", tmp_path / "legacy")
    sheet = write_sheet(
        tmp_path,
        f"V,{made}/visium,{made}/visium.tif,P1,,control",
        "L,legacy,,P1,,",
        f"H,{made}/hest/TENX9,,,,case",
        f"W,{made}/slide.h5ad,,P3,,case",
    )
    read = read_cohort(sheet)
    obs = read.obs.groupby("slice", observed=True).first()
    assert obs["patient"].to_dict() == {"V": "P1", "L": "P1", "H": "Patient 1", "W": "P3"}
    assert obs["group"].astype(object).fillna("").to_dict() == {"V": "control", "L": "", "H": "case", "W": "case"}
    folds = leave_one_out(read, "patient")
    assert [fold.name for fold in folds] == ["P1", "Patient 1", "P3"]
    assert set(read.obs["slice"].iloc[folds[0].test]) == {"V", "L"}


def test_some_samples_of_a_sheet(made, tmp_path):
    sheet = write_sheet(tmp_path, f"V,{made}/visium,,,,", "gone,gone.h5ad,,,,", f"L,{made}/legacy,,,,")
    read = read_cohort(sheet, samples=["L"])
    assert read.obs["slice"].unique().tolist() == ["L"]
    with pytest.raises(InputError, match=r"no sample 'X'; expected some of \['V', 'gone', 'L'\]"):
        read_cohort(sheet, samples=["V", "X"])
    with pytest.raises(InputError, match=r"no sample 'X'; expected some of \['slide'\]"):
        read_cohort([made / "slide.h5ad"], samples=["X"])
    with pytest.raises(InputError, match="samples is empty"):
        read_cohort([made / "slide.h5ad"], samples=[])


def test_folders_with_several_sections(tissue, made, tmp_path):
    for name in ("S1", "S2"):
        write_sample(tmp_path / "hest", tissue, name, f"TENX{name}")
    for name in ("A1", "B2"):
        write_legacy(tmp_path / "arrays", name)
    shutil.copytree(made / "visium", tmp_path / "runs/V1")
    read = read_cohort([tmp_path / "hest", tmp_path / "arrays", tmp_path / "runs", made / "hest/TENX9"])
    assert list(read.obs["slice"].cat.categories) == ["TENXS1", "TENXS2", "A1", "B2", "V1", "TENX9"]
    patients = read.obs.groupby("slice", observed=True)["patient"].first()
    assert patients[["A1", "B2"]].tolist() == ["A", "B"]
    sheet = write_sheet(tmp_path, "B2,arrays,,,,", "TENXS2,hest,,,,")
    assert list(read_cohort(sheet).obs["slice"].cat.categories) == ["B2", "TENXS2"]


def test_a_file_with_several_slices(tissue, tmp_path):
    tissue.write_h5ad(tmp_path / "all.h5ad")
    read = read_cohort([tmp_path / "all.h5ad"])
    assert list(read.obs["slice"].cat.categories) == ["S1", "S2", "S3"]
    np.testing.assert_array_equal(read.X.toarray(), tissue[:, read.var_names].X.toarray())
    assert read.obs_names.tolist() == [
        name if name.startswith(f"{part}_") else f"{part}_{name}"
        for name, part in zip(tissue.obs_names, tissue.obs["slice"], strict=True)
    ]
    sheet = write_sheet(tmp_path, "S2,all.h5ad,,,,")
    assert list(read_cohort(sheet).obs["slice"].cat.categories) == ["S2"]


def test_bins_of_visium_hd(tmp_path):
    write_visium_hd(tmp_path / "HD/outs")
    read = read_cohort([tmp_path / "HD/outs/binned_outputs/square_016um"])
    assert read.uns["cohort"].loc["HD", ["um_per_px", "spacing_um"]].tolist() == [2.0, 16.0]
    read = read_cohort([tmp_path / "HD"])
    assert read.uns["cohort"].loc["HD", ["um_per_px", "spacing_um"]].tolist() == [2.0, 8.0]
    alone = read_section(tmp_path / "HD").tables["square_008um"]
    np.testing.assert_array_equal(read.obsm["spatial"], alone.obsm["spatial"])


def test_a_store_with_several_regions(tissue, tmp_path):
    parts = [slice_of(tissue, name) for name in ("S1", "S2")]
    images, shapes = {}, {}
    for name, part in zip(("S1", "S2"), parts, strict=True):
        own = {name: Scale([1.0] * 2, ("x", "y"))}
        pixels = np.moveaxis(part.uns["spatial"][name]["images"]["hires"], -1, 0)
        images[f"he_{name}"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=own)
        index = np.arange(part.n_obs)
        shapes[name] = ShapesModel.parse(part.obsm["spatial"], geometry=0, radius=20, index=index, transformations=own)
    table = ad.concat(parts, index_unique="_")
    table.obs = pd.DataFrame({"region": pd.Categorical(table.obs["slice"].astype(str))}, index=table.obs_names)
    table.obs["id"] = np.concatenate([np.arange(part.n_obs) for part in parts])
    table = TableModel.parse(table, region=["S1", "S2"], region_key="region", instance_key="id")
    SpatialData(images=images, shapes=shapes, tables={"table": table}).write(tmp_path / "two.zarr")
    read = read_cohort([tmp_path / "two.zarr"])
    assert list(read.obs["slice"].cat.categories) == ["S1", "S2"]
    assert read.uns["cohort"]["image"].tolist() == [str(tmp_path / f"two.zarr/images/he_{name}") for name in shapes]
    np.testing.assert_allclose(of(read, "S2").obsm["spatial"], parts[1].obsm["spatial"])
    sheet = write_sheet(tmp_path, "S2,two.zarr,,,,")
    assert read_cohort(sheet).n_obs == parts[1].n_obs


def test_genomes_in_names_do_not_count(tissue, made, tmp_path):
    part = slice_of(tissue, "S1")
    part.var_names = [f"GRCh38__{name}" for name in part.var_names]
    part.write_h5ad(tmp_path / "a.h5ad")
    read = read_cohort([tmp_path / "a.h5ad", made / "legacy"])
    assert sorted(read.var_names) == sorted(GENES)


def test_spots_without_counts_are_dropped(tissue, made, tmp_path):
    part = slice_of(tissue, "S1")
    dense = part.X.toarray()
    dense[:3, part.var_names.isin(GENES)] = 0
    part.X = dense
    part.write_h5ad(tmp_path / "a.h5ad")
    read = read_cohort([tmp_path / "a.h5ad", made / "legacy"])
    assert read.uns["cohort"].loc["a", ["n_spots", "n_spots_dropped"]].tolist() == [part.n_obs - 3, 3]
    np.testing.assert_array_equal(of(read, "a").obsm["spatial"], part.obsm["spatial"][3:])


# Features that are there already.


def test_features_of_all_samples_are_kept(tissue, tmp_path):
    for name in ("S1", "S2"):
        part = slice_of(tissue, name)
        st_gchb.pp.embed_patches(part, **PATCHES)
        part.obsm["X_patch"][0] = np.nan if name == "S1" else part.obsm["X_patch"][0]
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    read = read_cohort([tmp_path / "S1.h5ad", tmp_path / "S2.h5ad"])
    assert read.uns["cohort"]["n_spots_dropped"].tolist() == [1, 0]
    alone = ad.read_h5ad(tmp_path / "S2.h5ad")
    np.testing.assert_array_equal(of(read, "S2").obsm["X_patch"], alone.obsm["X_patch"])
    assert st_gchb.pp.FeatureSet.from_uns(read.uns["X_patch"]).names == ["texture, 150 µm"]
    STGCHB.setup_anndata(read)


def test_features_of_other_kinds_are_left_out(tissue, tmp_path, caplog):
    for name, size in (("S1", 150), ("S2", 80)):
        part = slice_of(tissue, name)
        st_gchb.pp.embed_patches(part, **{**PATCHES, "patch_um": size})
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    read = read_cohort([tmp_path / "S1.h5ad", tmp_path / "S2.h5ad"])
    assert "X_patch" not in read.obsm
    assert "Patch features of 2 of 2 samples are left out" in caplog.text


# What is told.


def test_progress_and_quiet(made, caplog):
    caplog.set_level(logging.INFO, "st_gchb")
    paths = [made / "legacy", made / "slide.h5ad"]
    read_cohort(paths)
    assert "sample 'slide': 49 spots; 6 of 12 genes" in caplog.text
    assert "(2 of 2)" in caplog.text
    caplog.clear()
    with st_gchb.settings.override(verbosity="WARNING"):
        read_cohort(paths)
    assert "sample" not in "".join(record.getMessage() for record in caplog.records if record.levelno < logging.WARNING)


def test_a_sample_that_costs_many_genes_is_named(tissue, tmp_path, caplog):
    for name in ("S1", "S2", "S3"):
        part = slice_of(tissue, name)
        part[:, : 6 if name == "S2" else 12].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    read = read_cohort([tmp_path / f"{name}.h5ad" for name in ("S1", "S2", "S3")])
    assert read.n_vars == 6
    assert "S2.h5ad (sample 'S2'): 6 genes that all other samples have are dropped" in caplog.text


def test_samples_without_a_patient_are_named(made, tmp_path, caplog):
    read_cohort(write_sheet(tmp_path, f"V,{made}/slide.h5ad,,P1,,", f"W,{made}/visium,,,,"))
    assert "The patient of 1 of 2 samples is not known, such as of W" in caplog.text


def test_other_distances_of_spots_are_told(made, caplog):
    read_cohort([made / "visium", made / "legacy"])
    assert "Spots are 99 µm apart in 'visium' and 200 µm in 'A1'" in caplog.text


# What is refused, with the row, before counts are read.


def test_all_rows_are_validated_before_counts_are_read(made, tmp_path, monkeypatch):
    whole = []

    def seen(*where, counts, **options):
        whole.append(counts)
        return open_section(*where, counts=counts, **options)

    monkeypatch.setattr("st_gchb.io._cohort_samples.open_section", seen)
    sheet = write_sheet(tmp_path, f"W,{made}/slide.h5ad,,,,", f"X,{made}/hest,{made}/visium.tif,,,")
    with pytest.raises(InputError, match=r"samples\.csv, row 3 \(sample 'X'\)"):
        read_cohort(sheet)
    assert whole == [False, False]
    read_cohort(write_sheet(tmp_path, f"W,{made}/slide.h5ad,,,,"))
    assert whole == [False, False, False, True]


WRONG = {
    "a missing path": (["A,@hest,,,,", "B,@slides.h5ad,,,,"], MissingFileError, ["row 3 (sample 'B')", "Did you mean"]),
    "a missing image": (["A,@slide.h5ad,none.tif,,,"], MissingFileError, ["row 2 (sample 'A')", "none.tif is missing"]),
    "an image that is none": (["A,@visium,@slide.h5ad,,,"], ImageError, ["row 2 (sample 'A')", "slide.h5ad"]),
    "no section": (["A,@visium.tif,,,,"], InputError, ["row 2 (sample 'A')", "an image without spots"]),
    "the same section": (["A,@legacy,,,,", "B,@legacy,,,,"], InputError, ["row 3 (sample 'B')", "same section"]),
    "another size": (["A,@legacy,,,9,"], ScaleError, ["row 2 (sample 'A')", "um_per_px is 9", "files say 3.3"]),
    "another size of Visium": (["A,@visium,,,0.5,"], ScaleError, ["row 2 (sample 'A')", "um_per_px is 0.5", "2.5"]),
    "another size in a store": (["A,@store.zarr,,,77,"], ScaleError, ["row 2 (sample 'A')", "um_per_px is 77"]),
    "no element": (["A,@store.zarr,hne,,,"], InputError, ["row 2 (sample 'A')", "'hne'", "['he']"]),
    "no sample of HEST": (["TENX8,@hest/TENX8,,,,"], MissingFileError, ["row 2 (sample 'TENX8')"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_are_wrong(refused, name):
    rows, error, words = WRONG[name]
    said = refused(*rows, error=error)
    assert said.startswith("samples.csv, row")
    for word in words:
        assert word in said


def test_the_size_of_the_files_may_be_repeated(made, tmp_path):
    size = read_cohort([made / "legacy"]).uns["cohort"].loc["A1", "um_per_px"]
    read = read_cohort(write_sheet(tmp_path, f"L,{made}/legacy,,,{size:.2f},"))
    assert read.uns["spatial"]["L"]["scalefactors"]["microns_per_pixel"] == pytest.approx(round(size, 2))


def test_a_size_that_no_file_states(tissue, tmp_path):
    part = slice_of(tissue, "S1")
    del part.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"]
    part.uns["spatial"]["S1"]["scalefactors"].pop("spot_diameter_fullres", None)
    part.write_h5ad(tmp_path / "a.h5ad")
    read = read_cohort(write_sheet(tmp_path, "A,a.h5ad,,,1.5,"))
    assert read.uns["spatial"]["A"]["scalefactors"]["microns_per_pixel"] == 1.5


def test_an_image_that_has_gone(tissue, tmp_path):
    part = slice_of(tissue, "S1")
    part.uns["spatial"]["S1"] |= {"images": {}, "metadata": {"source_image_path": str(tmp_path / "gone.tif")}}
    part.write_h5ad(tmp_path / "a.h5ad")
    sheet = write_sheet(tmp_path, "A,a.h5ad,,,,")
    with pytest.raises(MissingFileError, match=r"row 2 \(sample 'A'\): the full-resolution image .*gone\.tif"):
        read_cohort(sheet)
    um = part.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"]
    write_slide(tmp_path / "gone.tif", image_of(tissue, "S1"), um)
    assert read_cohort(sheet).n_obs == part.n_obs
    del part.uns["spatial"]["S1"]["metadata"]
    part.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ImageError, match=r"row 2 \(sample 'B'\): slice 'S1' has no image"):
        read_cohort(write_sheet(tmp_path, "B,b.h5ad,,,,"))


def test_two_organisms(tissue, made, tmp_path):
    human, mouse = slice_of(tissue, "S1"), slice_of(tissue, "S2")
    mouse.var_names = [name.capitalize() for name in mouse.var_names]
    human.write_h5ad(tmp_path / "human.h5ad")
    mouse.write_h5ad(tmp_path / "mouse.h5ad")
    sheet = write_sheet(tmp_path, "H,human.h5ad,,,,", "M,mouse.h5ad,,,,")
    with pytest.raises(ExpressionError) as caught:
        read_cohort(sheet)
    said = str(caught.value)
    assert said.startswith("no gene is common to the 2 samples.")
    assert "row 2 (sample 'H'): 12 genes such as GENE11, GENE10, GENE9, which look like human symbols" in said
    assert "row 3 (sample 'M'): 12 genes such as Gene11, Gene10, Gene9, which look like mouse symbols" in said
    assert said.endswith("Train on samples of one organism.")


def test_a_few_names_in_common_are_chance(tissue, tmp_path):
    human, mouse = slice_of(tissue, "S1"), slice_of(tissue, "S2")
    wide = np.zeros((49, 60), dtype=np.float32) + 1
    for part, names, path in (
        (human, [f"GENE{i}" for i in range(60)], "human"),
        (mouse, ["GENE0", *[f"Gene{i}" for i in range(59)]], "mouse"),
    ):
        made = ad.AnnData(wide, obs=part.obs, var=pd.DataFrame(index=names), uns=part.uns, obsm=dict(part.obsm))
        made.write_h5ad(tmp_path / f"{path}.h5ad")
    with pytest.raises(ExpressionError, match=r"^1 genes alone are common .* human symbols.* mouse symbols"):
        read_cohort([tmp_path / "human.h5ad", tmp_path / "mouse.h5ad"])


def test_symbols_and_ids(tissue, tmp_path):
    ids = slice_of(tissue, "S2")
    ids.var_names = [f"ENSG{i:011d}" for i in range(12)]
    slice_of(tissue, "S1").write_h5ad(tmp_path / "a.h5ad")
    ids.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ExpressionError, match=r"human Ensembl ids\. Name their genes alike"):
        read_cohort([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])


def test_counts_and_other_values(tissue, made, tmp_path):
    part = slice_of(tissue, "S1")
    part.X = np.log1p(part.X.toarray())
    part.write_h5ad(tmp_path / "logs.h5ad")
    with pytest.raises(ExpressionError, match=r"logs\.h5ad \(sample 'logs'\): X holds no counts, as that of .*A1"):
        read_cohort([made / "legacy", tmp_path / "logs.h5ad"])
    assert read_cohort([tmp_path / "logs.h5ad"]).n_obs == part.n_obs


def test_a_query_without_counts(tissue, made, tmp_path):
    part = slice_of(tissue, "S1")
    del part.X
    part.write_h5ad(tmp_path / "bare.h5ad")
    with pytest.raises(ExpressionError, match=r"bare\.h5ad holds no counts"):
        read_cohort([tmp_path / "bare.h5ad"])


def test_a_sample_without_common_counts(tissue, made, tmp_path):
    part = slice_of(tissue, "S1")
    dense = part.X.toarray()
    dense[:, part.var_names.isin(GENES)] = 0
    part.X = dense
    part.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SliceError, match=r"a\.h5ad \(sample 'a'\): no spot has a count"):
        read_cohort([tmp_path / "a.h5ad", made / "legacy"])


def test_names_that_paths_have_in_common(made, tissue, tmp_path):
    shutil.copytree(made / "legacy", tmp_path / "legacy")
    with pytest.raises(InputError, match=r"the sample 'A1' is there twice, before in .*cohort.*legacy"):
        read_cohort([made / "legacy", tmp_path / "legacy"])


def test_several_slices_and_one_image(tissue, tmp_path, made):
    tissue.write_h5ad(tmp_path / "all.h5ad")
    for row in (f",all.h5ad,{made}/visium.tif,,,", ",all.h5ad,,,1,"):
        with pytest.raises(InputError, match=r"row 2: .*all\.h5ad.* holds (3|several) slices"):
            read_cohort(write_sheet(tmp_path, row))
    with pytest.raises(InputError, match=r"row 2 \(sample 'S9'\): .* holds 3 slices, .* and none is 'S9'"):
        read_cohort(write_sheet(tmp_path, "S9,all.h5ad,,,,"))


def test_a_damaged_file(made, tmp_path):
    damaged = shutil.copytree(made / "visium", tmp_path / "visium")
    (damaged / "outs/spatial/tissue_positions.csv").write_text("barcode\n")
    with pytest.raises((CoordinateError, InputError), match=r"samples\.csv, row 2 \(sample 'V'\)"):
        read_cohort(write_sheet(tmp_path, "V,visium,,,,"))


# Real tissue.


def test_real_sections(her2st_path, tmp_path):
    lung = her2st_path.parent / "visium_lung"
    if not lung.exists():
        pytest.skip(f"{lung} is not here")
    sheet = write_sheet(
        tmp_path,
        f"C2,{her2st_path},,,,",
        f"C3,{her2st_path},,,0.69,",
        f"lung,{lung}/V10F24-110_C1,,L,,",
    )
    read = read_cohort(sheet, genome=None)
    table = read.uns["cohort"]
    assert table["n_spots"].tolist() == [187, 180, 756]
    assert table["n_genes"].tolist() == [15706, 15821, 33550]
    assert 13_000 < read.n_vars < 15_000
    assert (table["counts_dropped"] < 0.2).all()
    assert read.obs.groupby("slice", observed=True)["patient"].first().tolist() == ["C", "C", "L"]
    one = read_section(her2st_path, name="C2")
    np.testing.assert_array_equal(of(read, "C2").X.toarray(), one[:, read.var_names].X.toarray())
