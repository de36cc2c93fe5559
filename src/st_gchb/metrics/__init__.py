"""Metrics that compare predicted with measured expression, as pure functions of arrays and data frames."""

from st_gchb.metrics._ceiling import noise_ceiling, share_of_ceiling
from st_gchb.metrics._genes import pearson, per_gene
from st_gchb.metrics._noise_free import noise_free_agreement, noise_free_morans_i
from st_gchb.metrics._spatial import morans_agreement, morans_i
from st_gchb.metrics._summary import summary, top_genes as top_genes
from st_gchb.metrics._thinning import HalfTransform as HalfTransform

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
