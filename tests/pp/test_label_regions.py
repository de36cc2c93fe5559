"""Spots are labeled with the class of the annotated region that holds them."""

from __future__ import annotations

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData

import st_gchb
from st_gchb._errors import CoordinateError, InputError, MissingKeyError, SliceError
from st_gchb.pp import label_regions

XY = np.array([[5.0, 5.0], [15.0, 5.0], [25.0, 5.0], [35.0, 5.0], [10.0, 5.0]])


def spots(**obs: list[str]) -> AnnData:
    return AnnData(obs=pd.DataFrame(obs, index=[f"s{i}" for i in range(len(XY))]), obsm={"spatial": XY.copy()})


def regions(*shapes: shapely.Geometry, **columns: list[str | None]) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=list(shapes))


def labels(adata: AnnData, key: str = "region_class") -> list[str | None]:
    return [None if pd.isna(label) else label for label in adata.obs[key]]


def test_a_spot_has_the_class_of_its_region_and_its_outline_counts():
    adata = spots()
    found = regions(shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10), classification=["Tumor", "Stroma"])
    assert label_regions(adata, found) is None
    assert labels(adata) == ["Tumor", None, "Stroma", None, "Tumor"]
    assert adata.obs["region_class"].cat.categories.tolist() == ["Stroma", "Tumor"]
    assert adata[adata.obs["region_class"] == "Tumor"].obs_names.tolist() == ["s0", "s4"]


def test_the_smallest_region_counts_whatever_the_order():
    large, small = shapely.box(0, 0, 40, 10), shapely.box(12, 0, 18, 10)
    for order in ([0, 1], [1, 0]):
        adata = spots()
        found = regions(large, small, classification=["Tissue", "Tumor"]).iloc[order]
        label_regions(adata, found)
        assert labels(adata) == ["Tissue", "Tumor", "Tissue", "Tissue", "Tissue"]


def test_holes_and_parts_of_regions_count():
    ring = shapely.box(0, 0, 40, 10) - shapely.box(12, 0, 18, 10)
    adata = spots()
    label_regions(adata, regions(shapely.MultiPolygon([*ring.geoms]), classification=["Tumor"]))
    assert labels(adata) == ["Tumor", None, "Tumor", "Tumor", "Tumor"]


def test_names_stand_in_for_classes():
    boxes = [shapely.box(x, 0, x + 9, 9) for x in (1, 11, 21)]
    adata = spots()
    found = regions(*boxes, classification=["Tumor", None, None], name=["a", "b", None])
    label_regions(adata, found, key_added="where")
    assert labels(adata, "where") == ["Tumor", "b", "unclassified", None, "Tumor"]


def test_slices_are_labeled_one_after_another():
    adata = spots(slice=["a", "a", "b", "b", "a"])
    first = regions(shapely.box(0, 0, 12, 10), classification=["Tumor"], class_color=["#c80000"])
    second = regions(shapely.box(0, 0, 40, 10), classification=["Stroma"], class_color=["#00c800"])
    label_regions(adata, first, slice="a")
    assert labels(adata) == ["Tumor", None, None, None, "Tumor"]
    assert adata.uns["region_class_colors"] == ["#c80000"]
    label_regions(adata, second, slice="b")
    assert labels(adata) == ["Tumor", None, "Stroma", "Stroma", "Tumor"]
    assert adata.uns["region_class_colors"] == ["#00c800", "#c80000"]
    label_regions(adata, regions(shapely.box(0, 0, 9, 10), classification=["New"]), slice="a")
    assert labels(adata) == ["New", None, "Stroma", "Stroma", None]
    assert "region_class_colors" not in adata.uns


def test_a_copy_leaves_the_object_as_it_was():
    adata = spots()
    found = label_regions(adata, regions(shapely.box(0, 0, 40, 10), classification=["Tumor"]), copy=True)
    assert "region_class" not in adata.obs
    assert labels(found) == ["Tumor"] * 5


def test_what_qupath_writes_labels_spots_and_is_a_region_of_interest(tmp_path):
    area = {"type": "Polygon", "coordinates": [[[0, 0], [100, 0], [100, 160], [0, 160], [0, 0]]]}
    text = str({"type": "Feature", "geometry": area, "properties": {"classification": "Tumor"}}).replace("'", '"')
    (tmp_path / "a.geojson").write_text(text)
    found = st_gchb.io.read_geojson(tmp_path / "a.geojson")
    slide = np.full((160, 240, 3), 200, np.uint8)
    options = {"um_per_px": 0.5, "spacing_um": 10, "grid": "square", "tissue": "all"}
    query = st_gchb.pp.tile_tissue(slide, **options)
    label_regions(query, found)
    inside = query[query.obs["region_class"] == "Tumor"]
    part = st_gchb.pp.tile_tissue(slide, roi=found[found.classification == "Tumor"], **options)
    assert set(inside.obs_names) == set(part.obs_names)
    assert 0 < len(inside) < len(query)


@pytest.mark.parametrize(
    ("found", "options", "error", "message"),
    [
        (regions(shapely.box(90, 90, 99, 99)), {}, CoordinateError, "lie apart from the spots"),
        (regions(), {}, InputError, "no region"),
        (regions(shapely.Point(5, 5)), {}, InputError, "region 1 of 1 is a Point"),
        (regions(shapely.box(0, 0, 9, 9), None), {}, InputError, "region 2 of 2 is empty"),
        (regions(shapely.Polygon()), {}, InputError, "region 1 of 1 is empty"),
        (regions(shapely.Polygon([[0, 0], [9, 9], [9, 0], [0, 9]])), {}, InputError, "repair=True"),
        (regions(shapely.box(0, 0, 9, 9)), {"slice": "x"}, SliceError, "has the slices"),
        (regions(shapely.box(0, 0, 9, 9)), {"key_added": "depth"}, InputError, "no labels"),
        (pd.DataFrame(), {}, InputError, "regions"),
    ],
)
def test_bad_regions_are_told_and_nothing_changes(found, options, error, message):
    adata = spots()
    adata.obs["depth"] = 1.5
    with pytest.raises(error, match=message):
        label_regions(adata, found, **options)
    assert list(adata.obs) == ["depth"]


def test_several_slices_and_absent_positions_are_told():
    found = regions(shapely.box(0, 0, 9, 9))
    with pytest.raises(SliceError, match="Pass its name"):
        label_regions(spots(slice=list("aabba")), found)
    with pytest.raises(MissingKeyError, match="is absent"):
        label_regions(AnnData(obs=pd.DataFrame(index=["a"])), found)
