"""Units of length, however a file spells them."""

from __future__ import annotations

import unicodedata

_UM_PER_UNIT = {
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("um", "mum", "micron", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
    **dict.fromkeys(("in", "inch", "inches"), 25400.0),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
}


def um_per_unit(unit: object) -> float | None:
    r"""Length of a unit, µm; None for what is no unit of length.

    The micro sign (U+00B5) and the Greek mu (U+03BC) look alike, and files hold either.

    Examples
    --------
    >>> from st_gchb.io._units import um_per_unit
    >>> um_per_unit("\u00b5m"), um_per_unit("\u03bcm"), um_per_unit("Microns"), um_per_unit("mm"), um_per_unit("px")
    (1.0, 1.0, 1.0, 1000.0, None)
    """
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", errors="replace")
    # NFKC makes the micro sign a Greek mu, and one letter of the signs for µm, mm and so on.
    name = unicodedata.normalize("NFKC", str(unit)).strip().lower().replace("\N{GREEK SMALL LETTER MU}", "u")
    return _UM_PER_UNIT.get(name, _UM_PER_UNIT.get(name.removesuffix("s")))
