"""One door for what goes wrong while a file is read: whatever the library underneath raises becomes a typed error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from st_gchb._compat import read_errors
from st_gchb._errors import InputError, STGCHBError

DAMAGED = "It is damaged or incomplete: fetch or export it again."
"""Advice on a file that came from elsewhere."""
_LONGEST = 300
"""Characters of another library's message that are passed on."""


@contextmanager
def reading(
    path: str | Path, what: str, advice: str = "Fetch or write it again.", error: type[STGCHBError] = InputError
) -> Iterator[None]:
    """Turn what a library raises on a damaged file into an error that names the file and what to do.

    Parameters
    ----------
    path
        The file or folder.
    what
        What it was read as, such as ``"the table of spots"``.
    advice
        What to do, one sentence.
    error
        Type of the error.

    Raises
    ------
    InputError
        Or the type that was asked for. Errors of this package pass through as they are.

    Examples
    --------
    >>> from st_gchb.io._reading import reading
    >>> with reading("sample.json", "the scale factors"):  # doctest: +ELLIPSIS
    ...     raise KeyError("tissue_hires_scalef")
    Traceback (most recent call last):
    st_gchb.errors.InputError: sample.json: the scale factors cannot be read (KeyError: 'tissue_hires_scalef'). ...
    """
    try:
        yield
    except STGCHBError:
        raise
    # The tuple is put together when it is needed: it takes the libraries' own types.
    except read_errors() as found:
        said = " ".join(str(found).split())
        short = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        raise error(
            f"{path}: {what} cannot be read ({type(found).__name__}{f': {short}' if short else ''}). {advice}"
        ) from found
