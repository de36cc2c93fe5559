"""Convert exceptions that are raised on damaged files and full disks into typed errors of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from st_gchb._artifacts import write_whole
from st_gchb._compat import read_errors
from st_gchb._errors import InputError, STGCHBError, StoreError

DAMAGED = "It is damaged or incomplete: fetch or export it again."
"""Advice for a file that another program wrote."""
_LONGEST = 300
"""Number of characters of another library's message that are quoted."""


@contextmanager
def reading(
    path: str | Path, what: str, advice: str = "Fetch or write it again.", error: type[STGCHBError] = InputError
) -> Iterator[None]:
    """Convert exceptions raised while a file is read into an error that names the file and the remedy.

    Parameters
    ----------
    path
        The file or folder.
    what
        The content that was read, such as ``"the table of spots"``.
    advice
        Remedy, one sentence.
    error
        Type of the error to raise.

    Raises
    ------
    InputError
        The file cannot be read; or the type given as ``error``. Errors of this package are re-raised unchanged.

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
    # read_errors() imports the libraries' exception types, so it is called only when something was raised.
    except read_errors() as found:
        said = " ".join(str(found).split())
        short = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        raise error(
            f"{path}: {what} cannot be read ({type(found).__name__}{f': {short}' if short else ''}). {advice}"
        ) from found


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all, as :func:`~st_gchb._artifacts.write_whole`.

    Parameters
    ----------
    target
        File to write.

    Yields
    ------
    pathlib.Path
        Temporary file beside it.

    Raises
    ------
    StoreError
        The file cannot be written, such as on a full disk; an earlier file of that name is left as it was.
    """
    try:
        with write_whole(target) as part:
            yield part
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{target} could not be written ({error.strerror or error}); nothing of it is left. Name another place."
        ) from error


def check_text(path: Path, what: str, error: type[STGCHBError] = InputError) -> None:
    """Validate that a text table holds no NUL characters: pandas ends a number there, and takes 15 for 150.

    Parameters
    ----------
    path
        The file. A compressed one passes, since its checksum tells damage.
    what
        The content, such as ``"the table of slides"``.
    error
        Type of the error to raise.

    Raises
    ------
    InputError
        The file holds NUL characters; or the type given as ``error``.
    """
    content = path.read_bytes()
    if b"\0" in content and not content.startswith(b"\x1f\x8b"):
        raise error(f"{path}: {what} cannot be read (it holds NUL characters). {DAMAGED}")
