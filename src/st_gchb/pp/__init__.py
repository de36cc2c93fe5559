"""Preprocessing: slices and spots, patches and their features, the spot graph, expression, tissue, and export."""

from st_gchb._lazy import attach_stub

# The stub lists the module of each name, including names for internal use; the public names are those in __all__.
__getattr__, _, _ = attach_stub(__name__, __file__)
__all__ = [
    "Encoder",
    "ExpressionRule",
    "FeatureSet",
    "FeatureSpec",
    "GraphSpec",
    "Resolved",
    "Slice",
    "Stain",
    "Tissue",
    "embed_patches_like",
    "embed_patches",
    "find_tissue",
    "fit_stain",
    "get_encoder",
    "label_regions",
    "list_encoders",
    "rasterize",
    "read_patches",
    "register_encoder",
    "resolve",
    "slices_of",
    "spatial_graph",
    "tile_tissue",
    "to_spatialdata",
    "write_table",
]


def __dir__() -> list[str]:
    return __all__
