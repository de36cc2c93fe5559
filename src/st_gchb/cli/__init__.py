"""The command ``st-gchb``: one file per sub-command; heavy imports happen only when a sub-command runs."""

from st_gchb.cli._main import main

__all__ = ["main"]
