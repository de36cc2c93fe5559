"""Export of results to SpatialData, and as raster images over the slide."""

from st_gchb._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
