from ._raster import rasterize as rasterize
from ._to_spatialdata import image_element as image_element, to_spatialdata as to_spatialdata
