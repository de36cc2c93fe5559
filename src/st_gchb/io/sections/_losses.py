"""Report rows that two files of a section do not share (number, share, examples), and refuse more than a tenth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from st_gchb._errors import CoordinateError
from st_gchb._logging import logger

MOST_LOST = 0.1
"""Maximum share of rows that may be lost with only a warning."""
_EXAMPLES = 5


@dataclass(frozen=True)
class Loss:
    """Rows of one file that cannot be used.

    Parameters
    ----------
    names
        Names of the rows.
    among
        Total number of rows.
    what
        Description, such as ``"spots under tissue of A1_selection.tsv have no counts in A1.tsv.gz"``.
    """

    names: Sequence[object]
    among: int
    what: str

    def told(self) -> str:
        """Format number, share and examples for a message."""
        examples = ", ".join(repr(str(name)) for name in self.names[:_EXAMPLES])
        more = ", ..." if len(self.names) > _EXAMPLES else ""
        share = len(self.names) / max(self.among, 1)
        return f"{len(self.names)} of {self.among} {self.what} ({share:.1%}, such as {examples}{more})"

    @property
    def share(self) -> float:
        """Share of lost rows, 0 to 1."""
        return len(self.names) / max(self.among, 1)


def tell_losses(where: str, losses: Iterable[Loss], *, allow_missing: bool) -> None:
    """Warn of every loss, and refuse a loss above a tenth unless ``allow_missing`` is set.

    Parameters
    ----------
    where
        Section or file, for messages.
    losses
        The losses; those without rows are not reported.
    allow_missing
        Accept losses of any size.

    Raises
    ------
    CoordinateError
        A loss is larger than a tenth and than one row, and ``allow_missing`` is not set.
    """
    real = [loss for loss in losses if len(loss.names)]
    # A single lost row is no evidence of mismatched files, even if it exceeds a tenth of a small table.
    large = [loss for loss in real if loss.share > MOST_LOST and len(loss.names) > 1]
    if large and not allow_missing:
        raise CoordinateError(
            f"{where}: {'; '.join(loss.told() for loss in large)}. That is more than a tenth: do the files belong to "
            "one section, and are they complete? To read what is in both, pass allow_missing=True to "
            "st_gchb.io.read_section."
        )
    for loss in real:
        logger.warning("%s: %s; they are left out.", where, loss.told())
