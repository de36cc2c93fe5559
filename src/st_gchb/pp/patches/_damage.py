"""Regions of an image that cannot be decoded, and the spots whose patches they affect."""

from __future__ import annotations

from dataclasses import dataclass, field

import shapely

from st_gchb._errors import DamageError
from st_gchb.io.images import Box

_NAMED = 5
"""Largest number of regions that a message lists."""


@dataclass(eq=False)
class Damage:
    """Regions of a slice's image that could not be decoded, and the spots that they affect.

    Parameters
    ----------
    name
        Name of the slice.
    image
        Name of its image in messages.
    n_spots
        Number of spots of the slice.
    rows
        Positions within the slice of the spots whose patches overlap such regions.
    boxes
        The chunks that could not be decoded, ``(y0, y1, x0, x1)`` in px of the image's finest level.
    reason
        Error message of the first of them.
    """

    name: str
    image: str
    n_spots: int
    rows: list[int] = field(default_factory=list)
    boxes: set[Box] = field(default_factory=set)
    reason: str = ""

    def note(self, row: int, lost: list[tuple[Box, DamageError]], downsample: float) -> None:
        """Record a spot whose patch overlaps chunks that could not be decoded.

        Parameters
        ----------
        row
            Position of the spot within the slice.
        lost
            The chunks, in px of the level, and their errors.
        downsample
            Downsampling factor of the level.
        """
        self.rows.append(row)
        self.boxes |= {tuple(round(edge * downsample) for edge in box) for box, _ in lost}  # type: ignore[misc]
        self.reason = self.reason or str(lost[0][1].__cause__ or lost[0][1])

    @classmethod
    def union(cls, several: list[Damage]) -> Damage:
        """Combine the damage of one slice that patches of several sizes touch; a spot is affected if one of them is."""
        first = several[0]
        rows = list(dict.fromkeys(row for one in several for row in one.rows))
        boxes = {box for one in several for box in one.boxes}
        reason = next((one.reason for one in several if one.reason), "")
        return cls(first.name, first.image, first.n_spots, rows, boxes, reason)

    @property
    def regions(self) -> list[Box]:
        """Bounding boxes ``(y0, y1, x0, x1)`` of the damaged regions, with adjacent chunks merged."""
        boxes = [shapely.box(x0, y0, x1, y1) for y0, y1, x0, x1 in sorted(self.boxes)]
        parts = shapely.get_parts(shapely.union_all(boxes)) if boxes else []
        bounds = [[round(edge) for edge in part.bounds] for part in parts]
        return sorted((y0, y1, x0, x1) for x0, y0, x1, y1 in bounds)

    def describe(self) -> str:
        """Describe how many spots are affected, which regions are damaged, and the reason."""
        found = self.regions
        named = "; ".join(f"x {x0} to {x1}, y {y0} to {y1}" for y0, y1, x0, x1 in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more regions" if len(found) > _NAMED else ""
        return (
            f"slice {self.name!r} ({self.image}): the patches of {len(self.rows)} of {self.n_spots} spots touch pixels "
            f"that cannot be decoded, px {named}{more} ({self.reason})"
        )

    def check(self) -> None:
        """Raise :class:`DamageError` if any spot is affected."""
        if self.rows:
            raise DamageError(
                f"{self.describe()}. Fetch the image again; or leave these spots out: "
                "pp.embed_patches(..., on_damage='nan') gives them NaN and names them in uns['X_patch']['excluded']."
            )
