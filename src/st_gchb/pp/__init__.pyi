from ._stain_normalization import Stain as Stain, fit_stain as fit_stain, normalizing as normalizing
from .encoders import (
    Encoder as Encoder,
    get_encoder as get_encoder,
    list_encoders as list_encoders,
    register_encoder as register_encoder,
)
from .export import rasterize as rasterize, to_spatialdata as to_spatialdata
from .expression import ExpressionRule as ExpressionRule
from .graph import GraphSpec as GraphSpec, spatial_graph as spatial_graph
from .patches import (
    FeatureSet as FeatureSet,
    FeatureSpec as FeatureSpec,
    embed_patches as embed_patches,
    embed_patches_like as embed_patches_like,
    read_patches as read_patches,
)
from .spots import (
    Resolved as Resolved,
    Slice as Slice,
    resolve as resolve,
    slices_of as slices_of,
    write_table as write_table,
)
from .tissue import (
    Tissue as Tissue,
    find_tissue as find_tissue,
    label_regions as label_regions,
    tile_tissue as tile_tissue,
)
