"""Metrics that compare predicted with measured expression, as pure functions of arrays and data frames."""

from st_gchb._lazy import attach_stub

# The stub says where each name is: a prediction needs the correlation alone, without the statistics of the others.
__getattr__, _, _ = attach_stub(__name__, __file__)
__all__ = [
    "morans_agreement",
    "morans_i",
    "noise_ceiling",
    "noise_free_agreement",
    "noise_free_morans_i",
    "pearson",
    "per_gene",
    "share_of_ceiling",
    "summary",
]


def __dir__() -> list[str]:
    return __all__
