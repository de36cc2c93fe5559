"""Plots of predictions and result tables, which return their axes and never call ``plt.show``; a page for browsers."""

from st_gchb.pl._compare import compare_methods
from st_gchb.pl._diagnostics import history, reliability
from st_gchb.pl._figure import save, transparent_cmap
from st_gchb.pl._overview import slide_overview
from st_gchb.pl._scores import gene_ranking, metric_bars
from st_gchb.pl._spatial import confidence, measured_vs_predicted
from st_gchb.pl.page import report

__all__ = [
    "compare_methods",
    "confidence",
    "gene_ranking",
    "history",
    "measured_vs_predicted",
    "metric_bars",
    "reliability",
    "report",
    "save",
    "transparent_cmap",
    "slide_overview",
]
