"""Slide images as one small interface: give me this window at this resolution."""

from __future__ import annotations

from st_gchb.io._open import open_image
from st_gchb.io._slide import SlideImage

__all__ = ["SlideImage", "open_image"]
