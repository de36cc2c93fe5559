"""``st-gchb predict --slide``: an image, a store or a folder, with spots of its own or a grid laid on it."""

from __future__ import annotations

import argparse
import json

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import st_gchb
from st_gchb.cli import main, read_areas, spacing_um
from st_gchb.model import STGCHB


@pytest.fixture(scope="module")
def pixels(tissue):
    """Section S3, 1 µm per px."""
    return tissue.uns["spatial"]["S3"]["images"]["hires"]


@pytest.fixture(scope="module")
def image(pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "biopsy.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def store(pixels, tmp_path_factory):
    """The slide in a SpatialData store, without spots."""
    path = tmp_path_factory.mktemp("store") / "biopsy.zarr"
    SpatialData(images={"he": Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))}).write(path)
    return path


def square(*corners):
    ring = [*corners, corners[0]]
    return {"type": "Polygon", "coordinates": [ring]}


REGION = square([200, 200], [500, 200], [500, 700], [200, 700])


def test_a_bare_image(model, image, pixels, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["predict", "--model", model, "--slide", image, "--um-per-px", "1", "--spacing", "80um", "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    assert "spots x 20 genes written" in capsys.readouterr().out
    prediction = anndata.read_h5ad(out / "prediction.h5ad")
    query = st_gchb.pp.tile_tissue(pixels, um_per_px=1.0, spacing_um=80)
    expected = STGCHB.load(model, accelerator="cpu").predict(query)
    np.testing.assert_array_equal(prediction.layers["st_gchb"], expected.layers["st_gchb"])
    assert prediction.uns["tiles"]["spacing_um"] == 80 if "tiles" in prediction.uns else True
    spots = pd.read_csv(out / "spots.csv", index_col=0)
    np.testing.assert_allclose(spots[["x_px", "y_px"]], prediction.obsm["spatial"])
    with Image.open(out / "biopsy.png") as image:
        assert min(image.size) > 200


@pytest.mark.usefixtures("sketched_figures")
def test_a_region_of_a_store(model, store, pixels, tmp_path):
    region = tmp_path / "roi.geojson"
    region.write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": REGION}]}))
    out = tmp_path / "out"
    options = ["--um-per-px", "1", "--spacing", "0.06mm", "--grid", "square", "--roi", region, "--out", out]
    assert main(["predict", "--model", str(model), "--slide", str(store), *map(str, options)]) == 0
    prediction = anndata.read_h5ad(out / "prediction.h5ad")
    query = st_gchb.pp.tile_tissue(
        pixels, um_per_px=1.0, spacing_um=60, grid="square", roi=[(200, 200), (500, 200), (500, 700), (200, 700)]
    )
    np.testing.assert_allclose(prediction.obsm["spatial"], query.obsm["spatial"], atol=1e-6)
    assert {path.suffix for path in out.iterdir()} == {".h5ad", ".csv", ".png"}


@pytest.mark.usefixtures("sketched_figures")
def test_slices_are_written_for_qupath(model, image, slides, tmp_path):
    out = tmp_path / "out"
    genes = ["--genes", *anndata.read_h5ad(slides).var_names[:2]]
    where = ["--slide", image, "--um-per-px", "1", "--spacing", "80um", "--grid", "square"]
    for source in (where, ["--data", slides]):
        arguments = ["predict", "--model", model, *source, *genes, "--geojson", "--out", out]
        assert main([str(argument) for argument in arguments]) == 0
        prediction = anndata.read_h5ad(out / "prediction.h5ad")
        assert prediction.obs["slice"].nunique() > (source is not where)
        for name, rows in prediction.obs.groupby("slice", observed=True).indices.items():
            spots = st_gchb.io.read_geojson(out / f"{name}.geojson")
            part = prediction[rows]
            assert spots.name.tolist() == part.obs_names.tolist()
            assert set(spots.object_type) == {"tile" if source is where else "detection"}
            measured = pd.DataFrame(list(spots.measurements))[genes[1:]]
            np.testing.assert_allclose(measured, part[:, genes[1:]].layers["st_gchb"], rtol=1e-6)
            np.testing.assert_allclose(spots.centroid.get_coordinates(), part.obsm["spatial"], atol=0.01)


@pytest.mark.usefixtures("sketched_figures")
def test_a_store_keeps_its_spots_unless_a_grid_is_asked_for(model, store, tmp_path):
    sdata = st_gchb.pp.tile_tissue(SpatialData.read(store), um_per_px=1.0, spacing_um=120, name="spots")
    sdata.write(tmp_path / "spots.zarr")
    for options, spacing in (([], 120), (["--spacing", "90um"], 90)):
        out = tmp_path / f"out{spacing}"
        where = ["--slide", tmp_path / "spots.zarr", "--um-per-px", "1", *options, "--out", out]
        assert main(["predict", "--model", str(model), *map(str, where)]) == 0
        xy = anndata.read_h5ad(out / "prediction.h5ad").obsm["spatial"]
        assert np.linalg.norm(xy[0] - xy[1]) == pytest.approx(spacing)


def test_bad_slides(refused, model, image, store, slides, tmp_path):
    def said(*options, slide=image):
        return refused("predict", "--model", model, "--slide", slide, *options, "--out", tmp_path / "out")

    assert "--um-per-px" in said()
    assert "no such file or folder" in said(slide=tmp_path / "none.svs")
    assert "is no length" in said("--spacing", "wide")
    assert "is no length" in said("--spacing", "20px")
    assert "there is no such file" in said("--um-per-px", 1, "--roi", tmp_path / "none.geojson")
    assert "--slide names the image already" in said("--um-per-px", 1, "--image", image)
    assert "no tissue found" in said("--um-per-px", 1, "--spacing", "3mm")
    assert "as far apart as the reference's spots, 100 um, or nearer" in said("--um-per-px", 1, "--spacing", "200um")
    assert "brings its own" in said("--spacing", "100um", slide=slides)
    assert "not allowed with argument" in said("--data", slides)
    text = refused("predict", "--model", model, "--data", slides, "--spacing", "9um", "--out", tmp_path / "out")
    assert "--spacing" in text
    outside = tmp_path / "far.geojson"
    outside.write_text(json.dumps(square([9000, 9000], [9100, 9000], [9100, 9100])))
    assert "outside the slide" in said("--um-per-px", 1, "--roi", outside)
    assert not (tmp_path / "out").exists()


@given(value=st.floats(0.001, 1e6), unit=st.sampled_from(["um", "µm", "mm", "nm", "", " um", "UM"]))
def test_a_length_is_read_in_its_unit(value, unit):
    factor = {"mm": 1e3, "nm": 1e-3}.get(unit, 1.0)
    assert spacing_um(f"{value:.6f}{unit}") == pytest.approx(float(f"{value:.6f}") * factor)


@given(st.text(max_size=12).filter(lambda text: not any(letter.isdigit() for letter in text)))
def test_what_has_no_number_is_no_length(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a positive number"):
        spacing_um(text)


@pytest.mark.parametrize("text", ["0", "-5um", "100px", "1e3um", "um", "1..5", "nan", "inf", "10 um um"])
def test_no_lengths(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a positive number"):
        spacing_um(text)


@pytest.mark.parametrize(
    ("content", "n"),
    [
        (REGION, 1),
        ({"type": "Feature", "geometry": REGION}, 1),
        ([{"type": "Feature", "geometry": REGION}] * 2, 2),
        ({"type": "MultiPolygon", "coordinates": [REGION["coordinates"]]}, 1),
        ({"type": "FeatureCollection", "features": [REGION, {"type": "Point", "coordinates": [1, 2]}]}, 1),
    ],
)
def test_areas_in_all_forms_of_geojson(content, n, tmp_path):
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    found = read_areas(tmp_path / "a.geojson")
    assert len(found) == n
    assert found[0].area == 300 * 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as GeoJSON"),
        ("3", "cannot be read as GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        ('{"type": "Point", "coordinates": [1, 2]}', "Point"),
        ('{"type": "Polygon"}', "cannot be read as GeoJSON"),
        ('{"type": "Feature", "geometry": null}', "cannot be read as GeoJSON"),
    ],
)
def test_bad_geojson(text, message, tmp_path):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(st_gchb._errors.InputError, match=message):
        read_areas(tmp_path / "a.geojson")
