"""The command ``st-gchb``: one file per sub-command; heavy imports happen only when a sub-command runs."""

from st_gchb.cli._main import build_parser as build_parser, main
from st_gchb.cli._predict import read_areas as read_areas, spacing_um as spacing_um

__all__ = ["main"]
