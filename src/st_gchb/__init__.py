"""Gene expression from H&E: joint embedding of image patches and spatial transcriptomics."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("st-gchb")

_ROOMS = ("datasets", "errors", "evaluate", "io", "many", "metrics", "model", "pl", "pp")

__all__ = ["__version__", "settings", *_ROOMS]

if TYPE_CHECKING:
    from st_gchb import datasets as datasets
    from st_gchb import errors as errors
    from st_gchb import evaluate as evaluate
    from st_gchb import io as io
    from st_gchb import many as many
    from st_gchb import metrics as metrics
    from st_gchb import model as model
    from st_gchb import pl as pl
    from st_gchb import pp as pp
    from st_gchb._settings import settings as settings


def __getattr__(name: str) -> Any:
    # scvi-tools alone takes ten seconds to import: a room is imported when it is first used.
    if name in _ROOMS:
        return importlib.import_module(f"st_gchb.{name}")
    if name == "settings":
        return importlib.import_module("st_gchb._settings").settings
    raise AttributeError(f"module 'st_gchb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
