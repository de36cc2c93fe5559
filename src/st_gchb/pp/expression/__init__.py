"""Expression of the reference: counts, normalization, gene panel and principal components."""

from st_gchb._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
