"""Plots of predictions and result tables; each function returns its axes, and none calls ``plt.show``."""

from st_gchb.pl._compare import compare_methods
from st_gchb.pl._diagnostics import history, reliability
from st_gchb.pl._figure import save, transparent_cmap
from st_gchb.pl._overview import slide_overview
from st_gchb.pl._scores import gene_ranking, metric_bars
from st_gchb.pl._spatial import confidence, measured_vs_predicted

__all__ = [
    "compare_methods",
    "confidence",
    "gene_ranking",
    "history",
    "measured_vs_predicted",
    "metric_bars",
    "reliability",
    "save",
    "transparent_cmap",
    "slide_overview",
]
