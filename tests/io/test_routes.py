"""One section as a Space Ranger folder, a SpatialData store and an AnnData gives one prediction."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata
import spatialdata_io
import tifffile
from anndata import AnnData

import st_gchb
from st_gchb.cli import main
from st_gchb.io import read_section
from st_gchb.model import STGCHB

from .conftest import write_10x, write_downscaled

UM_PER_PX = 4.0


@pytest.fixture(scope="module")
def model():
    """Trained for two epochs on two small sections with the genes of the section to be predicted."""
    tissue = st_gchb.datasets.synthetic_tissue(2, n_rows=7, n_cols=7, n_genes=40, seed=3)
    st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=150, n_views=1, cache=False)
    STGCHB.setup_anndata(tissue, slice_key="slice")
    model = STGCHB(tissue, n_top_genes=20, k=30)
    model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    return model


@pytest.fixture(scope="module")
def section(dlpfc_path):
    """Simulated tissue on true spots of slice 151673, positions in whole px as Space Ranger writes them.

    A part of the slice: on all of its 3,639 spots the test takes four minutes, and its answers are the same, too.
    """
    geometry = st_gchb.datasets.dlpfc_geometry("151673", dlpfc_path)
    geometry = geometry[geometry.obs["array_row"].between(20, 42) & geometry.obs["array_col"].between(50, 82)].copy()
    section = st_gchb.datasets.synthetic_tissue(n_genes=40, geometry=geometry, um_per_px=UM_PER_PX, seed=3)
    section.obs_names = section.obs_names.str.split("_").str[-1]
    section.obsm["spatial"] = section.obsm["spatial"].round()
    return section


@pytest.fixture(scope="module")
def files(section, tmp_path_factory):
    """The section as Space Ranger leaves it, with the full-resolution image beside it, tiled and in two levels."""
    folder = tmp_path_factory.mktemp("151673")
    (library,) = section.uns["spatial"].values()
    pixels = library["images"]["hires"]
    outs = folder / "sample/outs"
    outs.mkdir(parents=True)
    write_10x(
        outs / "filtered_feature_bc_matrix.h5", section.obs_names, section.X.toarray().astype(int), section.var_names
    )
    factors = write_downscaled(outs / "spatial", pixels, scales=(0.5, 0.15))
    factors |= {"spot_diameter_fullres": 55 / UM_PER_PX, "fiducial_diameter_fullres": 90 / UM_PER_PX}
    (outs / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    positions = pd.DataFrame({"in_tissue": 1}, index=section.obs_names)
    positions[["array_row", "array_col"]] = section.obs[["array_row", "array_col"]]
    positions[["row", "col"]] = section.obsm["spatial"][:, ::-1].astype(int)
    # Not in the order of the matrix, as in every folder of Space Ranger.
    positions.sample(frac=1, random_state=0).to_csv(outs / "spatial/tissue_positions_list.csv", header=False)
    with tifffile.TiffWriter(folder / "full.tif") as writer:
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib", "resolutionunit": "CENTIMETER"}
        writer.write(pixels, subifds=1, resolution=(1e4 / UM_PER_PX,) * 2, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)
    tifffile.imwrite(folder / "plain.tif", pixels, photometric="rgb")
    return folder


@pytest.fixture(scope="module")
def from_folder(files, model):
    sdata = read_section(files / "sample", image=files / "full.tif")
    return sdata, model.predict(sdata)


def assert_same(prediction, expected):
    assert prediction.obs_names.tolist() == expected.obs_names.tolist()
    assert prediction.n_obs > 300
    np.testing.assert_array_equal(prediction.layers["st_gchb"], expected.layers["st_gchb"])
    np.testing.assert_array_equal(prediction.X, expected.X)
    np.testing.assert_array_equal(prediction.obsm["spatial"], expected.obsm["spatial"])
    np.testing.assert_array_equal(prediction.obs["st_gchb_confidence"], expected.obs["st_gchb_confidence"])


# All routes read the same pixels of the same level at the same places: the answers are the same bit for bit.


@pytest.mark.tissue
def test_a_spatialdata_store_gives_the_same_as_the_folder(from_folder, model, tmp_path):
    sdata, expected = from_folder
    sdata.write(tmp_path / "s.zarr")
    assert_same(model.predict(read_section(tmp_path / "s.zarr")), expected)


@pytest.mark.tissue
def test_an_anndata_gives_the_same_as_the_folder(from_folder, model, section, files, tmp_path):
    _, expected = from_folder
    obs = pd.DataFrame(index=section.obs_names)
    adata = AnnData(section.X, obs=obs, var=section.var[[]], obsm={"spatial": section.obsm["spatial"]})
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_same(model.predict(read_section(tmp_path / "a.h5ad", image=files / "full.tif")), expected)


@pytest.mark.tissue
def test_what_spatialdata_io_makes_itself_gives_the_same(from_folder, model, files, tmp_path):
    """Its pyramid has other levels, which patches of this size do not reach."""
    _, expected = from_folder
    sdata = spatialdata_io.visium(files / "sample/outs", "sample", fullres_image_file=files / "plain.tif")
    prediction = model.predict(sdata, um_per_px=UM_PER_PX)
    np.testing.assert_allclose(prediction.layers["st_gchb"], expected.layers["st_gchb"], rtol=0, atol=1e-5)
    sdata.write(tmp_path / "s.zarr")
    again = model.predict(spatialdata.read_zarr(tmp_path / "s.zarr"), um_per_px=UM_PER_PX)
    np.testing.assert_array_equal(again.layers["st_gchb"], prediction.layers["st_gchb"])


@pytest.mark.tissue
def test_the_folder_trains_a_model(from_folder, section):
    sdata, _ = from_folder
    st_gchb.pp.embed_patches(sdata, encoder="texture", patch_um=150, n_views=1, cache=False)
    STGCHB.setup_spatialdata(sdata)
    trained = STGCHB(sdata, n_top_genes=20)
    np.testing.assert_array_equal(trained.adata.obsm["spatial"], section.obsm["spatial"])
    np.testing.assert_array_equal(trained.adata.X.toarray(), section.X.toarray())


def test_the_command_line_gives_the_same_as_the_folder(from_folder, model, files, tmp_path):
    model.save(tmp_path / "model")
    options = ["--slide", files / "sample", "--image", files / "full.tif", "--device", "cpu"]
    command = ["predict", "--model", tmp_path / "model", *options, "--out", tmp_path / "out"]
    assert main([str(argument) for argument in command]) == 0
    prediction = anndata.read_h5ad(tmp_path / "out/prediction.h5ad")
    assert_same(prediction, from_folder[1])
    command = ["predict", "--model", tmp_path / "model", *options, "--spacing", "80um", "--out", tmp_path / "grid"]
    assert main([str(argument) for argument in command]) == 0
    grid = anndata.read_h5ad(tmp_path / "grid/prediction.h5ad")
    on_image = model.predict(st_gchb.pp.tile_tissue(files / "full.tif", spacing_um=80))
    np.testing.assert_allclose(grid.obsm["spatial"], on_image.obsm["spatial"], atol=1e-6)
    np.testing.assert_allclose(grid.layers["st_gchb"], on_image.layers["st_gchb"], atol=1e-5)
