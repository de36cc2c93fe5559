"""Figures from predictions and tables; each returns its axes, none calls ``plt.show``."""

from st_gchb.pl._confidence import confidence
from st_gchb.pl._history import history
from st_gchb.pl._maps import measured_vs_predicted
from st_gchb.pl._methods import metric_bars
from st_gchb.pl._overview import slide_overview
from st_gchb.pl._ranking import gene_ranking
from st_gchb.pl._reliability import reliability
from st_gchb.pl._save import save
from st_gchb.pl._see_through import see_through
from st_gchb.pl._variants import variants

__all__ = [
    "confidence",
    "gene_ranking",
    "history",
    "measured_vs_predicted",
    "metric_bars",
    "reliability",
    "save",
    "see_through",
    "slide_overview",
    "variants",
]
