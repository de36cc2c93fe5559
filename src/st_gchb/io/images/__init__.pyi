from ._chunks import Box as Box, Edges as Edges, divided as divided, within_box as within_box
from ._image_element import as_element as as_element
from ._open_image import open_image as open_image
from ._pillow import opened as opened, picture_of as picture_of, read_thumbnail as read_thumbnail
from ._readers import READERS as READERS, Reader as Reader, register_reader as register_reader
from ._slide_image import RGB as RGB, SlideImage as SlideImage, SlideLevel as SlideLevel
from ._thumbnail import shrink as shrink
