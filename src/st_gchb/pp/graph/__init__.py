"""The spot graph: its specification, construction and validation."""

from st_gchb._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
