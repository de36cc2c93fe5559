"""Simulate tissue sections with H&E-like images, counts and known expression."""

from st_gchb._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
