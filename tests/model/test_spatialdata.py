"""SpatialData: the same section by either route gives the same answer, which annotates the spots."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import spatialdata
import squidpy as sq
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Scale, Sequence, Translation
from squidpy.gr.neighbors import DelaunayBuilder, KNNBuilder

import st_gchb
from st_gchb._errors import GraphError, InputError, MissingKeyError
from st_gchb.model import STGCHB, _validation

XY = ("x", "y")
QUIET = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
# Image px and spot units both differ from the common system, which is turned besides.
OF_IMAGE = Sequence([Scale([0.4, 0.4], XY), Affine([[0, -1, 900], [1, 0, 15], [0, 0, 1]], XY, XY)])
OF_SPOTS = Sequence([Scale([2.0, 2.0], XY), Translation([-300.0, 77.0], XY)])


def affine(transformation):
    return transformation.to_affine_matrix(XY, XY)


def as_spatialdata(adata: AnnData, name: str, pixels=None, diameter=None, scale_factors=None) -> SpatialData:
    """The same slice as an image, circles in another order than the rows, and a table, each in its own units."""
    library = adata.uns["spatial"][name]
    pixels = library["images"]["hires"] if pixels is None else pixels
    diameter = library["scalefactors"]["spot_diameter_fullres"] if diameter is None else diameter
    to_spots = np.linalg.inv(affine(OF_SPOTS)) @ affine(OF_IMAGE)
    centers = np.column_stack([adata.obsm["spatial"], np.ones(adata.n_obs)]) @ to_spots.T
    order = np.random.default_rng(0).permutation(adata.n_obs)
    ids = np.array([f"spot {i}" for i in range(adata.n_obs)])
    region = f"{name}_spots"
    # Half a px of the image is 0.2 of the common system, 0.1 of the spots' own.
    shapes = ShapesModel.parse(
        centers[order, :2], geometry=0, radius=diameter / 2 * 0.2, index=ids[order], transformations={name: OF_SPOTS}
    )
    obs = pd.DataFrame({"region": pd.Categorical([region] * adata.n_obs), "spot": ids}, index=adata.obs_names)
    table = AnnData(None if adata.n_vars == 0 else adata.X.copy(), obs=obs, var=adata.var.copy())
    table = TableModel.parse(table, region=region, region_key="region", instance_key="spot")
    image = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), scale_factors=scale_factors, transformations={name: OF_IMAGE}
    )
    return SpatialData(images={f"{name}_image": image}, shapes={region: shapes}, tables={f"{name}_table": table})


def both_slices(adata: AnnData) -> SpatialData:
    parts = [as_spatialdata(one(adata, name), name) for name in ("S1", "S2")]
    tables = [part.tables.pop(next(iter(part.tables))) for part in parts]
    joined = spatialdata.concatenate(parts)
    import anndata

    table = anndata.concat(tables, merge="same")
    for key in ("region", "spot"):
        table.obs[key] = pd.Categorical(table.obs[key]) if key == "region" else table.obs[key]
    table.uns.clear()
    names = ["S1_spots", "S2_spots"]
    joined.tables["table"] = TableModel.parse(table, region=names, region_key="region", instance_key="spot")
    return joined


def one(adata: AnnData, name: str) -> AnnData:
    part = adata[adata.obs["slice"] == name].copy()
    part.uns["spatial"] = {name: part.uns["spatial"][name]}
    return part


@pytest.fixture(scope="module")
def routes(tissue):
    """A model of each route, trained on the same two slices."""
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    adata.layers.clear()
    sdata = both_slices(adata)
    STGCHB.setup_anndata(adata)
    st_gchb.pp.embed_patches(sdata, encoder="texture", patch_um=150, n_views=1, cache=False)
    STGCHB.setup_spatialdata(sdata)
    models = [STGCHB(data, n_top_genes=20) for data in (adata, sdata)]
    for model in models:
        model.train(**QUIET)
    return models, sdata


def assert_same(first, second):
    assert first.var_names.tolist() == second.var_names.tolist()
    assert first.obs_names.tolist() == second.obs_names.tolist()
    for a, b in (
        (first.layers["st_gchb"], second.layers["st_gchb"]),
        (first.X, second.X),
        (first.obsm["X_st_gchb"], second.obsm["X_st_gchb"]),
        (first.obsm["spatial"], second.obsm["spatial"]),
        (first.obs["st_gchb_confidence"], second.obs["st_gchb_confidence"]),
        (first.var["st_gchb_expected_pcc"], second.var["st_gchb_expected_pcc"]),
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_both_routes_train_the_same_model(routes):
    (first, second), sdata = routes
    table = sdata["table"]
    np.testing.assert_allclose(first.adata.obsm["spatial"], table.obsm["spatial"], atol=1e-6)
    np.testing.assert_allclose(first.adata.obsm["X_patch"], table.obsm["X_patch"], rtol=1e-5, atol=1e-5)
    graphs = [data.obsp["spatial_connectivities"] for data in (first.adata, table)]
    assert (graphs[0] != graphs[1]).nnz == 0
    for modality in ("expression", "image"):
        np.testing.assert_allclose(
            first.get_latent_representation(modality=modality),
            second.get_latent_representation(modality=modality),
            atol=1e-5,
        )
    assert list(second.bank_.origin["slice"].unique()) == ["S1_spots", "S2_spots"]


@pytest.mark.parametrize("genes", [True, False])
@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_both_routes_give_the_same_prediction(routes, tissue, genes, scale_factors):
    (first, second), _ = routes
    section = one(tissue, "S3")
    del section.obsm["X_patch"], section.uns["X_patch"]
    if not genes:
        section = AnnData(obs=section.obs, obsm={"spatial": section.obsm["spatial"]}, uns=dict(section.uns))
    expected = first.predict(section)
    for model in (first, second):
        assert_same(expected, model.predict(as_spatialdata(section, "S3", scale_factors=scale_factors)))
    assert_same(expected, second.predict(section))


def test_the_answer_annotates_the_spots(routes, tissue, unchanged, tmp_path):
    (model, _), _ = routes
    sdata = as_spatialdata(one(tissue, "S3"), "S3")
    with unchanged(*(sdata[name] for name in ("S3_table",))):
        prediction = model.predict(sdata)
    assert set(sdata.tables) == {"S3_table", "st_gchb"}
    again = model.predict(sdata)
    assert_same(prediction, again)
    sdata.write(tmp_path / "s.zarr")
    stored = spatialdata.read_zarr(tmp_path / "s.zarr")
    table = stored["st_gchb"]
    np.testing.assert_array_equal(table.layers["st_gchb"], prediction.layers["st_gchb"])
    assert table.obs["spot"].tolist() == stored["S3_table"].obs["spot"].tolist()
    assert table.uns["st_gchb"]["model_id"] == model.model_id_
    assert spatialdata.models.get_table_keys(table) == (["S3_spots"], "region", "spot") or (
        spatialdata.models.get_table_keys(table) == ("S3_spots", "region", "spot")
    )
    elements, joined = spatialdata.join_spatialelement_table(
        sdata=stored, spatial_element_names="S3_spots", table_name="st_gchb", how="left"
    )
    assert len(elements["S3_spots"]) == joined.n_obs == prediction.n_obs
    values = spatialdata.get_values(
        value_key=prediction.var_names[0],
        sdata=stored,
        element_name="S3_spots",
        table_name="st_gchb",
        table_layer="st_gchb",
    )
    by_spot = pd.Series(prediction.layers["st_gchb"][:, 0], index=table.obs["spot"].to_numpy())
    np.testing.assert_allclose(values.iloc[:, 0], by_spot[values.index.to_numpy()], rtol=1e-6)
    # What was read back is a query as good as the first.
    assert_same(prediction, model.predict(stored))


def test_spots_without_a_table(routes, tissue):
    (model, _), _ = routes
    sdata = as_spatialdata(one(tissue, "S3"), "S3")
    expected = model.predict(sdata)
    del sdata.tables["S3_table"], sdata.tables["st_gchb"]
    prediction = model.predict(sdata)
    ids = expected.obs["spot"].tolist()
    assert sorted(prediction.obs_names) == sorted(ids)
    np.testing.assert_allclose(prediction[ids].layers["st_gchb"], expected.layers["st_gchb"], rtol=0, atol=1e-5)
    assert "st_gchb" in sdata.tables


def test_a_prediction_has_a_thumbnail_of_its_own(routes, tissue, tmp_path):
    (model, _), _ = routes
    prediction = model.predict(as_spatialdata(one(tissue, "S3"), "S3"))
    (library,) = prediction.uns["spatial"].values()
    image = library["images"]["hires"]
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    scale = library["scalefactors"]["tissue_hires_scalef"]
    assert (prediction.obsm["spatial"].max(0) * scale <= image.shape[1::-1]).all()
    prediction.write_h5ad(tmp_path / "p.h5ad")


def test_a_saved_model_of_a_spatialdata_answers_either(routes, tissue, tmp_path):
    (_, model), _ = routes
    model.save(tmp_path / "model")
    loaded = STGCHB.load(tmp_path / "model", accelerator="cpu")
    section = one(tissue, "S3")
    np.testing.assert_array_equal(model.predict(section).layers["st_gchb"], loaded.predict(section).layers["st_gchb"])
    assert_same(loaded.predict(section), loaded.predict(as_spatialdata(section, "S3")))


def test_one_table_of_several_is_set_up(tissue):
    section = one(tissue, "S1")
    sdata = as_spatialdata(section, "S1")
    sdata.tables["other"] = sdata["S1_table"].copy()
    with pytest.raises(InputError, match=r"2 tables.*table="):
        STGCHB.setup_spatialdata(sdata, encoder="texture")
    STGCHB.setup_spatialdata(sdata, table="other", encoder="texture")
    assert STGCHB(sdata, n_top_genes=10).adata is sdata["other"]
    assert not sdata["S1_table"].obsm


BUILDERS = {
    "nearest": (KNNBuilder(n_neighs=4), "knn"),
    "triangles": (DelaunayBuilder(radius=67.0), "delaunay"),
    "percentile": (DelaunayBuilder(percentile=98.0), None),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_graph_of_squidpy_is_asked_at_the_tables_own_positions(tissue, unchanged, monkeypatch, name):
    builder, mode = BUILDERS[name]
    sdata = both_slices(tissue)
    (table,) = sdata.tables.values()
    # In px of another image than that of the SpatialData.
    table.obsm["spatial"] = 0.37 * np.array(tissue[table.obs_names].obsm["spatial"])
    sq.gr.spatial_neighbors_from_builder(table, builder, library_key="region")
    if mode is not None:
        STGCHB.setup_spatialdata(sdata, encoder="texture")
        assert STGCHB(sdata, n_top_genes=10)._fit().rules.graph.mode == mode
        return
    monkeypatch.setattr(_validation, "embed_patches", lambda *_, **__: pytest.fail("patches were embedded"))
    with unchanged(table), pytest.raises(GraphError, match=r"not what squidpy's record says.*set up again"):
        STGCHB.setup_spatialdata(sdata, encoder="texture")


def no_table(sdata):
    del sdata.tables["S1_table"]


def no_counts(sdata):
    sdata["S1_table"].X = sdata["S1_table"].X * 1.5


def no_image(sdata):
    del sdata.images["S1_image"]


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (no_table, {}, "no table"),
        (no_counts, {}, "raw counts"),
        (no_image, {}, "Image2DModel"),
        (None, {"encoder": "textur"}, "texture"),
        (None, {"table": "counts"}, "'counts'.*S1_table"),
        (None, {"slice_key": "section"}, "'section'"),
        (None, {"slicekey": "region"}, "did you mean.*slice_key"),
    ],
)
def test_bad_spatialdata(tissue, unchanged, spoil, options, message):
    sdata = as_spatialdata(one(tissue, "S1"), "S1")
    if spoil:
        spoil(sdata)
    with unchanged(sdata), pytest.raises((InputError, MissingKeyError), match=message):
        STGCHB.setup_spatialdata(sdata, **({"encoder": "texture"} | options))


def test_a_spatialdata_that_was_not_set_up(tissue):
    sdata = as_spatialdata(one(tissue, "S1"), "S1")
    with pytest.raises(ValueError, match="setup_spatialdata"):
        STGCHB(sdata)
    no_table(sdata)
    with pytest.raises(MissingKeyError, match="setup_spatialdata"):
        STGCHB(sdata)


@pytest.mark.tissue
def test_real_section(her2st_path):
    """A part of a tumor section by both routes, in px of the full-resolution scan."""
    adata = st_gchb.datasets.her2st(["C5"], path=her2st_path)
    corner, side = np.array([2500, 2500]), 4000
    with Image.open(her2st_path / "C5.jpg") as scan:
        pixels = np.asarray(scan.crop((*corner, *(corner + side))))
    inside = ((adata.obsm["spatial"] > corner) & (adata.obsm["spatial"] < corner + side)).all(axis=1)
    adata = adata[inside].copy()
    adata.obsm["spatial"] = adata.obsm["spatial"] - corner
    scale = adata.uns["spatial"]["C5"]["scalefactors"]["microns_per_pixel"]
    options = {"encoder": "texture", "patch_um": 150, "n_views": 1, "um_per_px": scale}
    sdata = as_spatialdata(adata, "C5", pixels=pixels, diameter=100 / scale)
    query = as_spatialdata(adata, "C5", pixels=pixels, diameter=100 / scale, scale_factors=[4])
    st_gchb.pp.embed_patches(adata, image=pixels, slice_key="slice", **options)
    st_gchb.pp.embed_patches(sdata, **options)
    STGCHB.setup_anndata(adata, slice_key="slice")
    STGCHB.setup_spatialdata(sdata, um_per_px=scale)
    predictions = []
    for data in (adata, sdata):
        model = STGCHB(data, n_top_genes=50)
        model.train(**QUIET)
        predictions.append(model.predict(data if data is adata else query, um_per_px=scale))
    assert predictions[0].n_obs == adata.n_obs > 40
    assert_same(*predictions)
