"""Data sets: public tissue with counts, and synthetic tissue with a known truth."""

from __future__ import annotations

from st_gchb.datasets._dlpfc import dlpfc, dlpfc_geometry
from st_gchb.datasets._her2st import her2st
from st_gchb.datasets._synthetic import synthetic_tissue

__all__ = ["dlpfc", "dlpfc_geometry", "her2st", "synthetic_tissue"]
