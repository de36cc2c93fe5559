"""Bad input: a typed error that says what to do, and the caller's object as it was."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import st_gchb
from st_gchb._errors import (
    CoordinateError,
    EncoderError,
    ExpressionError,
    GraphError,
    ImageError,
    InputError,
    MissingFileError,
    MissingKeyError,
    QueryError,
    ScaleError,
    SliceError,
    STGCHBError,
)
from st_gchb.model import STGCHB


def no_coordinates(adata):
    del adata.obsm["spatial"]


def nan_coordinates(adata):
    adata.obsm["spatial"] = np.array(adata.obsm["spatial"])
    adata.obsm["spatial"][3, 1] = np.nan


def negative_coordinates(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] * np.array([1, -1])


def coordinates_of_a_larger_image(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] * 12.5


def coordinates_of_three_axes(adata):
    adata.obsm["spatial"] = np.column_stack([adata.obsm["spatial"], np.zeros(adata.n_obs)])


def one_spot_slice(adata):
    adata.obs["slice"] = ["alone", *adata.obs["slice"].astype(str)[1:]]
    adata.uns["spatial"]["alone"] = next(iter(adata.uns["spatial"].values()))


def spots_without_neighbors(adata):
    name = adata.obs["slice"].astype(str).iloc[0]
    rows = np.flatnonzero(adata.obs["slice"] == name)[:3]
    adata.obs["slice"] = adata.obs["slice"].astype(str)
    adata.obs.iloc[rows, adata.obs.columns.get_loc("slice")] = "sparse"
    adata.uns["spatial"]["sparse"] = adata.uns["spatial"][name]
    adata.obsm["spatial"][rows] = [[200, 200], [600, 200], [200, 700]]


def gaps_in_slices(adata):
    adata.obs["slice"] = pd.Categorical([None, *adata.obs["slice"].astype(str)[1:]])


def two_slices_and_no_column(adata):
    del adata.obs["slice"]
    adata.uns["spatial"]["other"] = next(iter(adata.uns["spatial"].values()))


def twice_the_same_spot_name(adata):
    names = adata.obs_names.tolist()
    adata.obs_names = [names[1], *names[1:]]


def twice_the_same_gene(adata):
    names = adata.var_names.tolist()
    adata.var_names = [names[1], *names[1:]]


def no_image(adata):
    del adata.uns["spatial"]


def gray_image(adata):
    for library in adata.uns["spatial"].values():
        library["images"]["hires"] = library["images"]["hires"][..., 0]


def image_that_moved(adata):
    for library in adata.uns["spatial"].values():
        library["metadata"]["source_image_path"] = "/nowhere/slide.tif"


def no_size_of_a_pixel(adata):
    for library in adata.uns["spatial"].values():
        library["scalefactors"] = {"tissue_hires_scalef": 1.0}


PLACE = {
    "no coordinates": (no_coordinates, MissingKeyError, "obsm.*'spatial'.*Set adata.obsm"),
    "NaN coordinates": (nan_coordinates, CoordinateError, "1 of .* spots.*Drop them"),
    "negative coordinates": (negative_coordinates, CoordinateError, "negative.*Undo a shift"),
    "coordinates off the image": (coordinates_of_a_larger_image, CoordinateError, "scale factor of about 0.0"),
    "coordinates of three axes": (coordinates_of_three_axes, CoordinateError, "expected .*2.*x, y"),
    "a slice of one spot": (one_spot_slice, SliceError, "'alone'.*1 spot.*Drop this slice"),
    "spots without neighbors": (spots_without_neighbors, GraphError, "'sparse'.*neighbor.*spatial_graph\\(rule="),
    "gaps in slices": (gaps_in_slices, SliceError, "(?i:fill the gaps or drop|drop them)"),
    "no slice column": (two_slices_and_no_column, SliceError, "slice_key.*Pass"),
    "spot names": (twice_the_same_spot_name, InputError, r"obs_names.*adata\.obs_names_make_unique\(\)"),
    "no image": (no_image, ImageError, "Pass image="),
    "gray image": (gray_image, ImageError, "hires|image of slice"),
    "image that moved": (image_that_moved, MissingFileError, "/nowhere/slide.tif.*Pass image="),
    "no size of a pixel": (no_size_of_a_pixel, ScaleError, "Pass um_per_px="),
}
# setup_anndata takes neither an image nor a size: its advice is what the user can do before it.
AT_SETUP = {
    "no image": "embed_patches.*image=",
    "image that moved": "/nowhere/slide.tif.*embed_patches.*image=",
    "no size of a pixel": r"Set uns\['spatial'\]\['S1'\]\['scalefactors'\]\['microns_per_pixel'\]",
}


def nan_expression(adata):
    adata.X.data[5] = np.nan


def infinite_expression(adata):
    adata.X.data[5] = np.inf


def scaled_expression(adata):
    dense = adata.X.toarray()
    adata.X = (dense - dense.mean(0)) / (dense.std(0) + 1)


def normalized_expression(adata):
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray() / 3))


def empty_spot(adata):
    dense = adata.X.toarray()
    dense[4] = 0
    adata.X = sp.csr_matrix(dense)


def no_expression(adata):
    adata.X = None


def nan_features(adata):
    adata.obsm["X_patch"][2, 2] = np.nan


def one_way_graph(adata):
    graph = sp.lil_matrix((adata.n_obs, adata.n_obs))
    graph[0, 1] = 1
    adata.obsp["spatial_connectivities"] = graph.tocsr()


def graph_across_slices(adata):
    graph = sp.lil_matrix((adata.n_obs, adata.n_obs))
    graph[0, adata.n_obs - 1] = graph[adata.n_obs - 1, 0] = 1
    adata.obsp["spatial_connectivities"] = graph.tocsr()


TABLE = {
    "gene names": (twice_the_same_gene, {}, InputError, r"var_names.*adata\.var_names_make_unique\(\)"),
    "NaN": (nan_expression, {}, ExpressionError, "1 NaN or infinite.*(Remove|repair)"),
    "infinite": (infinite_expression, {}, ExpressionError, "1 NaN or infinite"),
    "scaled": (scaled_expression, {}, ExpressionError, "negative.*scaled.*read them again"),
    "no counts": (normalized_expression, {}, ExpressionError, "whole numbers.*log_normalized=True"),
    "counts said to be logs": (None, {"log_normalized": True}, ExpressionError, "log_normalized=False"),
    "a spot without counts": (empty_spot, {}, ExpressionError, "first row: 4.*filter_cells"),
    "no expression": (no_expression, {}, (MissingKeyError, ExpressionError), "counts"),
    "layer": (None, {"layer": "raw"}, MissingKeyError, "'raw'.*truth"),
    "slice_key": (None, {"slice_key": "section"}, SliceError, "'section'.*slice"),
    "keyword": (None, {"slicekey": "slice"}, InputError, "setup_anndata.*'slicekey'.*did you mean.*slice_key"),
    "patient_key": (None, {"patient_key": "donor"}, MissingKeyError, "'donor'.*patient"),
    "NaN features": (nan_features, {}, EncoderError, "1 spots.*embed_patches again"),
    "one-way graph": (one_way_graph, {}, GraphError, "not symmetric.*spatial_graph"),
    "graph across slices": (graph_across_slices, {}, GraphError, "2 edges between.*spatial_graph"),
}


def check(error, message, call):
    with pytest.raises(STGCHBError) as caught:
        call()
    assert isinstance(caught.value, error), repr(caught.value)
    assert isinstance(caught.value, ValueError | KeyError | FileNotFoundError)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.fixture
def plain(reference, monkeypatch):
    """S1 and S2 without features, and an encoder that needs no download."""
    import functools

    from st_gchb.model import _validation as _setup

    monkeypatch.setattr(
        _setup, "embed_patches", functools.partial(_setup.embed_patches, encoder="texture", patch_um=150, n_views=1)
    )
    del reference.obsm["X_patch"], reference.uns["X_patch"]
    return reference


@pytest.mark.parametrize("name", PLACE)
def test_bad_places_and_images_at_setup(plain, unchanged, name):
    spoil, error, message = PLACE[name]
    spoil(plain)
    with unchanged(plain):
        check(error, AT_SETUP.get(name, message), lambda: STGCHB.setup_anndata(plain))


@pytest.mark.parametrize("name", TABLE)
def test_bad_tables_at_setup(reference, unchanged, name):
    spoil, options, error, message = TABLE[name]
    if spoil:
        spoil(reference)
    with unchanged(reference):
        check(error, message, lambda: STGCHB.setup_anndata(reference, **options))


REGISTRIES = {
    "none": ({"extend_categories": True}, "extend_categories= says how source_registry= is used, and there is none"),
    "empty": ({"source_registry": {}}, "expected the registry of a model"),
    "of other things": ({"source_registry": {"field_registries": {"X": 3}}}, "does not fit the AnnData"),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_registry_that_is_none_leaves_nothing_behind(reference, unchanged, name):
    options, message = REGISTRIES[name]
    assert "spatial_connectivities" not in reference.obsp
    with unchanged(reference):
        check(InputError, message, lambda: STGCHB.setup_anndata(reference, slice_key="slice", **options))


def test_the_registry_of_a_model_of_other_slices(model, held_out, unchanged):
    with unchanged(held_out):
        check(
            InputError,
            "does not fit the AnnData",
            lambda: STGCHB.setup_anndata(held_out, slice_key="slice", source_registry=model.registry_),
        )


@pytest.mark.parametrize("name", PLACE)
def test_bad_places_and_images_in_a_query(model, query, unchanged, name):
    spoil, error, message = PLACE[name]
    spoil(query)
    with unchanged(query, model.adata):
        check(error, message, lambda: model.predict(query))


def only_obs(query):
    return AnnData(obs=pd.DataFrame({"sample": ["a", "b"]}, index=["1", "2"]))


def nothing_known(query):
    return AnnData(obs=query.obs, obsm={"X_other": np.zeros((query.n_obs, 3))})


def features_of_another_width(query):
    query.obsm["X_patch"] = np.zeros((query.n_obs, 512), np.float32)
    return query


def features_of_another_encoder(query):
    rule = {"encoder": "resnet50", "weights": "default", "weights_sha256": "0f", "patch_um": 150.0, "n_views": 4}
    query.obsm["X_patch"] = np.zeros((query.n_obs, 107), np.float32)
    query.uns["X_patch"] = rule | {"n_features": 107}
    return query


def features_with_nan(query):
    query.obsm["X_patch"] = np.full((query.n_obs, 107), np.nan, np.float32)
    return query


def features_as(change):
    def spoil(query):
        query.obsm["X_patch"] = change(np.random.default_rng(0).random((query.n_obs, 107)))
        return query

    return spoil


def rounded_features(query):
    st_gchb.pp.embed_patches(query, encoder="texture", patch_um=150, n_views=1, cache=False)
    query.obsm["X_patch"] = query.obsm["X_patch"].astype(int)
    return query


def masked(features):
    return np.ma.masked_array(features, mask=np.arange(len(features))[:, None] * np.ones(features.shape[1]) == 3)


def columns_of_two_levels(query):
    query.obs.columns = pd.MultiIndex.from_product([["a"], query.obs.columns])
    return query


def names_of_half_a_character(query):
    # pandas' own text refuses half a character since version 3; Python's does not.
    query.obs_names = pd.Index(["\ud800", *query.obs_names[1:]], dtype=object)
    return query


def duplicated_genes(query):
    return AnnData(np.ones((query.n_obs, 2), np.float32), obs=query.obs, var=pd.DataFrame(index=["A", "A"]))


def no_spots(query):
    return query[:0].copy()


def one_spot(query):
    return query[:1].copy()


QUERIES = {
    "only obs": (only_obs, {}, MissingKeyError, r"obsm\['spatial'\].*Set adata.obsm"),
    "nothing known": (nothing_known, {}, MissingKeyError, r"'X_other'.*Set adata.obsm"),
    "another width": (features_of_another_width, {}, QueryError, "512 features.*107.*Drop it"),
    "another encoder": (features_of_another_encoder, {}, EncoderError, "encoder 'resnet50' instead of 'texture'.*Drop"),
    "NaN features": (features_with_nan, {}, EncoderError, "embed_patches again"),
    "complex features": (features_as(lambda x: x + 1j), {}, EncoderError, "complex128.*expected real numbers"),
    "features as text": (features_as(lambda x: x.astype(str)), {}, EncoderError, "expected real numbers"),
    "features as dates": (features_as(lambda x: x.astype("datetime64[s]")), {}, EncoderError, "expected real numbers"),
    "rounded features": (rounded_features, {}, EncoderError, "int64.*writes float32.*Run it again"),
    "masked features": (features_as(masked), {}, EncoderError, "masked in 1 spots.*embed_patches again"),
    "names that no file can hold": (names_of_half_a_character, {}, InputError, "obs_names holds.*no file can hold"),
    "columns of two levels": (columns_of_two_levels, {}, QueryError, "2 levels.*Join them"),
    "duplicated genes": (duplicated_genes, {}, InputError, "var_names_make_unique"),
    "no spots": (no_spots, {}, QueryError, "no spots"),
    "one spot": (one_spot, {}, SliceError, "1 spot"),
    "unknown slice_key": (lambda query: query, {"slice_key": "section"}, SliceError, "'section'.*'slice'"),
    "a path": (lambda query: "S3.h5ad", {}, QueryError, "(query|adata)=.*AnnData or SpatialData"),
    "a missing image": (lambda query: query, {"image": "/nowhere/slide.tif"}, MissingFileError, "/nowhere/slide.tif"),
    "a wrong image": (
        lambda query: query,
        {"image": np.zeros((90, 100, 3), np.uint8), "um_per_px": 1.0},
        CoordinateError,
        "scale factor",
    ),
    "a pixel of no size": (lambda query: query, {"um_per_px": -1.0}, ScaleError, "positive"),
    "a table of an AnnData": (lambda query: query, {"table": "t"}, InputError, "SpatialData"),
}


@pytest.mark.parametrize("name", QUERIES)
def test_bad_queries(model, query, unchanged, name):
    make, options, error, message = QUERIES[name]
    bad = make(query)
    with unchanged(query, model.adata, *([bad] if isinstance(bad, AnnData) else [])):
        check(error, message, lambda: model.predict(bad, **options))
    with unchanged(query):
        check(error, message, lambda: model.get_latent_representation(bad, "image", **options))


@pytest.mark.parametrize("spoil", [nan_expression, scaled_expression, normalized_expression, empty_spot])
def test_bad_expression_is_not_embedded(model, held_out, unchanged, spoil):
    spoil(held_out)
    with unchanged(held_out):
        check(ExpressionError, "counts|NaN", lambda: model.get_latent_representation(held_out))
        # Its patches are as good as ever.
        assert model.predict(held_out).n_obs == held_out.n_obs


def test_a_graph_that_no_query_could_have(reference, unchanged):
    """Every other edge of the array taken out: there is no rule by which a query's graph could be built."""
    STGCHB.setup_anndata(reference)
    graph = sp.triu(reference.obsp["spatial_connectivities"]).tocoo()
    keep = np.random.default_rng(0).random(graph.nnz) < 0.5
    half = sp.coo_matrix((graph.data[keep], (graph.row[keep], graph.col[keep])), shape=graph.shape)
    reference.obsp["spatial_connectivities"] = (half + half.T).tocsr()
    reference.uns.pop("spatial_neighbors")
    with unchanged(reference):
        check(GraphError, "radius graph.*Drop it", lambda: STGCHB(reference).train(enable_progress_bar=False))
    copy = reference.copy()
    del copy.uns["_scvi_uuid"]
    for again in (reference, copy):
        with unchanged(again):
            check(GraphError, "radius graph.*Drop it", lambda again=again: STGCHB.setup_anndata(again))
