from ._raster import rasterize as rasterize
from ._to_spatialdata import to_spatialdata as to_spatialdata
