from ._annotated import (
    is_spatialdata_store as is_spatialdata_store,
    load_anndata as load_anndata,
    normalize_libraries as normalize_libraries,
)
from ._hest import file_of_sample as file_of_sample
from ._hest_patches import HestPatches as HestPatches, open_hest_patches as open_hest_patches
from ._lazyslide_store import (
    REGION_KEY as REGION_KEY,
    TILE_ID as TILE_ID,
    LazySlideStore as LazySlideStore,
    Tiles as Tiles,
    open_lazyslide as open_lazyslide,
)
from ._legacy_st import read_legacy_spots as read_legacy_spots, read_wide_counts as read_wide_counts
from ._read_lazyslide import read_lazyslide as read_lazyslide
from ._read_section import (
    open_section as open_section,
    read_section as read_section,
    sections_of_folder as sections_of_folder,
)
from ._text_table import find_layout as find_layout, read_rows as read_rows
