"""Preprocessing: patches and their features, the spot graph, expression, and tables."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_gchb.pp._by_rule import embed_by_rule
    from st_gchb.pp._encoders import Encoder, get_encoder
    from st_gchb.pp._expression import ExpressionRule
    from st_gchb.pp._features import embed_patches
    from st_gchb.pp._graph import GraphRule, spatial_graph
    from st_gchb.pp._patches import read_patches
    from st_gchb.pp._raster import rasterize
    from st_gchb.pp._rule import FeatureRule
    from st_gchb.pp._slides import Slice, slices_of
    from st_gchb.pp._spatialdata import to_spatialdata
    from st_gchb.pp._stain import Stain, fit_stain
    from st_gchb.pp._tables import Resolved, resolve, write_table
    from st_gchb.pp._tiles import tile_tissue
    from st_gchb.pp._tissue import Tissue, find_tissue

__all__ = [
    "Encoder",
    "ExpressionRule",
    "FeatureRule",
    "GraphRule",
    "Resolved",
    "Slice",
    "Stain",
    "Tissue",
    "embed_by_rule",
    "embed_patches",
    "find_tissue",
    "fit_stain",
    "get_encoder",
    "rasterize",
    "read_patches",
    "resolve",
    "slices_of",
    "spatial_graph",
    "tile_tissue",
    "to_spatialdata",
    "write_table",
]

_MODULES = {
    "Encoder": "_encoders",
    "ExpressionRule": "_expression",
    "FeatureRule": "_rule",
    "GraphRule": "_graph",
    "Resolved": "_tables",
    "Slice": "_slides",
    "Stain": "_stain",
    "Tissue": "_tissue",
    "embed_by_rule": "_by_rule",
    "embed_patches": "_features",
    "find_tissue": "_tissue",
    "fit_stain": "_stain",
    "get_encoder": "_encoders",
    "rasterize": "_raster",
    "read_patches": "_patches",
    "resolve": "_tables",
    "slices_of": "_slides",
    "spatial_graph": "_graph",
    "tile_tissue": "_tiles",
    "to_spatialdata": "_spatialdata",
    "write_table": "_tables",
}


def __getattr__(name: str) -> Any:
    # squidpy, torchvision and spatialdata take seconds each to import: only what is used is paid for.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
