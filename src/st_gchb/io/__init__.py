"""Slide images as one small interface, and elements that are written into a store whole or not at all."""

from __future__ import annotations

from st_gchb.io._open import open_image
from st_gchb.io._slide import SlideImage
from st_gchb.io._store import write_elements

__all__ = ["SlideImage", "open_image", "write_elements"]
