"""Thousands of slides: prediction and patch features, in this process or on a dask cluster."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_gchb.many._embed import embed_slides
    from st_gchb.many._predict import predict_slides

__all__ = ["embed_slides", "predict_slides"]

_MODULES = {"embed_slides": "_embed", "predict_slides": "_predict"}


def __getattr__(name: str) -> Any:
    # scvi-tools takes ten seconds to import, and a worker that embeds slides needs none of it.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
