from ._cache import cache_folder as cache_folder, content_key as content_key
from ._embed_patches import embed_patches as embed_patches
from ._embed_patches_like import embed_by_rule as embed_by_rule
from ._embed_slices import Damaged as Damaged
from ._feature_array import (
    BLOCK_ROWS as BLOCK_ROWS,
    FeatureRows as FeatureRows,
    has_features as has_features,
    with_maps as with_maps,
)
from ._feature_maps import PatchMaps as PatchMaps
from ._feature_spec import (
    FeatureRule as FeatureRule,
    encoder_of_rule as encoder_of_rule,
    is_stain_key as is_stain_key,
    stained_versions as stained_versions,
)
from ._last_stage import stage_of_rule as stage_of_rule, stage_without_weights as stage_without_weights
from ._provenance import (
    check_made as check_made,
    feature_keys as feature_keys,
    made_key as made_key,
    pixel_sizes as pixel_sizes,
)
from ._reader import MEMORY_MB as MEMORY_MB, read_patches as read_patches
