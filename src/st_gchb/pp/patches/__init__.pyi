from ._cache import cache_folder as cache_folder, content_key as content_key
from ._damage import Damage as Damage
from ._embed_patches import embed_patches as embed_patches
from ._embed_patches_like import (
    FeatureOptions as FeatureOptions,
    embed_patches_like as embed_patches_like,
    features_like as features_like,
    tell_tiles as tell_tiles,
)
from ._feature_array import (
    BLOCK_ROWS as BLOCK_ROWS,
    FeatureRows as FeatureRows,
    has_features as has_features,
    with_maps as with_maps,
)
from ._feature_maps import (
    MapsWriter as MapsWriter,
    PatchMaps as PatchMaps,
    find_maps as find_maps,
    ids_of as ids_of,
    writing as writing,
)
from ._feature_set import (
    OF_EACH_PART as OF_EACH_PART,
    FeaturePart as FeaturePart,
    FeatureSet as FeatureSet,
    check_width as check_width,
    feature_parts as feature_parts,
)
from ._feature_spec import (
    EARLIER_NAMES as EARLIER_NAMES,
    FeatureSpec as FeatureSpec,
    encoder_of_spec as encoder_of_spec,
)
from ._given_parts import (
    encoders_of as encoders_of,
    encoders_of_set as encoders_of_set,
    features_of as features_of,
    sizes_of as sizes_of,
)
from ._last_stage import (
    check_feature_maps as check_feature_maps,
    first_of as first_of,
    last_stage as last_stage,
    recorded_maps as recorded_maps,
    shape_of_maps as shape_of_maps,
    stage_of_spec as stage_of_spec,
    stage_without_weights as stage_without_weights,
)
from ._pixels import PatchPixels as PatchPixels
from ._provenance import (
    check_made as check_made,
    feature_keys as feature_keys,
    made_key as made_key,
    pixel_sizes as pixel_sizes,
    was_on_image as was_on_image,
)
from ._reader import MEMORY_MB as MEMORY_MB, read_patches as read_patches
from ._size_batches import (
    boxes_of as boxes_of,
    choose_level as choose_level,
    mirrored as mirrored,
    windows as windows,
)
from ._threads import (
    AHEAD as AHEAD,
    Workers as Workers,
    prefetch as prefetch,
)
