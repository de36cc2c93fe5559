"""Find and validate the files of Space Ranger's output folders: counts, positions, scale factors and images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.io._pixel_size import positive
from st_gchb.io._reading import reading
from st_gchb.io.images import RGB, SlideImage, open_image, opened
from st_gchb.io.sections._text_table import open_text


def image_shape(path: Path) -> tuple[int, int]:
    """Read the height and width of an image, px, from its header.

    Raises
    ------
    ImageError
        The file is damaged.
    """
    with opened(path) as image:
        return image.height, image.width


def read_downscaled(path: Path) -> RGB | None:
    """Read a down-scaled image.

    Returns
    -------
    numpy.ndarray or None
        Pixels, ``(height, width, 3)`` uint8; None, with a warning, if the image is gray or of a single color.

    Raises
    ------
    ImageError
        The file is damaged.
    """
    with opened(path) as image:
        gray = image.mode not in ("RGB", "RGBA", "P", "PA")
        # Transparent pixels are background, which is white like the glass.
        rgba = np.asarray(image.convert("RGBA")) if image.mode in ("RGBA", "P", "PA") else None
        pixels = np.asarray(image.convert("RGB")) if rgba is None else rgba[..., :3].copy()
    if rgba is not None:
        pixels[rgba[..., 3] == 0] = 255
    if gray or (pixels == pixels[0, 0]).all():
        logger.warning(
            "%s: %s; it is left out.", path, "the image is gray, no H&E" if gray else "the image is of one color"
        )
        return None
    return pixels


BINS, COUNTS, SLICE_FILE = "binned_outputs", "filtered_feature_bc_matrix.h5", "feature_slice.h5"
SCALEFACTORS = (
    "spatial/scalefactors_json.json",
    "*scalefactors_json.json",
    "*scalefactors_json.json.gz",
    "spatial/*scalefactors_json.json*",
)
POSITIONS = (
    "spatial/tissue_positions.csv",
    "spatial/tissue_positions_list.csv",
    "spatial/tissue_positions.parquet",
    "*tissue_positions*.csv",
    "*tissue_positions*.csv.gz",
    "spatial/*tissue_positions*.csv*",
)
"""Space Ranger's own file names, followed by those of public archives, which put a sample prefix before them."""
_TEXT = ("*matrix.mtx.gz", "*matrix.mtx")
_FILTERED = (f"*{COUNTS}", *[f"filtered_*_bc_matri{end}/{name}" for end in ("x", "ces*/*") for name in _TEXT])
_ALL_SPOTS = (
    "*raw_feature_bc_matrix.h5",
    *[f"raw_*_bc_matri{end}/{name}" for end in ("x", "ces*/*") for name in _TEXT],
    *_TEXT,
)
_SIGNS = (*_FILTERED, *_ALL_SPOTS, *POSITIONS, *SCALEFACTORS)
_HD_SIGNS = (BINS, f"*{SLICE_FILE}")
_FULL_IMAGES = ("microscope_image/*", "*tissue_image.*", "*_image.tif", "*_image.tiff", "*_image.btf")
_KINDS = ("hires", "lowres")
_SIZE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Outputs:
    """An output folder of Space Ranger.

    Parameters
    ----------
    root
        The folder ``outs``.
    is_hd
        Whether it is the output for Visium HD.
    bins
        Name of the requested folder of bins; None for the default, 8 µm.
    """

    root: Path
    is_hd: bool
    bins: str | None = None

    @property
    def label(self) -> str:
        """Name of the section, derived from the folder."""
        folder = self.root.resolve()
        return clean_name((folder.parent if folder.name == "outs" else folder).name)

    def one(self, patterns: Iterable[str], what: str, instead: str = "") -> Path:
        """Find the only file that matches the first of the patterns with any match.

        Parameters
        ----------
        patterns
            Glob patterns relative to the folder, by decreasing priority.
        what
            Name of the file in messages.
        instead
            Alternatives that are missing too, for the message.

        Raises
        ------
        MissingFileError, InputError
            No file matches; or several do.
        """
        for pattern in patterns:
            found = sorted(self.root.glob(pattern))
            if len(found) > 1:
                names = [str(file.relative_to(self.root)) for file in found]
                raise InputError(f"{self.root}: found {len(found)} files for {what}: {names}; expected one.")
            if found:
                return found[0]
        there = sorted(
            str(file.relative_to(self.root)) for pattern in ("*", "spatial/*") for file in self.root.glob(pattern)
        )
        raise MissingFileError(
            f"{self.root}: the Space Ranger folder is incomplete: {what} is missing{instead}. It holds {there[:12]}. "
            "Copy the whole folder outs/, or run Space Ranger to its end."
        )

    def counts(self, folder: str = "") -> Path:
        """Find the count matrix: of spots under tissue, else of all spots; HDF5 is preferred to text.

        Parameters
        ----------
        folder
            Subfolder, with a slash at the end.

        Raises
        ------
        MissingFileError, InputError
            There is none; or there are several.
        """
        patterns = [f"{folder}{pattern}" for pattern in (*_FILTERED, *_ALL_SPOTS)]
        instead = ", and so are filtered_feature_bc_matrix/ and the raw matrix"
        return self.one(patterns, f"{folder}{COUNTS}", instead)

    def is_filtered(self, counts: Path) -> bool:
        """Check by the file name if a matrix contains only spots under tissue."""
        return "filtered" in str(counts.relative_to(self.root)).lower()

    def downscaled(self, folder: str = "") -> dict[str, Path]:
        """Find the down-scaled images by kind, ``"hires"`` and ``"lowres"``."""
        found = {}
        for kind in _KINDS:
            name = f"tissue_{kind}_image"
            places = [f"spatial/{name}.*", f"{folder}spatial/{name}.*", f"*{name}.*", f"spatial/*{name}.*"]
            files = [file for place in places for file in sorted(self.root.glob(place)) if file.suffix != ".gz"]
            if files:
                found[kind] = files[0]
        return found


def find_outputs(path: Path) -> Outputs | None:
    """Find the folder ``outs`` at, above or in a folder; None if this is not an output of Space Ranger."""
    if path.name.startswith("square_") and path.parent.name == BINS:
        return Outputs(path.parent.parent, is_hd=True, bins=path.name)
    places = [path, path / "outs"]
    if path.name in (BINS, "spatial"):
        places.insert(0, path.parent)
    for place in places:
        for signs, is_hd in ((_HD_SIGNS, True), (_SIGNS, False)):
            if any(next(place.glob(sign), None) is not None for sign in signs):
                return Outputs(place, is_hd)
    return None


def read_factors(path: Path) -> dict[str, Any]:
    """Read Space Ranger's scale factors.

    Returns
    -------
    dict
        Scale factors by name.

    Raises
    ------
    InputError, MissingKeyError, ScaleError
        The file is damaged, lacks the spot diameter, or holds a factor that is not a positive number.
    """
    with reading(path, "the scale factors", "Expected JSON as Space Ranger writes it: copy the file again."):
        with open_text(path) as lines:
            content = json.loads("\n".join(lines))
        factors = {str(key): value for key, value in dict(content).items()}
    if Keys.SPOT_DIAMETER not in factors:
        raise MissingKeyError(
            f"{path}: has no {Keys.SPOT_DIAMETER!r}; it holds {sorted(factors)}. Space Ranger writes it: copy the file "
            "again."
        )
    for key in factors:
        # Files written from R, and some converted from Zarr, hold lists of one number.
        if key.endswith("_scalef") or key in (Keys.SPOT_DIAMETER, Keys.UM_PER_PX):
            factors[key] = positive(factors[key], f"{path}[{key!r}]")
    return factors


def full_image(
    outputs: Outputs, image: Path | None, factors: dict[str, Any], downscaled: dict[str, Path]
) -> SlideImage | None:
    """Open the full-resolution image: ``image`` if given, else the one in the folder.

    Parameters
    ----------
    outputs
        The folder.
    image
        Path of the image that the caller passed.
    factors
        Scale factors.
    downscaled
        Paths of the down-scaled images by kind, whose sizes are compared with the image.

    Returns
    -------
    SlideImage or None
        The image; None if there is none.

    Raises
    ------
    InputError
        The folder holds several images; or the size of the image contradicts the down-scaled image.
    """
    if image is None:
        found = [file for pattern in _FULL_IMAGES for file in sorted(outputs.root.glob(pattern)) if file.is_file()]
        if len(set(found)) > 1:
            raise InputError(
                f"{outputs.root}: found several full-resolution images, {found}. "
                + advise(Fix("image", why="with one of them"), otherwise="Leave one of them there.")
            )
        if not found:
            logger.info("%s: no full-resolution image; patches come from the down-scaled one.", outputs.root)
            return None
        image = found[0]
    slide = open_image(image)
    for kind, small in downscaled.items():
        scale = factors.get(f"tissue_{kind}_scalef")
        if scale is None:
            continue
        expected = np.array(image_shape(small)) / scale
        # The sides of the down-scaled image are rounded to whole px.
        if (np.abs(expected - slide.shape_px) > _SIZE_TOLERANCE * expected + 1 / scale).any():
            sides = tuple(expected.round().astype(int).tolist())
            raise InputError(
                f"{image}: found {slide.shape_px} px (h, w); expected about {sides}, as {small.name} and its factor "
                f"{scale:.6g} say. Pass the image that Space Ranger was given."
            )
        break
    return slide


def clean_name(name: str) -> str:
    """Convert a name to one that SpatialData allows for elements.

    Examples
    --------
    >>> from st_gchb.io.sections._spaceranger import clean_name
    >>> clean_name("Sample 1 (left)")
    'Sample_1_left'
    """
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("_.-") or "section"
