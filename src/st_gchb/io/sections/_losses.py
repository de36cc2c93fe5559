"""Rows that two files of one section do not share: told with number, share and examples, and refused above a tenth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from st_gchb._errors import CoordinateError
from st_gchb._logging import logger

MOST_LOST = 0.1
"""Share of rows that may be lost with a warning."""
_EXAMPLES = 5


@dataclass(frozen=True)
class Loss:
    """Rows of one file that cannot be used.

    Parameters
    ----------
    names
        Their names.
    among
        Number of rows that they are among.
    what
        What they are, such as ``"spots under tissue of A1_selection.tsv have no counts in A1.tsv.gz"``.
    """

    names: Sequence[object]
    among: int
    what: str

    def told(self) -> str:
        """Give number, share and examples."""
        examples = ", ".join(repr(str(name)) for name in self.names[:_EXAMPLES])
        more = ", ..." if len(self.names) > _EXAMPLES else ""
        share = len(self.names) / max(self.among, 1)
        return f"{len(self.names)} of {self.among} {self.what} ({share:.1%}, such as {examples}{more})"

    @property
    def share(self) -> float:
        """Share of the rows, 0 to 1."""
        return len(self.names) / max(self.among, 1)


def tell_losses(where: str, losses: Iterable[Loss], *, allow_missing: bool) -> None:
    """Warn of every loss; refuse one above a tenth unless it was asked for.

    Parameters
    ----------
    where
        Section or file, for messages.
    losses
        What is lost; empty ones are not told.
    allow_missing
        Read what is left, however much is lost.

    Raises
    ------
    CoordinateError
        More than a tenth is lost, and more than one row, and it was not asked for.
    """
    real = [loss for loss in losses if len(loss.names)]
    # One row says nothing of the others, however few there are.
    large = [loss for loss in real if loss.share > MOST_LOST and len(loss.names) > 1]
    if large and not allow_missing:
        raise CoordinateError(
            f"{where}: {'; '.join(loss.told() for loss in large)}. That is more than a tenth: do the files belong to "
            "one section, and are they complete? To read what is in both, pass allow_missing=True to "
            "st_gchb.io.read_section."
        )
    for loss in real:
        logger.warning("%s: %s; they are left out.", where, loss.told())
