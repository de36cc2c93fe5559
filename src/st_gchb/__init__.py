"""Gene expression from H&E: joint embedding of image patches and spatial transcriptomics."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("st-gchb")

_ROOMS = ("baselines", "datasets", "errors", "evaluate", "io", "cohort", "metrics", "model", "pl", "pp")

_HOMES = {"citation": "_citation", "print_versions": "_versions", "settings": "_settings"}

__all__ = ["__version__", "citation", "load_predictor", "print_versions", "settings", *_ROOMS]

if TYPE_CHECKING:
    from st_gchb import (
        baselines as baselines,
        cohort as cohort,
        datasets as datasets,
        errors as errors,
        evaluate as evaluate,
        io as io,
        metrics as metrics,
        model as model,
        pl as pl,
        pp as pp,
    )
    from st_gchb._citation import citation as citation
    from st_gchb._settings import settings as settings
    from st_gchb._versions import print_versions as print_versions
    from st_gchb.model import load_predictor as load_predictor


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'st_gchb' has no attribute {name!r}")
    # scvi-tools alone takes ten seconds to import: a subpackage is imported when it is first used.
    with importlib.import_module("st_gchb._lazy").without_collection():
        if name in _ROOMS:
            return importlib.import_module(f"st_gchb.{name}")
        if name == "load_predictor":
            importlib.import_module("st_gchb._compat").import_dask_without_numba()
            return importlib.import_module("st_gchb.model").load_predictor
        return getattr(importlib.import_module(f"st_gchb.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
