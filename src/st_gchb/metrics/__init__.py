"""Measures of a prediction against the measured expression: pure functions on arrays and frames."""

from st_gchb.metrics._genes import pearson, per_gene
from st_gchb.metrics._spatial import morans_agreement, morans_i
from st_gchb.metrics._summary import summary

__all__ = ["morans_agreement", "morans_i", "pearson", "per_gene", "summary"]
