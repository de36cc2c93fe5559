"""The size of a pixel by what a TIFF file says of itself."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import tifffile

from st_gchb.io._pixel_size import number_in, settle, square_size
from st_gchb.io._units import um_per_unit


def tiff_size(file: tifffile.TiffFile, name: str) -> float | None:
    """Size of a pixel by what a TIFF file says: OME, Aperio, resolution tags."""
    found = [
        square_size(*_from_ome(file), "OME metadata", name),
        square_size(_from_aperio(file), None, "Aperio's MPP", name),
        square_size(*_from_tags(file), "the TIFF's resolution", name),
    ]
    return settle(found, name)


def _from_ome(file: tifffile.TiffFile) -> tuple[float | None, float | None]:
    try:
        root = ElementTree.fromstring(file.ome_metadata) if file.is_ome and file.ome_metadata else None
    except ElementTree.ParseError:
        root = None
    nodes = root.iter() if root is not None else ()
    pixels = next((node for node in nodes if node.tag.endswith("}Pixels") or node.tag == "Pixels"), None)
    if pixels is None:
        return None, None

    def side(axis: str) -> float | None:
        value = number_in(pixels.attrib.get(f"PhysicalSize{axis}"))
        unit = um_per_unit(pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm"))
        return None if value is None or unit is None else value * unit

    return side("X"), side("Y")


def _from_aperio(file: tifffile.TiffFile) -> float | None:
    match = re.search(r"\bMPP\s*=\s*([0-9.]+)", file.pages.first.description or "")
    return number_in(match.group(1)) if match else None


def _from_tags(file: tifffile.TiffFile) -> tuple[float | None, float | None]:
    tags = file.pages.first.tags
    um = {2: 25400.0, 3: 1e4}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 0)

    def side(tag: str) -> float | None:
        if um is None or tag not in tags:
            return None
        numerator, denominator = tags[tag].value
        return um * denominator / numerator if numerator else None

    return side("XResolution"), side("YResolution")
