"""Which slices there are and what is stored of each: one answer, whatever layout an object comes in."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import st_gchb
from st_gchb.errors import CoordinateError, InputError, MissingFileError, ScaleError, SliceError, StaleError
from st_gchb.io import libraries_of, sections_of
from st_gchb.model import STGCHB
from st_gchb.pp import embed_patches, slices_of, spatial_graph
from st_gchb.pp.patches import check_made, pixel_sizes

GRID = np.array([(30.0 + 40 * (i % 6), 30.0 + 40 * (i // 6)) for i in range(36)])
IMAGE = np.random.default_rng(0).integers(60, 230, (280, 280, 3), dtype=np.uint8)


def section(name="S1", um_per_px=1.0, shift=0.0, **obs):
    adata = AnnData(
        np.random.default_rng(1).poisson(3.0, (36, 12)).astype(np.float32) + 1,
        obs=pd.DataFrame(obs, index=[f"{name}_{i}" for i in range(36)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(12)]),
        obsm={"spatial": GRID + shift},
    )
    factors = {"tissue_hires_scalef": 1.0, "microns_per_pixel": um_per_px}
    adata.uns["spatial"] = {name: {"images": {"hires": IMAGE}, "scalefactors": factors}}
    return adata


def embed(adata, **options):
    embed_patches(adata, encoder="texture", n_views=1, patch_um=60, cache=False, **options)
    return adata


@pytest.mark.parametrize("spatial", [None, {}, {"is_single": True}, {"is_single": np.bool_(True), "note": "x"}])
def test_plain_entries_are_no_slices(spatial):
    adata = section()
    adata.uns["spatial"] = spatial
    assert libraries_of(adata) == {}


@pytest.mark.parametrize(
    ("spatial", "told"),
    [
        ([1], "uns\\['spatial'\\] is a list"),
        ({"a": [1]}, "\\['a'\\] is a list"),
        ({"a": {"images": [1]}}, "\\['images'\\] is a list"),
        ({"a": {"scalefactors": 3}}, "\\['scalefactors'\\] is a int"),
        ({"images": {}, "scalefactors": {}}, "Name the slice"),
        ({1: {}, "1": {}}, "two entries"),
    ],
)
@pytest.mark.parametrize("door", [slices_of, spatial_graph, embed_patches, STGCHB.setup_anndata])
def test_another_layout_is_refused_by_every_function_in_the_same_words(spatial, told, door):
    adata = section()
    adata.uns["spatial"] = spatial
    with pytest.raises(InputError, match=told):
        door(adata)


@pytest.mark.parametrize("found", [0.5, np.array(0.5), np.array([0.5]), [0.5], "0.5", b"0.5", np.float32(0.5)])
def test_scale_factors_in_every_form_that_files_hold(found):
    adata = section(um_per_px=found)
    assert slices_of(adata)[0].um_per_px == 0.5
    assert pixel_sizes(adata, sections_of(adata)) == {"S1": 0.5}


@pytest.mark.parametrize("found", [0, -1, np.nan, [1, 2], "x", True, {}])
def test_scale_factors_that_are_no_positive_number(found):
    with pytest.raises(ScaleError, match="microns_per_pixel"):
        slices_of(section(um_per_px=found))


@pytest.mark.parametrize("door", [sections_of, slices_of, spatial_graph, STGCHB.setup_anndata])
def test_a_column_that_is_there_twice_tells_no_slices_apart(door):
    adata = section(slice="S1")
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    with pytest.raises(SliceError, match="2 columns that are called 'slice'.*duplicated"):
        door(adata)


@pytest.mark.parametrize("door", [slices_of, spatial_graph, STGCHB.setup_anndata])
def test_names_of_two_levels_are_told(door):
    adata = section()
    adata.obs_names = pd.MultiIndex.from_arrays([adata.obs_names, adata.obs_names])
    with pytest.raises(InputError, match="obs_names have 2 levels.*Join them"):
        door(adata)


@pytest.mark.parametrize("factor", [1e308, 1e-300, 1e9])
def test_an_image_of_no_size_that_an_image_has(factor):
    adata = section()
    adata.uns["spatial"]["S1"]["scalefactors"]["tissue_hires_scalef"] = factor
    with pytest.raises(ScaleError, match="tissue_hires_scalef.*expected the size of image 'hires'"):
        slices_of(adata)


@pytest.mark.parametrize("path", [np.arange(3), np.array([]), pd.NA, AnnData(), 3, ["a.tif"]], ids=repr)
def test_a_path_of_the_image_that_is_no_text(path):
    adata = section()
    adata.uns["spatial"]["S1"]["metadata"] = {"source_image_path": path}
    with pytest.raises(InputError, match="expected the path of the full-resolution image as text"):
        slices_of(adata)


def test_a_path_of_the_image_that_no_system_can_have():
    adata = embed(section())
    adata.uns["spatial"]["S1"]["metadata"] = {"source_image_path": "x" * 5000}
    with pytest.raises(MissingFileError, match="is not there"):
        slices_of(adata)
    check_made(adata, "X_patch", sections_of(adata), "")


@pytest.mark.parametrize("listed", [["S1", [1, 2]], [["S1"], "S2"]], ids=repr)
def test_ragged_lists_of_sizes_in_the_features_provenance(listed):
    adata = embed(section())
    del adata.obsm["X_patch_made"]
    adata.uns["X_patch"] |= {"um_per_px": listed, "slices": ["S1", "S2"]}
    with pytest.raises(ScaleError, match="size of a pixel of slice 'S"):
        spatial_graph(adata)


def test_an_image_without_sides_is_no_other_image():
    adata = embed(section())
    adata.uns["spatial"]["S1"]["images"] = {"hires": np.array(3.0)}
    check_made(adata, "X_patch", sections_of(adata), "")


def test_one_slice_has_one_name_for_every_function():
    adata = section("library", slice="x")
    assert [one.name for one in slices_of(adata)] == ["x"]
    assert slices_of(adata)[0].um_per_px == 1.0
    assert set(sections_of(adata).rows) == {"x"}
    assert spatial_graph(section("library", slice="x")).unit == "um"


@pytest.mark.parametrize("data", [None, pd.DataFrame({"a": [1]}), np.ones((2, 2)), [section()], "a.h5ad"])
@pytest.mark.parametrize("door", [slices_of, spatial_graph, embed_patches, STGCHB.setup_anndata])
def test_other_objects_are_refused(data, door):
    with pytest.raises(InputError, match="AnnData"):
        door(data)


@pytest.mark.parametrize("door", [slices_of, spatial_graph, embed_patches, STGCHB.setup_anndata])
def test_objects_without_spots_are_refused(door):
    with pytest.raises(SliceError, match="no spots"):
        door(section()[:0].copy())


def test_sections_on_top_of_one_another_are_not_one_slice():
    parts = [section("sample", shift=7.0 * i) for i in range(2)]
    joined = anndata.concat(parts, label="library_id", keys=["A", "B"], uns_merge="first", index_unique="-")
    for door in (slices_of, spatial_graph, embed_patches, STGCHB.setup_anndata):
        with pytest.raises(SliceError, match="slice_key='library_id'"):
            door(joined.copy())


def test_places_of_the_array_that_occur_twice_are_two_sections():
    places = {"array_row": np.arange(36) // 6, "array_col": np.arange(36) % 6}
    parts = [section("sample", shift=7.0 * i, **places) for i in range(2)]
    joined = anndata.concat(parts, uns_merge="first", index_unique="-")
    with pytest.raises(SliceError, match="array_row"):
        slices_of(joined)


def test_groups_beside_one_another_are_told(caplog):
    adata = section(sample=["left", "right"] * 18)
    assert len(slices_of(adata)) == 1
    assert "slice_key='sample'" in caplog.text


def test_keys_that_name_no_slice_are_an_error_or_told(caplog):
    with pytest.raises(InputError, match=r"names \['s1'\].*Did you mean 'S1'"):
        slices_of(section(), um_per_px={"s1": 0.5})
    with pytest.raises(InputError, match="no such slice"):
        spatial_graph(section(), um_per_px={"other": 0.5})
    assert slices_of(section(), um_per_px={"S1": 1.0, "S2": 2.0})[0].um_per_px == 1.0
    assert "names ['S2']" in caplog.text


def test_one_slices_size_is_not_anothers(caplog):
    parts = [section("A", 0.5, slice="A"), section("B", 1.0, slice="B")]
    joined = anndata.concat(parts, uns_merge="first")
    joined.uns["spatial"] = {"A": parts[0].uns["spatial"]["A"]}
    assert pixel_sizes(joined, sections_of(joined)) == {"A": 0.5, "B": None}
    assert spatial_graph(joined).unit == "px"
    assert "not known for the slices ['B']" in caplog.text


@pytest.mark.parametrize("merge", ["unique", "first", "same", "only", None])
def test_sizes_survive_joining_whatever_becomes_of_uns(merge):
    parts = [embed(section(name, um, slice=name)) for name, um in (("A", 0.5), ("B", 1.0))]
    joined = anndata.concat(parts, uns_merge=merge)
    assert pixel_sizes(joined, sections_of(joined), features_key="X_patch") == {"A": 0.5, "B": 1.0}


def changed(change):
    adata = embed(section(slice="S1"))
    change(adata)
    return adata


def flip(adata):
    adata.obsm["spatial"] = np.column_stack([GRID[:, 0], GRID[::-1, 1]])


def reorder_positions(adata):
    adata.obsm["spatial"] = GRID[::-1].copy()


def other_image(adata):
    adata.uns["spatial"]["S1"]["images"]["hires"] = IMAGE[::-1].copy()


@pytest.mark.parametrize("change", [flip, reorder_positions, other_image])
def test_features_of_other_places_or_images_are_refused(change):
    with pytest.raises(StaleError, match="embed_patches again"):
        STGCHB.setup_anndata(changed(change))


def test_following_the_advice_makes_them_anew():
    adata = changed(flip)
    embed(adata)
    STGCHB.setup_anndata(adata)
    adata = changed(flip)
    del adata.obsm["X_patch_made"]
    STGCHB.setup_anndata(adata)


def test_parts_and_orders_of_embedded_objects_are_still_right():
    adata = embed(section(slice="S1"))
    STGCHB.setup_anndata(adata[::-1].copy())
    STGCHB.setup_anndata(adata[adata.obsm["spatial"][:, 0] < 200].copy())
    renamed = adata.copy()
    renamed.obs["slice"] = "other"
    renamed.obs_names = [f"n{i}" for i in range(36)]
    STGCHB.setup_anndata(renamed)


def test_features_without_places_are_taken_as_they_are(caplog):
    adata = embed(section(slice="S1"))
    del adata.obsm["X_patch_made"]
    with caplog.at_level(logging.INFO):
        STGCHB.setup_anndata(adata)
    assert "does not say at which positions" in caplog.text


def test_parts_that_were_made_in_different_ways_are_told_apart():
    parts = [section(name, slice=name) for name in "AB"]
    embed_patches(parts[0], encoder="texture", n_views=1, patch_um=60, cache=False)
    embed_patches(parts[1], encoder="texture", n_views=1, patch_um=90, cache=False)
    with pytest.raises(StaleError, match="2 different ways"):
        STGCHB.setup_anndata(anndata.concat(parts, uns_merge="first"))


def test_a_graph_of_other_positions_is_refused_and_made_anew():
    adata = section(slice="S1")
    spatial_graph(adata)
    adata.obsm["spatial"] = GRID * [1.0, 0.8]
    embed(adata)
    with pytest.raises(StaleError, match="another length"):
        STGCHB.setup_anndata(adata)
    del adata.obsp["spatial_connectivities"]
    STGCHB.setup_anndata(adata)
    STGCHB.setup_anndata(adata)


def test_no_position_is_half_checked(caplog):
    adata = section(slice="S1")
    adata.obsm["spatial"] = GRID - 500
    before = sorted(adata.obsm)
    with pytest.raises(CoordinateError):
        STGCHB.setup_anndata(adata)
    assert sorted(adata.obsm) == before
    assert "X_patch" not in adata.obsm


def test_readers_of_files_and_functions_agree_on_the_size(tmp_path):
    section(um_per_px=np.array([0.5])).write_h5ad(tmp_path / "a.h5ad")
    again = st_gchb.io.read_section(tmp_path / "a.h5ad")
    assert slices_of(again)[0].um_per_px == 0.5
