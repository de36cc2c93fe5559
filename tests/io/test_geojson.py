"""GeoJSON for QuPath: what is written is valid and is read back, and what is damaged is told."""

from __future__ import annotations

import errno
import gzip
import json
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import sparse

import st_gchb
from st_gchb._errors import (
    CoordinateError,
    InputError,
    MissingFileError,
    MissingKeyError,
    ScaleError,
    SliceError,
    StoreError,
)
from st_gchb.io import read_geojson, write_geojson

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SQUARE = [[0, 0], [40, 0], [40, 30], [0, 30], [0, 0]]
HOLE = [[10, 10], [10, 20], [20, 20], [20, 10], [10, 10]]


def prediction(n: int = 6, n_genes: int = 3, **obs: Any) -> AnnData:
    """A result as ``model.predict`` gives it, of spots in two rows."""
    rng = np.random.default_rng(0)
    values = rng.random((n, n_genes), dtype=np.float32)
    names = [f"AAAC{i}-1" for i in range(n)]
    columns = {"st_gchb_confidence": rng.random(n), "st_gchb_outlier": np.arange(n) == 1, **obs}
    pred = AnnData(
        values, obs=pd.DataFrame(columns, index=names), var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    )
    pred.layers["st_gchb"] = values + 1
    pred.obsm["spatial"] = np.column_stack([200.0 * (np.arange(n) // 2) + 300, 200.0 * (np.arange(n) % 2) + 100])
    pred.uns["spatial"] = {"S1": {"images": {}, "scalefactors": {"spot_diameter_fullres": 110.0}}}
    return pred


def tiles(grid: str) -> AnnData:
    slide = np.full((200, 260, 3), 200, np.uint8)
    return st_gchb.pp.tile_tissue(slide, um_per_px=0.5, spacing_um=20, tissue="all", grid=grid, name="S1")


def written(data: Any, folder: Path, *args: Any, name: str = "out.geojson", **options: Any) -> dict[str, Any]:
    write_geojson(data, folder / name, *args, **options)
    raw = (folder / name).read_bytes()
    content = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw, parse_constant=pytest.fail)
    check_geojson(content)
    return content


# ---- The rules of RFC 7946, and those of QuPath's reader ----


def check_geojson(content: dict[str, Any]) -> None:
    assert set(content) == {"type", "features"}
    assert content["type"] == "FeatureCollection"
    ids = [feature["id"] for feature in content["features"]]
    assert len(set(ids)) == len(ids)
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]  # QuPath ignores others
        check_geometry(feature["geometry"])
        check_properties(feature["properties"])


def check_geometry(geometry: dict[str, Any]) -> None:
    parts = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
    for rings in parts.get(geometry["type"], []):
        for number, ring in enumerate(rings):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(position) == 2 and all(type(x) in (int, float) for x in position) for position in ring)
            # 3.1.6: outlines are counterclockwise, holes clockwise.
            assert shapely.LinearRing(ring).is_ccw == (number == 0)
    assert shapely.geometry.shape(geometry).is_valid


def check_properties(properties: dict[str, Any]) -> None:
    known = {"objectType", "name", "classification", "color", "measurements", "metadata"}
    assert set(properties) <= known, "QuPath drops all others"
    assert properties["objectType"] in {"annotation", "detection", "cell", "tile", "tmaCore"}
    # QuPath refuses the whole file where a class has a name and no color.
    if "classification" in properties:
        assert {"color"} < set(properties["classification"]) <= {"color", "name", "names"}
        assert all(type(part) is int and 0 <= part <= 255 for part in properties["classification"]["color"])
    for name, value in properties.get("measurements", {}).items():
        assert isinstance(name, str)
        assert type(value) in (int, float) or value in ("NaN", "Infinity", "-Infinity")
    assert all(isinstance(value, str) for value in properties.get("metadata", {}).values())


# ---- Spots and tiles ----


def test_spots_are_detections_with_expression_confidence_and_outlier(tmp_path):
    pred = prediction()
    content = written(pred, tmp_path, ["G2", "G0"])
    assert len(content["features"]) == pred.n_obs
    for i, feature in enumerate(content["features"]):
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["name"] == pred.obs_names[i]
        assert feature["properties"]["metadata"] == {"slice": "S1"}
        measured = feature["properties"]["measurements"]
        assert list(measured) == ["st_gchb_confidence", "st_gchb_outlier", "G2", "G0"]
        assert measured["G2"] == pytest.approx(pred.layers["st_gchb"][i, 2], rel=1e-6)
        assert measured["G0"] == pytest.approx(pred.layers["st_gchb"][i, 0], rel=1e-6)
        assert measured["st_gchb_confidence"] == pytest.approx(pred.obs["st_gchb_confidence"].iloc[i])
        assert measured["st_gchb_outlier"] == int(i == 1)
        outline = shapely.geometry.shape(feature["geometry"])
        assert feature["geometry"]["isEllipse"] is True
        assert outline.centroid.coords[0] == pytest.approx(pred.obsm["spatial"][i], abs=0.01)
        left, top, right, bottom = outline.bounds
        assert (right - left, bottom - top) == pytest.approx((110, 110), abs=0.02)


def test_all_genes_are_written_by_default_and_none_for_an_empty_list(tmp_path):
    first = written(prediction(), tmp_path)["features"][0]["properties"]
    assert list(first["measurements"])[2:] == ["G0", "G1", "G2"]
    assert list(written(prediction(), tmp_path, [])["features"][0]["properties"]["measurements"])[2:] == []
    bare = AnnData(obsm={"spatial": np.array([[10.0, 20.0], [50.0, 20.0]])})
    content = written(bare, tmp_path, diameter_px=10)
    assert [feature["properties"]["measurements"] for feature in content["features"]] == [{}, {}]


def test_tiles_in_rows_and_columns_are_squares_of_their_side(tmp_path):
    query = tiles("square")
    content = written(query, tmp_path)
    for center, feature in zip(query.obsm["spatial"], content["features"], strict=True):
        assert feature["properties"]["objectType"] == "tile"
        assert list(feature["properties"]["measurements"]) == ["tissue_share"]
        assert shapely.geometry.shape(feature["geometry"]).equals(shapely.box(*(center - 20), *(center + 20)))
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in content["features"]]
    assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes))


def test_other_tiles_are_circles_unless_squares_are_asked_for(tmp_path):
    query = tiles("hex")
    assert all("isEllipse" in feature["geometry"] for feature in written(query, tmp_path)["features"])
    squares = written(query, tmp_path, shape="square")["features"]
    assert {len(feature["geometry"]["coordinates"][0]) for feature in squares} == {5}


def test_bins_of_visium_hd_are_squares(tmp_path):
    pred = prediction()
    pred.uns["spatial"] = {"sample_square_016um": pred.uns["spatial"]["S1"]}
    features = written(pred, tmp_path)["features"]
    assert {one["properties"]["objectType"] for one in features} == {"tile"}
    assert shapely.geometry.shape(features[0]["geometry"]).equals(shapely.box(245, 45, 355, 155))


def test_a_viewer_that_crops_has_its_own_origin(tmp_path):
    at = [written(prediction(), tmp_path, origin_px=where)["features"][0] for where in ((0, 0), (120, 30.5))]
    first, second = (np.array(feature["geometry"]["coordinates"][0]) for feature in at)
    np.testing.assert_allclose(first - second, np.broadcast_to([120, 30.5], first.shape), atol=0.011)


def test_ids_are_those_of_the_spot_whatever_is_written_with_it(tmp_path):
    pred = prediction()
    ids = [feature["id"] for feature in written(pred, tmp_path)["features"]]
    assert [feature["id"] for feature in written(pred[::-1].copy(), tmp_path, "G1")["features"]] == ids[::-1]
    pred.uns["spatial"] = {"S2": pred.uns["spatial"]["S1"]}
    assert not {feature["id"] for feature in written(pred, tmp_path)["features"]} & set(ids)


def test_equal_content_gives_equal_files_and_compression_the_same_content(tmp_path):
    names = ["a.geojson", "b.geojson", "a.geojson.gz", "b.GeoJSON.gz", "c.json"]
    contents = [written(prediction(), tmp_path, name=name.replace("GeoJSON", "geojson")) for name in names]
    assert all(content == contents[0] for content in contents)
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()


NAMES = ['say "when"', "back\\slash", "100%", "%s%d", "µ-α", "line\nbreak", "HLA-A/B", "{brace}", " "]


def test_names_are_escaped(tmp_path):
    pred = prediction(n_genes=len(NAMES))
    pred.var_names, pred.obs_names = NAMES, NAMES[: pred.n_obs]
    pred.obs["class"] = NAMES[: pred.n_obs]
    features = written(pred, tmp_path, classification="class")["features"]
    assert [feature["properties"]["name"] for feature in features] == NAMES[: pred.n_obs]
    assert [feature["properties"]["classification"]["name"] for feature in features] == NAMES[: pred.n_obs]
    assert list(features[0]["properties"]["measurements"])[2:] == NAMES


def test_values_that_are_not_finite_are_left_out(tmp_path):
    pred = prediction()
    pred.layers["st_gchb"][0, 1] = np.nan
    pred.layers["st_gchb"][2] = [np.inf, -np.inf, 5]
    pred.obs.loc[pred.obs_names[3], "st_gchb_confidence"] = np.nan
    measured = [feature["properties"]["measurements"] for feature in written(pred, tmp_path)["features"]]
    assert list(measured[0])[2:] == ["G0", "G2"]
    assert list(measured[2])[2:] == ["G2"]
    assert list(measured[3]) == ["st_gchb_outlier", "G0", "G1", "G2"]


def test_counts_keep_their_digits(tmp_path):
    adata = prediction()
    adata.X = np.array([[123456789, 0, 1]] * adata.n_obs)
    assert written(adata, tmp_path, "G0", layer=None)["features"][0]["properties"]["measurements"]["G0"] == 123456789


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asfortranarray])
def test_any_matrix_gives_the_same_file(make, tmp_path):
    pred = prediction()
    expected = written(pred, tmp_path)
    pred.layers["st_gchb"] = make(pred.layers["st_gchb"])
    assert written(pred, tmp_path) == expected


def test_a_file_on_disk_and_many_blocks_give_the_same_file(tmp_path, monkeypatch):
    pred = prediction()
    expected = written(pred, tmp_path, layer=None)
    pred.write_h5ad(tmp_path / "pred.h5ad")
    import anndata

    monkeypatch.setattr("st_gchb.io._viewer_spots._BLOCK", 6)
    assert written(anndata.read_h5ad(tmp_path / "pred.h5ad", backed="r"), tmp_path, layer=None) == expected


def test_classes_have_the_colors_of_scanpy_or_others(tmp_path):
    labels = pd.Categorical(["b", "a", None, "a", "Tumor: Positive", "b"], categories=["b", "a", "Tumor: Positive"])
    pred = prediction(cluster=labels)
    features = written(pred, tmp_path, classification="cluster")["features"]
    classes = [feature["properties"].get("classification") for feature in features]
    assert classes[2] is None
    assert classes[4]["names"] == ["Tumor", "Positive"]
    assert classes[1] == classes[3] != classes[0] == classes[5]
    pred.uns["cluster_colors"] = ["#102030", "#ff0000", "#00ff00"]
    features = written(pred, tmp_path, classification="cluster")["features"]
    assert features[0]["properties"]["classification"] == {"name": "b", "color": [16, 32, 48]}


def two_slices() -> AnnData:
    pred = prediction(slice=["S1", "S2"] * 3)
    entry = pred.uns["spatial"]["S1"]
    pred.uns["spatial"] = {"S1": entry, "S2": {**entry, "scalefactors": {"spot_diameter_fullres": 50.0}}}
    return pred


def test_one_slice_of_several_is_written(tmp_path):
    pred = two_slices()
    features = written(pred, tmp_path, slice="S2")["features"]
    assert [feature["properties"]["name"] for feature in features] == list(pred.obs_names[1::2])
    measured = [feature["properties"]["measurements"]["G1"] for feature in features]
    np.testing.assert_allclose(measured, pred.layers["st_gchb"][1::2, 1], rtol=1e-6)
    confidence = [feature["properties"]["measurements"]["st_gchb_confidence"] for feature in features]
    np.testing.assert_allclose(confidence, pred.obs["st_gchb_confidence"][1::2])
    assert np.ptp(np.array(features[0]["geometry"]["coordinates"][0])[:, 0]) == pytest.approx(50)


def test_a_table_of_a_spatialdata_is_written(tmp_path):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    slide = Image2DModel.parse(np.full((3, 200, 260), 200, np.uint8), dims=("c", "y", "x"))
    sdata = st_gchb.pp.tile_tissue(
        SpatialData(images={"he": slide}), um_per_px=0.5, spacing_um=20, tissue="all", grid="square"
    )
    content = written(sdata, tmp_path, table="tiles_table")
    assert content["features"][0]["geometry"]["coordinates"][0][2] == [0.0, 0.0]
    del sdata.tables["tiles_table"].obsm["spatial"]
    with pytest.raises(MissingKeyError, match="resolve"):
        write_geojson(sdata, tmp_path / "b.geojson", table="tiles_table")
    with pytest.raises(MissingKeyError, match="takes one of"):
        write_geojson(sdata, tmp_path / "b.geojson")


def without(key: str) -> AnnData:
    pred = prediction()
    del (pred.obsm if key == "spatial" else pred.layers)[key]
    return pred


def changed(**parts: Any) -> AnnData:
    pred = prediction()
    for name, value in parts.items():
        setattr(pred, name, value)
    return pred


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (prediction(), {"genes": ["G1", "g2"]}, MissingKeyError, r"nearest names are \['G2'"),
        (prediction(), {"genes": ["nothing like it"]}, MissingKeyError, "its genes are"),
        (prediction(), {"genes": ["G1", "G1"]}, InputError, "more than once"),
        (prediction(G1=range(6)), {}, InputError, "is a gene and a column"),
        (prediction(where=["x"] * 6), {"genes": "where"}, InputError, "expected numbers"),
        (changed(var_names=["A", "A", "B"]), {"genes": "A"}, InputError, "several genes"),
        (changed(obs_names=["a"] * 6), {}, InputError, "row names occur twice"),
        (without("st_gchb"), {}, MissingKeyError, "no layer 'st_gchb'.*None for X"),
        (without("spatial"), {}, MissingKeyError, "is absent"),
        (changed(obsm={"spatial": np.full((6, 2), np.nan)}), {}, CoordinateError, "NaN"),
        (changed(uns={}), {}, ScaleError, "diameter_px="),
        (prediction(), {"diameter_px": 0.2}, ScaleError, "full-resolution"),
        (prediction(), {"diameter_px": 0}, ScaleError, "diameter"),
        (prediction(), {"origin_px": (np.nan, 0)}, InputError, "origin_px"),
        (prediction(), {"classification": "none"}, InputError, "no column 'none'"),
        (prediction(), {"slice": "S9"}, SliceError, "no slice 'S9'"),
        (prediction(), {"table": 3}, InputError, "table"),
        (two_slices(), {}, SliceError, r"slice= with one of \['S1', 'S2'\]"),
        ({"a": 1}, {}, InputError, "expected"),
        (pd.DataFrame(), {}, InputError, "expected"),
        (prediction()[:0].copy(), {}, SliceError, "no spots"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_left(data, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write_geojson(data, tmp_path / "out.geojson", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.csv", "out", "out.geojson.zip", "geojson", ".gz"])
def test_names_by_which_no_viewer_opens_the_file_are_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.geojson"):
        write_geojson(prediction(), tmp_path / name)


class Full:
    """A file on a full disk, after the first bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, 2000

    def write(self, content: bytes) -> int:
        self.left -= len(content)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("name", ["out.geojson", "out.geojson.gz"])
def test_a_full_disk_leaves_the_earlier_file(name, tmp_path, monkeypatch):
    (tmp_path / name).write_text("earlier")

    class Packed(gzip.GzipFile):
        def __init__(self, name: str, mode: str, level: int, raw: Any, **options: Any) -> None:
            super().__init__(name, mode, level, Full(raw), **options)

    class Text(st_gchb.io._write_geojson.io.TextIOWrapper):
        def write(self, text: str) -> int:
            if self.tell() > 2000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    if name.endswith(".gz"):
        monkeypatch.setattr("st_gchb.io._write_geojson.gzip.GzipFile", Packed)
    else:
        monkeypatch.setattr("st_gchb.io._write_geojson.io.TextIOWrapper", Text)
    pred = prediction(400, 40)
    with pytest.raises(StoreError, match="No space left"):
        write_geojson(pred, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "earlier"


def test_a_place_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Name another place"):
        write_geojson(prediction(), tmp_path / "file" / "out.geojson")


def test_memory_does_not_grow_with_the_number_of_spots(tmp_path, monkeypatch):
    monkeypatch.setattr("st_gchb.io._viewer_spots._BLOCK", 2**16)
    peaks = []
    for n in (300, 600):
        pred = prediction(n, 400)
        tracemalloc.start()
        write_geojson(pred, tmp_path / "out.geojson")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The values of 300 more spots are 0.5 MB as float32, and their text is 1.4 MB.
    assert peaks[1] - peaks[0] < 0.32e6


# ---- Regions ----


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def read(content: Any, folder: Path, **options: Any) -> geopandas.GeoDataFrame:
    (folder / "in.geojson").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_geojson(folder / "in.geojson", **options)


@pytest.mark.parametrize(
    "content",
    [
        polygon(SQUARE),
        feature(polygon(SQUARE)),
        [feature(polygon(SQUARE))],
        [polygon(SQUARE)],
        {"type": "FeatureCollection", "features": [feature(polygon(SQUARE))]},
        [{"type": "FeatureCollection", "features": [polygon(SQUARE)]}],
        {"type": "Feature", "geometry": polygon(SQUARE), "properties": None},
        feature(polygon([[*position, 7.5] for position in SQUARE])),
    ],
)
def test_all_forms_are_read(content, tmp_path):
    regions = read(content, tmp_path)
    assert regions.crs is None
    assert [shape.equals(shapely.box(0, 0, 40, 30)) for shape in regions.geometry] == [True]
    assert list(regions.columns) == ["id", "object_type", "name", "classification", "class_color", "color", "geometry"]
    assert regions.object_type.tolist() == ["annotation"]
    assert regions.name.tolist() == [None]


def test_holes_and_several_parts_are_kept(tmp_path):
    regions = read(
        [
            polygon(SQUARE, HOLE),
            {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [[[50, 0], [60, 0], [60, 9], [50, 0]]]]},
        ],
        tmp_path,
    )
    assert regions.area.tolist() == [1100, 1145]
    assert regions.geom_type.tolist() == ["Polygon", "MultiPolygon"]


@pytest.mark.parametrize(
    ("value", "label", "color"),
    [
        (None, None, None),
        ("Tumor", "Tumor", None),
        ({"name": "Tumor", "color": [200, 0, 1]}, "Tumor", "#c80001"),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor", "#c80000"),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3, 4]}, "Tumor: Positive", "#01020304"),
        ({"name": None}, None, None),
    ],
)
def test_classes_of_all_versions_are_read(value, label, color, tmp_path):
    regions = read(feature(polygon(SQUARE), classification=value), tmp_path)
    assert (regions.classification[0], regions.class_color[0]) == (label, color)


def test_what_an_object_holds_is_read(tmp_path):
    inner = feature(polygon(HOLE), name="inner", measurements=[{"name": "a", "value": 1}, {"name": "b"}])
    outer = feature(
        polygon(SQUARE),
        objectType="detection",
        name="outer",
        color=[0, 128, 255],
        measurements={"Area µm^2": 5.5, "none": None, "odd": "NaN", "far": "-Infinity"},
        metadata={"slice": "S1", "deep": {"x": 1}},
        childObjects=[inner],
    )
    regions = read(
        {"type": "FeatureCollection", "features": [outer | {"id": "x1"}, feature(polygon(SQUARE))]}, tmp_path
    )
    assert regions.name.tolist() == ["outer", "inner", None]
    assert regions.id.tolist() == ["x1", None, None]
    assert regions.object_type.tolist() == ["detection", "annotation", "annotation"]
    assert regions.color.tolist() == ["#0080ff", None, None]
    assert regions.metadata.tolist() == [{"slice": "S1"}, {}, {}]
    assert regions.measurements[1] == {"a": 1.0}
    assert list(regions.measurements[0]) == ["Area µm^2", "odd", "far"]
    assert np.isnan(regions.measurements[0]["odd"])


def test_a_key_that_qupath_writes_twice_and_a_byte_order_mark_are_read(tmp_path):
    text = json.dumps(feature(polygon(SQUARE), metadata={"a": "b"}))
    text = text.replace('"metadata"', '"metadata": {"a": "b"}, "metadata"')
    assert read("\ufeff" + text, tmp_path).metadata[0] == {"a": "b"}


def test_an_empty_collection_has_no_regions(tmp_path):
    regions = read({"type": "FeatureCollection", "features": []}, tmp_path)
    assert len(regions) == 0
    assert "geometry" in regions


def refused(content: Any, folder: Path, **options: Any) -> str | None:
    """Words of the error; None where the file was read. Any other error fails the test."""
    try:
        read(content, folder, **options)
    except InputError as error:
        return str(error)
    return None


BAD = [
    (feature(polygon(SQUARE[:-1])), "the outline is not closed.*repair=True"),
    (feature(polygon(SQUARE, HOLE[:-1])), "hole 1 is not closed"),
    (feature(polygon(SQUARE[:3])), "has 3 positions"),
    (feature(polygon([[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]])), r"not valid: Self-intersection\[5 5\]"),
    (feature(polygon(HOLE, SQUARE)), "not valid: Hole lies outside"),
    (feature(polygon()), "is empty"),
    (feature(polygon([])), r"empty list; expected a list of positions"),
    (feature({"type": "MultiPolygon", "coordinates": []}), "is empty"),
    (feature({"type": "MultiPolygon", "coordinates": [SQUARE]}), "a position is"),
    (feature(None), "it has no geometry"),
    (feature([1, 2]), "the geometry is a list of 2"),
    (feature({"type": "Polygon"}), "null for coordinates"),
    (feature({"type": "Circle", "coordinates": [1, 2]}), "of type 'Circle'"),
    (feature({"type": "GeometryCollection", "geometries": []}), "Split it into one feature"),
    (feature(polygon([[0, 0], ["40", 0], [40, 30], [0, 0]])), "a position is"),
    (feature(polygon([[0, 0], [True, 0], [40, 30], [0, 0]])), "a position is"),
    (feature(polygon([[0, 0], [40], [40, 30], [0, 0]])), "a position is a list of 1"),
    (feature(polygon([[0, 0], [float("nan"), 0], [40, 30], [0, 0]])), "1 positions are NaN"),
    (feature(polygon([[0, 0], [10**400, 0], [40, 30], [0, 0]])), "beyond all numbers"),
    (feature({"type": "LineString", "coordinates": [[0, 0]]}), "one position"),
    (feature(polygon(SQUARE), classification=["x"]), "the classification is a list of 1"),
    (feature(polygon(SQUARE), classification={"name": "x", "color": [1, 2, 300]}), "color of the class"),
    (feature(polygon(SQUARE), color="red"), "the color is 'red'"),
    (feature(polygon(SQUARE), measurements=3), "measurements are 3"),
    (feature(polygon(SQUARE), measurements={"a": "many"}), "the measurement 'a' is 'many'"),
    (feature(polygon(SQUARE), metadata=[1]), "metadata are"),
    ({"type": "Feature", "geometry": polygon(SQUARE), "properties": [1]}, "properties are a list of 1"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_feature_is_named_by_number_and_name(content, message, tmp_path):
    if isinstance(content["properties"], dict):
        content = content | {"properties": {**content["properties"], "name": "node 7"}}
    with pytest.raises(InputError, match=message) as raised:
        read([feature(polygon(SQUARE)), content, feature(polygon(SQUARE))], tmp_path)
    assert "in.geojson cannot be read as GeoJSON: feature 2 of 3" in str(raised.value)
    assert isinstance(content["properties"], list) or "('node 7')" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON"),
        ("", "it is no JSON"),
        ("3", "found 3"),
        ("null", "found null"),
        ('{"type": "Topology"}', "type 'Topology'"),
        ('{"type": "FeatureCollection"}', "for features"),
        ('{"features": []}', "expected a FeatureCollection"),
        ("[" * 100_000, "it is no JSON"),
        ('{"type":"FeatureCollection","features":[{"type":"Feature"', "it is no JSON"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(text, tmp_path)


def test_files_that_are_not_there_or_damaged_are_told(tmp_path):
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_geojson(tmp_path / "none.geojson")
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_geojson(tmp_path)
    whole = gzip.compress(json.dumps(polygon(SQUARE)).encode())
    (tmp_path / "a.geojson.gz").write_bytes(whole)
    assert len(read_geojson(tmp_path / "a.geojson.gz")) == 1
    for n in range(4, len(whole)):
        (tmp_path / "a.geojson.gz").write_bytes(whole[:n])
        with pytest.raises(InputError, match="cannot be read as GeoJSON"):
            read_geojson(tmp_path / "a.geojson.gz")


def test_rings_are_repaired_if_asked_for(tmp_path):
    bow = polygon([[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]])
    regions = read([feature(polygon(SQUARE[:-1])), feature(bow)], tmp_path, repair=True)
    assert regions.is_valid.all()
    assert regions.area.tolist() == [1200, 50]
    with pytest.raises(InputError, match="has no area"):
        read(feature(polygon([[0, 0], [1, 1], [2, 2], [0, 0]])), tmp_path, repair=True)


NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def polygons(draw: Any) -> shapely.Polygon:
    """A star around a center, with a hole or without: valid by construction."""
    x, y, size = draw(NUMBERS), draw(NUMBERS), draw(st.floats(1, 1e4))
    n = draw(st.integers(3, 9))
    radii = np.array(draw(st.lists(st.floats(0.5, 1), min_size=n, max_size=n))) * size
    angles = 2 * np.pi * np.arange(n) / n
    rim = np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])
    holes = [rim * 0.25 + [x, y]] if draw(st.booleans()) else []
    return shapely.Polygon(rim + [x, y], holes)


@st.composite
def regions_of(draw: Any) -> geopandas.GeoDataFrame:
    texts = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=9))
    colors = st.one_of(st.none(), st.integers(0, 2**24 - 1).map("#{:06x}".format))
    shapes = draw(st.lists(polygons(), min_size=1, max_size=4))
    if draw(st.booleans()):
        far = shapely.affinity.translate(shapes[0], 1e5)
        shapes[0] = shapely.MultiPolygon([shapes[0], far])
    n = len(shapes)
    columns = {
        "id": draw(st.lists(st.one_of(st.none(), st.uuids().map(str)), min_size=n, max_size=n, unique=False)),
        "object_type": draw(st.lists(st.sampled_from(["annotation", "detection"]), min_size=n, max_size=n)),
        "name": draw(st.lists(texts, min_size=n, max_size=n)),
        "classification": draw(st.lists(texts, min_size=n, max_size=n)),
        "color": draw(st.lists(colors, min_size=n, max_size=n)),
        "measurements": [
            draw(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.floats(), max_size=3))
            for _ in range(n)
        ],
    }
    frame = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    return geopandas.GeoDataFrame(frame, geometry=shapes)


@QUICK
@given(regions=regions_of())
def test_regions_are_read_back_as_they_were_written(regions, tmp_path):
    write_geojson(regions, tmp_path / "a.geojson")
    check_geojson(json.loads((tmp_path / "a.geojson").read_text()))
    back = read_geojson(tmp_path / "a.geojson")
    assert shapely.equals_exact(
        shapely.normalize(back.geometry.to_numpy()), shapely.normalize(regions.geometry.to_numpy()), tolerance=0
    ).all()
    for name in ("object_type", "name", "classification", "color"):
        assert back[name].tolist() == regions[name].tolist(), name
    told = regions.measurements.tolist()
    found = back["measurements"].tolist() if "measurements" in back else [{}] * len(back)
    for one, other in zip(found, told, strict=True):
        np.testing.assert_equal(one, other)
    # What was read once is written and read the same, ids and the colors of classes included.
    write_geojson(back, tmp_path / "b.geojson")
    assert (tmp_path / "b.geojson").read_bytes() == (tmp_path / "a.geojson").read_bytes()
    pd.testing.assert_frame_equal(pd.DataFrame(read_geojson(tmp_path / "b.geojson")), pd.DataFrame(back))


WHOLE = json.dumps(
    [
        feature(polygon(SQUARE, HOLE), name="a", classification={"name": "T", "color": [1, 2, 3]}, color=[1, 2, 3]),
        feature({"type": "MultiPolygon", "coordinates": [[SQUARE]]}, measurements={"x": 1.5}, childObjects=[]),
        feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, metadata={"k": "v"}),
    ]
)
PIECES = ["null", "true", "-1", "1e999", '"x"', "[]", "{}", "NaN", "[[]]", '{"type":"Feature"}', "", ",", "]", "0.5"]


@settings(QUICK, max_examples=300)
@given(data=st.data())
def test_damaged_files_raise_the_packages_error_alone(data, tmp_path):
    start = data.draw(st.integers(0, len(WHOLE) - 1))
    end = data.draw(st.integers(start, min(start + 12, len(WHOLE))))
    text = WHOLE[:start] + data.draw(st.sampled_from(PIECES)) + WHOLE[end:]
    words = refused(text, tmp_path, repair=data.draw(st.booleans()))
    assert words is None or "in.geojson cannot be read as GeoJSON" in words


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.sampled_from(["Polygon", "Feature", "x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.sampled_from(["type", "geometry", "coordinates", "properties", "name", "color"]), inner),
    ),
    max_leaves=12,
)


PLACES = ["geometry", "coordinates", "ring", "classification", "measurements", "color"]


@settings(QUICK, max_examples=200)
@given(value=JSON, place=st.sampled_from(PLACES))
def test_any_value_anywhere_is_taken_or_refused_in_words(value, place, tmp_path):
    shapes = {
        "geometry": value,
        "coordinates": {"type": "MultiPolygon", "coordinates": value},
        "ring": polygon(SQUARE, value),
    }
    content = feature(shapes[place]) if place in shapes else feature(polygon(SQUARE), **{place: value})
    words = refused(content, tmp_path)
    assert words is None or "feature 1 of 1" in words


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (None, "region 2 of 2 has no geometry"),
        (shapely.Polygon(), "region 2 of 2 has no geometry"),
        (shapely.GeometryCollection([shapely.Point(1, 2)]), "explode"),
        (shapely.Polygon([[0, 0], [1, 1], [1, 0], [0, 1]]), "not valid: Self-intersection"),
        (shapely.Point(np.inf, 0), "NaN or infinite"),
    ],
)
def test_regions_that_no_viewer_reads_are_not_written(geometry, message, tmp_path):
    regions = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1), geometry])
    with pytest.raises(InputError, match=message):
        write_geojson(regions, tmp_path / "a.geojson")
    assert list(tmp_path.iterdir()) == []


def test_regions_take_no_options_of_spots(tmp_path):
    with pytest.raises(InputError, match="genes="):
        write_geojson(geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]), tmp_path / "a.geojson", "G1")


def test_spots_are_read_as_regions_and_written_alike(tmp_path):
    content = written(prediction(), tmp_path, name="a.geojson")
    back = read_geojson(tmp_path / "a.geojson")
    assert back.id.tolist() == [one["id"] for one in content["features"]]
    assert back.measurements.tolist() == [one["properties"]["measurements"] for one in content["features"]]
