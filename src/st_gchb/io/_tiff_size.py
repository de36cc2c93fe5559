"""The size of a pixel by what a TIFF file says of itself."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import tifffile

from st_gchb._logging import logger
from st_gchb.io._pixel_size import number_in, settle, square_size
from st_gchb.io._units import um_per_unit


def tiff_size(file: tifffile.TiffFile, index: int, name: str, *, swapped: bool) -> float | None:
    """Size of a pixel by what a TIFF file says of a series of pages: OME, Aperio, resolution tags.

    Parameters
    ----------
    file, index
        The file, and the index of the series that is read.
    name
        What messages call the image.
    swapped
        Whether the upright image is as high as the stored one is wide.
    """
    page = file.series[index].keyframe
    sides = [
        (_from_ome(file, index, name), "OME metadata"),
        ((_from_aperio(page), None), "Aperio's MPP"),
        (_from_tags(page), "the TIFF's resolution"),
    ]
    turned = [((y, x) if swapped and y is not None else (x, y), source) for (x, y), source in sides]
    return settle([square_size(x, y, source, name) for (x, y), source in turned], name)


def _from_ome(file: tifffile.TiffFile, index: int, name: str) -> tuple[float | None, float | None]:
    try:
        root = ElementTree.fromstring(file.ome_metadata) if file.is_ome and file.ome_metadata else None
    except ElementTree.ParseError:
        root = None
    nodes = root.iter() if root is not None else ()
    found = [node for node in nodes if node.tag.endswith("}Pixels") or node.tag == "Pixels"]
    # Of several images that of the series, if there is one for each.
    pixels = found[index if len(found) == len(file.series) else 0] if found else None
    if pixels is None:
        return None, None

    def side(axis: str) -> float | None:
        value = number_in(pixels.attrib.get(f"PhysicalSize{axis}"))
        spelled = pixels.attrib.get(f"PhysicalSize{axis}Unit", "um")
        unit = um_per_unit(spelled)
        if value is not None and unit is None:
            logger.warning(
                "%s: OME metadata gives the size of a pixel as %g %r; expected a unit such as um. It is not used: pass "
                "um_per_px= if nothing else says it.",
                name,
                value,
                spelled,
            )
        return None if value is None or unit is None else value * unit

    return side("X"), side("Y")


def _from_aperio(page: tifffile.TiffPage) -> float | None:
    text = page.description if isinstance(page.description, str) else ""
    match = re.search(r"\bMPP\s*=\s*([0-9]*[.,]?[0-9]+)", text)
    return number_in(match.group(1).replace(",", ".")) if match else None


def _from_tags(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    unit = page.tags.valueof("ResolutionUnit")
    um_per_unit = {2: 25400.0, 3: 1e4}.get(unit) if isinstance(unit, int) else None

    def side(tag: str) -> float | None:
        value: Any = page.tags.valueof(tag)
        if um_per_unit is None or not isinstance(value, tuple) or len(value) != 2:
            return None
        numerator, denominator = (float(part) for part in value)
        return um_per_unit * denominator / numerator if numerator > 0 else None

    return side("XResolution"), side("YResolution")
