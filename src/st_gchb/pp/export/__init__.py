"""Export of results to SpatialData, and as raster images over the slide."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
