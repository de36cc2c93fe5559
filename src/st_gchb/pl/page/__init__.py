"""Page of a prediction that a browser opens from the disk: the slide with deep zoom, and genes drawn over it."""

from st_gchb.pl.page._report import report

__all__ = ["report"]
