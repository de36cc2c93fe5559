"""Load public spatial transcriptomics data sets, and simulate tissue with known expression."""

from st_gchb._lazy import attach_stub

# The stub maps every name to its module, including those for other subpackages; __all__ lists the public ones.
__getattr__, _, _ = attach_stub(__name__, __file__)
__all__ = ["dlpfc", "dlpfc_geometry", "her2st", "synthetic_tissue"]


def __dir__() -> list[str]:
    return __all__
