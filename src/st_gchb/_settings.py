"""Package-wide settings, available to users as ``st_gchb.settings``."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from pathlib import Path
from typing import Any

from st_gchb._errors import InputError

CACHE_VARIABLE = "ST_GCHB_CACHE"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LARGEST_SEED = 2**32 - 1
"""Largest seed that numpy, torch and scikit-learn all accept."""

_logger = logging.getLogger("st_gchb")
# Per context, not per process: workers of a cluster may be threads of the process that waits for them.
_bars_off: ContextVar[bool] = ContextVar("st_gchb_bars_off", default=False)


class Settings:
    """Settings that apply to the whole package until they are changed.

    ``st_gchb.settings`` is the only instance of this class. Arguments of a function take precedence over settings.
    Values are validated when they are set, and ``None`` restores the initial value.

    Examples
    --------
    >>> import st_gchb
    >>> st_gchb.settings.verbosity = "WARNING"
    >>> with st_gchb.settings.override(verbosity="INFO", seed=7):
    ...     st_gchb.settings.verbosity, st_gchb.settings.seed
    ('INFO', 7)
    >>> st_gchb.settings.verbosity, st_gchb.settings.seed
    ('WARNING', 0)
    >>> st_gchb.settings.verbosity = None
    """

    def __init__(self) -> None:
        self._cache_dir: Path | None = None
        self._seed: int | None = None
        self._progress_bars: bool | None = None

    @property
    def verbosity(self) -> str:
        """Lowest level of the messages that are shown.

        It is ``"DEBUG"``, ``"INFO"``, ``"WARNING"``, ``"ERROR"`` or ``"CRITICAL"``.
        A level above ``"INFO"`` also turns progress bars off. Numeric levels of :mod:`logging` are accepted too.
        Initially, the level is that of Python's root logger, which shows warnings.
        """
        return logging.getLevelName(_logger.getEffectiveLevel())

    @verbosity.setter
    def verbosity(self, value: str | int | None) -> None:
        if value is None:
            _logger.setLevel(logging.NOTSET)
            return
        name = value.strip().upper() if isinstance(value, str) else value
        known = (*_LEVELS, *(getattr(logging, level) for level in _LEVELS))
        if not isinstance(name, str | int) or isinstance(name, bool) or name not in known:
            raise InputError(
                f"settings.verbosity={value!r} is unknown; expected one of {list(_LEVELS)}, or None for the level of "
                "Python's root logger."
            )
        _logger.setLevel(name)

    @property
    def progress_bars(self) -> bool:
        """True if progress bars of the package and of training are shown.

        Initially they are, unless :attr:`verbosity` is set to a level above ``"INFO"``, but only in terminals and
        notebooks, so that log files contain none.
        """
        if _bars_off.get():
            return False
        return _logger.level <= logging.INFO if self._progress_bars is None else self._progress_bars

    @progress_bars.setter
    def progress_bars(self, value: bool | None) -> None:
        if value is not None and not isinstance(value, bool):
            raise InputError(f"settings.progress_bars={value!r}; expected True, False, or None to go by verbosity.")
        self._progress_bars = value

    @property
    def cache_dir(self) -> Path:
        """Folder of patch features, checkpoints and downloaded data sets.

        Initially, it is the value of the environment variable ``ST_GCHB_CACHE`` if set, else the user's cache folder.
        """
        if self._cache_dir is not None:
            return self._cache_dir
        if os.environ.get(CACHE_VARIABLE):
            return Path(os.environ[CACHE_VARIABLE]).expanduser()
        import platformdirs

        return platformdirs.user_cache_path("st_gchb")

    @cache_dir.setter
    def cache_dir(self, value: str | os.PathLike[str] | None) -> None:
        if value is None:
            self._cache_dir = None
            return
        if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes) or not os.fspath(value):
            raise InputError(
                f"settings.cache_dir={value!r}; expected the path of a folder, or None for the environment variable "
                f"{CACHE_VARIABLE}, else the user's cache folder."
            )
        self._cache_dir = as_folder(value, "settings.cache_dir")

    @property
    def seed(self) -> int:
        """Seed of models, evaluation and synthetic tissue for calls that are given none; initially 0."""
        return 0 if self._seed is None else self._seed

    @seed.setter
    def seed(self, value: int | None) -> None:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and 0 <= value <= _LARGEST_SEED):
            raise InputError(
                f"settings.seed={value!r}; expected a whole number from 0 to {_LARGEST_SEED}, or None for 0."
            )
        self._seed = None if value is None else int(value)

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Change settings for a block, and restore them when it ends, also after an error.

        Parameters
        ----------
        values
            Settings by name: ``verbosity``, ``progress_bars``, ``cache_dir``, ``seed``.

        Raises
        ------
        InputError
            A setting is unknown or its value is invalid; no setting is changed then.
        """
        unknown = [name for name in values if name not in _NAMES]
        if unknown:
            raise InputError(f"settings.override({unknown[0]}=...): there are the settings {', '.join(_NAMES)}.")
        before = _logger.level, self._progress_bars, self._cache_dir, self._seed
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            level, self._progress_bars, self._cache_dir, self._seed = before
            _logger.setLevel(level)

    def __setattr__(self, name: str, value: Any) -> None:
        # A misspelled name would otherwise be stored without any effect and without an error.
        if name.removeprefix("_") not in _NAMES:
            raise AttributeError(f"st_gchb.settings has no {name!r}; there are the settings {', '.join(_NAMES)}.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        lines = "".join(f"\n    {name} = {_shown(getattr(self, name))}" for name in _NAMES)
        return f"st_gchb.settings{lines}"


_NAMES = ("verbosity", "progress_bars", "cache_dir", "seed")

settings = Settings()


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn progress bars off in this thread, so that a worker's bars do not mix with those of the caller."""
    token = _bars_off.set(True)
    try:
        yield
    finally:
        _bars_off.reset(token)


def bars_disabled() -> bool:
    """Check if progress bars are off: by the settings, or because the output goes to a file."""
    if not settings.progress_bars:
        return True
    return settings._progress_bars is None and not (_in_notebook() or _in_terminal())


def _in_terminal() -> bool:
    # Programs without a console have no stderr.
    return sys.stderr is not None and sys.stderr.isatty()


def _in_notebook() -> bool:
    """Check if this process is a Jupyter kernel, whose output streams do not count as terminals."""
    find = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return "IPKernelApp" in getattr(find(), "config", ())


def as_folder(value: str | os.PathLike[str], what: str) -> Path:
    """Return the path of a folder that exists or can be created.

    Raises
    ------
    InputError
        The path is that of a file, or cannot be a path on this system.
    """
    folder = Path(value)
    try:
        folder = folder.expanduser()
        # Path.exists would report a path that is impossible on this system as merely absent.
        taken = not stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        taken = False
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{what}={os.fspath(value)!r} cannot be the path of a folder ({error}).") from error
    if taken:
        raise InputError(f"{what}={os.fspath(value)!r} is a file; expected a folder, which is made where it is absent.")
    return folder


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)
