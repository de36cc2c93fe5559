from ._chunks import (
    Box as Box,
    Edges as Edges,
    chunk_edges as chunk_edges,
    divided as divided,
    grouped as grouped,
    piece_edges as piece_edges,
    within_box as within_box,
)
from ._image_element import as_element as as_element, is_image_path as is_image_path
from ._open_image import open_image as open_image
from ._openslide import OpenSlideLevel as OpenSlideLevel, open_openslide as open_openslide, vendor_of as vendor_of
from ._orientation import TurnedLevel as TurnedLevel, turn as turn
from ._pillow import opened as opened, read_thumbnail as read_thumbnail, thumbnail_of as thumbnail_of
from ._readers import READERS as READERS, Reader as Reader, register_reader as register_reader
from ._slide_image import RGB as RGB, SlideImage as SlideImage, SlideLevel as SlideLevel
from ._thumbnail import shrink as shrink
from ._tiff import TiffLevel as TiffLevel, open_tiff as open_tiff
