"""Readers of slide formats that the package does not know, registered by whoever has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from st_gchb._arguments import checked
from st_gchb._errors import ArgumentError, ImageError
from st_gchb.io._reading import reading
from st_gchb.io.images._slide_image import SlideImage

Open = Callable[[Path], SlideImage]
F = TypeVar("F", bound=Open)


@dataclass(frozen=True)
class Reader:
    """A reader of one slide format; made by :func:`register_reader`.

    Parameters
    ----------
    name
        Name of the format.
    open
        Function that opens a path of this format.
    suffixes
        Endings of the file or folder name, in lower case with their dot; empty where ``check`` alone decides.
    check
        Function that tells whether a path is of this format; ``None`` where the suffixes alone decide.
    """

    name: str
    open: Open
    suffixes: tuple[str, ...] = ()
    check: Callable[[Path], bool] | None = None

    def accepts(self, path: Path) -> bool:
        """Tell whether a path is to be opened by this reader.

        Parameters
        ----------
        path
            An existing file or folder.

        Returns
        -------
        bool
            Whether the name has one of the suffixes and ``check`` says yes, each where there is one.
        """
        named = not self.suffixes or path.name.lower().endswith(self.suffixes)
        return named and (self.check is None or bool(self.check(path)))

    def read(self, path: Path) -> SlideImage:
        """Open a path and validate what the reader returns.

        Raises
        ------
        ImageError
            The reader fails, or does not return a :class:`SlideImage` with RGB levels.
        """
        try:
            with reading(path, f"the slide as {self.name!r}", error=ImageError):
                image = self.open(path)
        except ImageError as error:
            if str(path) in str(error):
                raise
            raise type(error)(f"{path}: the reader {self.name!r}: {error}") from error
        if not isinstance(image, SlideImage):
            raise ImageError(
                f"{path}: the reader {self.name!r} returned a {type(image).__name__}; expected a st_gchb.io.SlideImage."
            )
        return replace(image, name=str(path)) if image.name == "image" else image


READERS: dict[str, Reader] = {}
"""Registered readers by name; :func:`~st_gchb.io.open_image` asks them in this order, before its own formats."""


@checked
def register_reader(
    name: str,
    *,
    suffixes: str | Sequence[str] = (),
    check: Callable[[Path], bool] | None = None,
    overwrite: bool = False,
) -> Callable[[F], F]:
    """Register a function that opens a slide format, so that :func:`open_image` and all that calls it can read it.

    Registered readers are asked before the package's own formats, in the order of registration. The registration holds
    for the running process: put it into a module that is imported wherever slides are read, workers of a cluster
    included.

    Parameters
    ----------
    name
        Name of the format, for messages and :data:`READERS`.
    suffixes
        Endings of the names of files or folders of this format, such as ``".vsi"``; upper and lower case are the same.
    check
        Function of the path that tells whether it is of this format, for example by its first bytes. With suffixes,
        both have to agree.
    overwrite
        Replace a reader of the same name.

    Returns
    -------
    collections.abc.Callable
        A decorator for a function that takes a :class:`pathlib.Path` and returns a :class:`SlideImage`, whose levels
        are as :class:`SlideLevel` says.

    Raises
    ------
    ArgumentError
        The name is taken, a suffix has no dot, there are neither suffixes nor a check, or what is decorated is no
        function.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from pathlib import Path
    >>> from st_gchb.io import READERS, SlideImage, open_image, register_reader
    >>> @register_reader("numpy", suffixes=".npy")
    ... def open_npy(path):
    ...     return SlideImage([np.load(path, mmap_mode="r")], [1.0])
    >>> path = Path(tempfile.mkdtemp()) / "slide.npy"
    >>> np.save(path, np.zeros((40, 50, 3), dtype=np.uint8))
    >>> open_image(path, um_per_px=0.5).shape_px
    (40, 50)
    >>> del READERS["numpy"]
    """
    endings = tuple(one.lower() for one in ([suffixes] if isinstance(suffixes, str) else suffixes))
    bad = [one for one in endings if not one.startswith(".") or one == "."]
    if bad:
        raise ArgumentError(f"register_reader: suffixes={bad[0]!r}; expected endings with their dot, such as '.vsi'.")
    if not endings and check is None:
        raise ArgumentError(
            f"register_reader: the reader {name!r} has neither suffixes nor a check, so it would be asked for every "
            "file. Pass suffixes=, check= or both."
        )
    if not name.strip():
        raise ArgumentError(f"register_reader: name={name!r}; expected a name of the format.")
    if name in READERS and not overwrite:
        raise ArgumentError(
            f"register_reader: a reader {name!r} is registered already. Pass another name, or overwrite=True to "
            "replace it."
        )

    def register(function: F) -> F:
        if not callable(function):
            raise ArgumentError(
                f"register_reader: found a {type(function).__name__}; expected a function of a path that returns a "
                "st_gchb.io.SlideImage."
            )
        READERS[name] = Reader(name, function, endings, check)
        return function

    return register


def reader_of(path: Path) -> Reader | None:
    """Find the registered reader of a file or folder.

    Returns
    -------
    Reader or None
        The first that accepts it; ``None`` where the package's own formats are to be tried.

    Raises
    ------
    ImageError
        A reader's check fails.
    """
    for reader in READERS.values():
        with reading(path, f"the check of the reader {reader.name!r}", "Correct the check function.", ImageError):
            if reader.accepts(path):
                return reader
    return None
