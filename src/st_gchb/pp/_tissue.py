"""Where on a slide there is tissue."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import isotropic_closing, isotropic_opening

from st_gchb._advice import Fix, advise
from st_gchb._arguments import Area, Micrometers, PixelSize, checked
from st_gchb._compat import squidpy_tissue
from st_gchb._errors import ScaleError
from st_gchb.io import SlideImage, open_image
from st_gchb.io._thumbnail import shrink
from st_gchb.pp._stained import Mask, find_stained

TissueMethod = Literal["stain", "squidpy", "all"]

_LONGEST_PX = 3000
"""The picture in which tissue is looked for is no larger, whatever the slide's size."""
_GAP_UM = 25.0
"""Gaps narrower than twice this belong to the tissue: it is never quite closed."""
_CRUMB_UM = 12.0


@dataclass(frozen=True, eq=False)
class Tissue:
    """A mask of tissue at a known scale.

    Parameters
    ----------
    mask
        ``(h, w)``, True on tissue.
    downsample
        px of the slide's finest level per px of the mask.
    um_per_px
        Size of a px of the mask, µm.
    thumbnail
        ``(h, w, 3)`` uint8, the picture in which it was found; None for a mask from elsewhere.
    """

    mask: Mask
    downsample: float
    um_per_px: float
    thumbnail: npt.NDArray[np.uint8] | None = None

    @property
    def share(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean())

    def at(self, points_px: npt.NDArray[np.float64]) -> Mask:
        """Whether points, x and y in px of the slide's finest level, lie on tissue; outside the slide is none.

        Parameters
        ----------
        points_px
            ``(..., 2)``.

        Returns
        -------
        numpy.ndarray
            ``(...)``, bool.
        """
        height, width = self.mask.shape
        cells = np.floor(np.asarray(points_px) / self.downsample).astype(np.int64)
        x, y = cells[..., 0], cells[..., 1]
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        return inside & self.mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]


@checked
def find_tissue(
    image: Any,
    *,
    um_per_px: PixelSize | None = None,
    method: TissueMethod = "stain",
    resolution_um: Micrometers = 8.0,
    min_area_um2: Area = 40_000.0,
    max_hole_um2: Area = 20_000.0,
) -> Tissue:
    """Find the tissue of an H&E slide on a picture of low resolution.

    Glass, smears of dye, dust, grey fiducials and strokes of ink are left out. Light red ink is not: it has the colour
    of blood.

    Parameters
    ----------
    image
        As :func:`st_gchb.io.open_image` takes it.
    um_per_px
        Size of a pixel of the finest level, µm, where the file does not say so.
    method
        ``"stain"``: by colour and texture. ``"squidpy"``: squidpy's ``detect_tissue``, which thresholds brightness.
        ``"all"``: the whole slide.
    resolution_um
        Size of a pixel of the picture in which tissue is looked for, µm; coarser for slides so large that the picture
        would be longer than 3,000 px, or for images that are coarser.
    min_area_um2
        Pieces smaller than this are left out, µm².
    max_hole_um2
        Holes smaller than this count as tissue, µm².

    Returns
    -------
    Tissue
        The mask, empty where there is no tissue. Places whose pixels cannot be decoded are none, with a warning.

    Raises
    ------
    ScaleError
        The size of a pixel is not known.
    ImageError, MissingFileError
        The image cannot be used.
    InputError
        An argument is no positive number, or ``method`` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp import find_tissue
    >>> slide = np.full((200, 200, 3), 240, dtype=np.uint8)
    >>> slide[50:150, 50:150] = np.random.default_rng(0).integers((120, 60, 130), (200, 140, 200), (100, 100, 3))
    >>> 0.2 < find_tissue(slide, um_per_px=8.0).share < 0.3
    True
    """
    slide = open_image(image, um_per_px)
    size = pixel_size(slide)
    # In floats: as a whole number, the finest resolutions ask for more px than there are numbers.
    longest = max(1, math.ceil(min(_LONGEST_PX, max(slide.shape_px) * size / resolution_um)))
    pixels, scale, damaged = shrink(slide, longest)
    if isinstance(image, str | os.PathLike):
        slide.release()
    coarse = size / scale
    if method == "all":
        mask = np.ones(pixels.shape[:2], dtype=bool)
    elif method == "squidpy":
        mask = squidpy_tissue(pixels)
    else:
        mask = _clean(pixels, coarse, min_area_um2, max_hole_um2)
    # What cannot be decoded is not known to be tissue, whatever surrounds it.
    mask = mask & ~damaged
    return Tissue(mask, 1.0 / scale, coarse, pixels)


def pixel_size(slide: SlideImage) -> float:
    """Size of a pixel of the finest level, µm.

    Raises
    ------
    ScaleError
        It is not known.
    """
    if slide.um_per_px is None:
        raise ScaleError(
            f"{slide.name}: the size of a pixel is not known, so µm cannot be turned into px. "
            + advise(
                Fix(
                    "um_per_px",
                    why="with the size of a pixel of the full-resolution image in µm, as the scanner's software shows "
                    "it (a scan at 20x has about 0.5, at 40x about 0.25)",
                ),
                otherwise="Set uns['spatial'][slice]['scalefactors']['microns_per_pixel'] to it.",
            )
        )
    return slide.um_per_px


def _clean(pixels: npt.NDArray[np.uint8], um_per_px: float, min_area_um2: float, max_hole_um2: float) -> Mask:
    """Close gaps, take away crumbs and ink, fill holes."""
    found = find_stained(pixels, um_per_px)
    # The border is mirrored, so that tissue which is cut by the image's edge is not eaten from there.
    longest = max(pixels.shape[:2])
    gap, crumb = (min(um / um_per_px, longest) for um in (_GAP_UM, _CRUMB_UM))
    pad = math.ceil(gap) + 1
    mask = np.pad(found.tissue & ~found.ink, pad, mode="symmetric")
    mask = isotropic_closing(mask, gap)
    mask = isotropic_opening(mask, crumb)[pad:-pad, pad:-pad]
    area_px = um_per_px**2
    mask = _fill_holes(mask, max_hole_um2 / area_px, found.grey) & ~found.ink
    pieces, sizes = _pieces(mask)
    return np.asarray((sizes >= min_area_um2 / area_px)[pieces] & mask, dtype=bool)


def _fill_holes(mask: Mask, area_px: float, grey: Mask) -> Mask:
    """Fill small holes, and those that are bleached tissue: textured, and surrounded by tissue."""
    pieces, sizes = _pieces(~mask)
    bleached = np.bincount(pieces.ravel(), weights=grey.ravel(), minlength=len(sizes)) > 0.5 * sizes
    return mask | ((sizes < area_px) | bleached)[pieces]


def _pieces(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Number of the connected piece that each px belongs to, and how many px each has."""
    pieces, n = ndimage.label(mask)
    return pieces, np.bincount(pieces.ravel(), minlength=n + 1)
