"""Spots that have to be left out because their pixels cannot be decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import shapely

from st_gchb._errors import DamageError
from st_gchb.io._chunks import Box

_NAMED = 5
"""Regions that a message names."""


@dataclass(eq=False)
class Damage:
    """What could not be decoded of one slice.

    Parameters
    ----------
    name
        Name of the slice.
    image
        What messages call its image.
    n_spots
        Spots of the slice.
    rows
        Positions within the slice of the spots whose patches touch such pixels.
    boxes
        The chunks, ``(y0, y1, x0, x1)`` in px of the image's finest level.
    reason
        What was said of the first of them.
    """

    name: str
    image: str
    n_spots: int
    rows: list[int] = field(default_factory=list)
    boxes: set[Box] = field(default_factory=set)
    reason: str = ""

    def note(self, row: int, lost: list[tuple[Box, DamageError]], downsample: float) -> None:
        """Leave a spot out."""
        self.rows.append(row)
        self.boxes |= {tuple(round(edge * downsample) for edge in box) for box, _ in lost}  # type: ignore[misc]
        self.reason = self.reason or str(lost[0][1].__cause__ or lost[0][1])

    @property
    def regions(self) -> list[Box]:
        """Chunks that touch taken together, as the boxes around them."""
        boxes = [shapely.box(x0, y0, x1, y1) for y0, y1, x0, x1 in sorted(self.boxes)]
        parts = shapely.get_parts(shapely.union_all(boxes)) if boxes else []
        bounds = [[round(edge) for edge in part.bounds] for part in parts]
        return sorted((y0, y1, x0, x1) for x0, y0, x1, y1 in bounds)

    def describe(self) -> str:
        """How many spots, where, and why."""
        found = self.regions
        named = "; ".join(f"x {x0} to {x1}, y {y0} to {y1}" for y0, y1, x0, x1 in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more regions" if len(found) > _NAMED else ""
        return (
            f"slice {self.name!r} ({self.image}): the patches of {len(self.rows)} of {self.n_spots} spots touch pixels "
            f"that cannot be decoded, px {named}{more} ({self.reason})"
        )

    def check(self) -> None:
        """Raise :class:`DamageError` where there is any."""
        if self.rows:
            raise DamageError(
                f"{self.describe()}. Fetch the image again; or leave these spots out: "
                "pp.embed_patches(..., damaged='nan') gives them NaN and names them in uns['X_patch']['left_out']."
            )
