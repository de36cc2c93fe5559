"""Stores as LazySlide 0.13 and wsidata 0.12 write them beside a slide: tiles, their specification, tables of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
import spatialdata
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

GENES = ["ERBB2", "CD74", "KRT19"]


def tiles_of(shape_px: tuple[int, int], side_px: int, n_skipped: int = 0) -> geopandas.GeoDataFrame:
    """Tiles in rows and columns over a slide, without the first ones, as its margin has none."""
    height, width = shape_px
    corners = [(x, y) for x in range(0, width - side_px + 1, side_px) for y in range(0, height - side_px + 1, side_px)]
    corners = corners[n_skipped:]
    boxes = [shapely.box(x, y, x + side_px, y + side_px) for x, y in corners]
    tissue = np.arange(len(boxes)) // max(len(boxes) // 2, 1)
    return geopandas.GeoDataFrame({"tile_id": np.arange(len(boxes)), "tissue_id": tissue, "geometry": boxes})


def spec_of(side_px: int, mpp: float | None, downsample: float = 1.0) -> dict[str, Any]:
    """A specification of tiles; ``side_px`` is at the resolution that was asked for."""
    return {
        "height": side_px,
        "width": side_px,
        "stride_height": side_px,
        "stride_width": side_px,
        "mpp": mpp,
        "ops_level": 0,
        "ops_downsample": downsample,
        "base_level": 0,
        "base_downsample": downsample,
        "tissue_name": "tissues",
    }


def properties_of(shape_px: tuple[int, int], mpp: float | None) -> dict[str, Any]:
    return {
        "shape": list(shape_px),
        "n_level": 1,
        "level_shape": [list(shape_px)],
        "level_downsample": [1.0],
        "mpp": mpp,
        "magnification": None,
        "bounds": [0, 0, shape_px[1], shape_px[0]],
        "scene": 0,
        "n_scenes": 1,
        "scene_names": ["Image 0"],
        "raw": "{}",
    }


def table_of(tiles: pd.DataFrame, values: Any, names: list[str] | None = None, key: str = "tiles") -> AnnData:
    """A table as ``wsidata.io.add_features`` makes it; with names of genes, one of expression."""
    ids = tiles["tile_id"].to_numpy()
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical([key] * len(ids))}, index=ids.astype(str))
    table = AnnData(values, obs=obs)
    if names is not None:
        table.var_names = names
    return TableModel.parse(table, region=key, region_key="library_id", instance_key="tile_id")


def write_store(
    folder: Path,
    pixels: np.ndarray,
    um_per_px: float | None,
    side_px: int,
    tables: Callable[[geopandas.GeoDataFrame], Mapping[str, AnnData]] | None = None,
    *,
    name: str = "S1",
    n_skipped: int = 0,
    downsample: float = 1.0,
) -> Path:
    """Write a slide as PNG, and the store beside it; ``side_px`` are px of the slide."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    tiles = tiles_of(pixels.shape[:2], side_px, n_skipped)
    outlines = geopandas.GeoDataFrame({"tissue_id": [0], "geometry": [shapely.box(0, 0, 50, 40)]})
    sdata = SpatialData(
        shapes={"tiles": ShapesModel.parse(tiles), "tissues": ShapesModel.parse(outlines)},
        tables={} if tables is None else dict(tables(tiles)),
        attrs={
            "slide_properties": properties_of(pixels.shape[:2], um_per_px),
            "tile_spec": {
                "tiles": spec_of(
                    round(side_px / downsample), None if um_per_px is None else um_per_px * downsample, downsample
                )
            },
        },
    )
    path = folder / f"{name}.zarr"
    sdata.write(path)
    return path


def prediction_for(query: AnnData, seed: int = 2) -> AnnData:
    """What model.predict returns, with numbers of chance."""
    rng = np.random.default_rng(seed)
    values = rng.random((query.n_obs, len(GENES))).astype(np.float32)
    pred = AnnData(values * 0, obs=query.obs.copy(), var=pd.DataFrame(index=GENES))
    pred.layers["st_gchb"] = values
    pred.obsm["spatial"] = query.obsm["spatial"]
    pred.obsm["X_st_gchb"] = rng.random((query.n_obs, 4)).astype(np.float32)
    pred.uns["spatial"] = query.uns["spatial"]
    pred.uns["st_gchb"] = {"version": "0.1", "k": 50}
    pred.obs["st_gchb_confidence"] = rng.random(query.n_obs)
    pred.obs["st_gchb_outlier"] = rng.random(query.n_obs) > 0.8
    pred.var["st_gchb_expected_pcc"] = [0.5, 0.4, 0.3]
    return pred


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the attributes of a store on disk."""
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    change(content["attributes"])
    file.write_text(json.dumps(content))


def read_store(path: Path) -> SpatialData:
    return spatialdata.read_zarr(path)
