from ._annotation import (
    Link as Link,
    annotated_rows as annotated_rows,
    bin_um as bin_um,
    is_element_name as is_element_name,
    link_of as link_of,
)
from ._cohort_samples import query_slides as query_slides
from ._library import (
    Library as Library,
    column_of as column_of,
    hand_on_libraries as hand_on_libraries,
    libraries_of as libraries_of,
    put_libraries as put_libraries,
)
from ._nearest import nearest_rows as nearest_rows
from ._pixel_size import (
    TOLERANCE as TOLERANCE,
    Size as Size,
    caller_size as caller_size,
    factor_size as factor_size,
    hexagonal_pitch as hexagonal_pitch,
    one_number as one_number,
    positive as positive,
    settle as settle,
    spot_sizes as spot_sizes,
    square_size as square_size,
    um_per_unit as um_per_unit,
    visium_pitch as visium_pitch,
)
from ._read_cohort import read_cohort as read_cohort
from ._read_geojson import read_geojson as read_geojson
from ._reading import check_text as check_text, reading as reading
from ._sample_sheet import SampleRow as SampleRow, is_sheet as is_sheet, read_samples as read_samples
from ._sections import (
    PlacedSections as PlacedSections,
    Sections as Sections,
    check_object as check_object,
    is_spatialdata as is_spatialdata,
    placed_sections as placed_sections,
    sections_of as sections_of,
)
from ._spatialdata import (
    find_image as find_image,
    finest_image as finest_image,
    linked as linked,
    place_spots as place_spots,
    spots_to_px as spots_to_px,
    transformations_of as transformations_of,
)
from ._spatialdata_spots import LocatedSpots as LocatedSpots, locate_spots as locate_spots
from ._spot_centers import spot_centers as spot_centers
from ._viewer_spots import SpotValues as SpotValues, ViewerSpots as ViewerSpots, viewer_spots as viewer_spots
from ._write_elements import check_store as check_store, is_stored as is_stored, write_elements as write_elements
from ._write_geojson import write_geojson as write_geojson
from ._write_lazyslide import write_lazyslide as write_lazyslide
from ._write_ome_tiff import write_ome_tiff as write_ome_tiff
from .images import (
    READERS as READERS,
    Reader as Reader,
    SlideImage as SlideImage,
    SlideLevel as SlideLevel,
    is_image_path as is_image_path,
    open_image as open_image,
    register_reader as register_reader,
)
from .sections import (
    HestPatches as HestPatches,
    load_anndata as load_anndata,
    open_hest_patches as open_hest_patches,
    read_lazyslide as read_lazyslide,
    read_section as read_section,
)
