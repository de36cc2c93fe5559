"""Read slide images of any file format or array type through one interface, :class:`SlideImage`."""

from st_gchb._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
