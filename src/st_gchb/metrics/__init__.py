"""Metrics that compare predicted with measured expression, as pure functions of arrays and data frames."""

from st_gchb.metrics._genes import pearson, per_gene
from st_gchb.metrics._spatial import morans_agreement, morans_i
from st_gchb.metrics._summary import summary

__all__ = ["morans_agreement", "morans_i", "pearson", "per_gene", "summary"]
