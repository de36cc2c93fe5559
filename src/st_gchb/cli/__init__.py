"""The command ``st-gchb``: one thin file a sub-command, heavy imports when a sub-command runs."""

from st_gchb.cli._main import main

__all__ = ["main"]
