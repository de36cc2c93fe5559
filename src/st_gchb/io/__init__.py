"""Slide images as one small interface, sections from disk, and elements that are written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_gchb.io._open import open_image
from st_gchb.io._slide import SlideImage
from st_gchb.io._store import write_elements

if TYPE_CHECKING:
    from st_gchb.io._section import read_section

__all__ = ["SlideImage", "open_image", "read_section", "write_elements"]


def __getattr__(name: str) -> Any:
    # It brings anndata and scipy, which reading an image does not need.
    if name == "read_section":
        from st_gchb.io._section import read_section

        return read_section
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
