"""Cache of patch features on disk, addressed by the content that they were computed from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from st_gchb._artifacts import (
    ChangedFileError,
    DamagedFileError,
    read_hashed_tensors,
    sha256,
    write_hashed_tensors,
)
from st_gchb._logging import logger
from st_gchb._settings import settings

CODE_VERSION = 1
"""To be raised whenever patches or features come out differently from the same input."""
_KEY = "features"

Features = npt.NDArray[np.float32]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of cached features.

    Parameters
    ----------
    cache_dir
        Folder of the cache; ``settings.cache_dir`` if None.

    Examples
    --------
    >>> from st_gchb.pp.patches._cache import cache_folder
    >>> cache_folder("/data/cache").as_posix()
    '/data/cache/features'
    """
    return (Path(cache_dir).expanduser() if cache_dir else settings.cache_dir) / "features"


def content_key(**parts: Any) -> str:
    """Compute the SHA-256 of everything that a result depends on.

    Parameters
    ----------
    **parts
        Values by name, in any order: arrays, which count by data type, shape and numbers, and what JSON holds.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.patches._cache import content_key
    >>> content_key(a=np.zeros(2)) == content_key(a=np.ones(2))
    False
    """

    def content() -> Iterator[str | npt.NDArray[Any]]:
        yield f"st_gchb-{CODE_VERSION}"
        for name, value in sorted(parts.items()):
            if isinstance(value, np.ndarray):
                yield f"{name}:{value.dtype}:{value.shape}:"
                yield value
            else:
                yield json.dumps([name, value])

    return sha256(*content())


def load_features(folder: Path, key: str, shape: tuple[int, int]) -> Features | None:
    """Load cached features.

    Parameters
    ----------
    folder
        Folder of the cache.
    key
        Content key of the features.
    shape
        Expected ``(n_spots, n_features)``.

    Returns
    -------
    Features | None
        ``(n_spots, n_features)``; None if there are none, or, with a warning, if the file is damaged.
    """
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        return None
    features: Features | None = None
    try:
        features = read_hashed_tensors(path)[0].get(_KEY)
    except ChangedFileError:
        pass
    except DamagedFileError as error:
        logger.warning("The cached features in %s are damaged (%s): they are computed again.", path, error)
        return None
    if features is None or features.shape != shape or features.dtype != np.float32:
        logger.warning("The cached features in %s are not what was stored: they are computed again.", path)
        return None
    return features


def store_features(folder: Path, key: str, features: Features) -> None:
    """Store features in the cache; a disk that refuses is a warning, since the features are in memory.

    Parameters
    ----------
    folder
        Folder of the cache, created if absent.
    key
        Content key of the features.
    features
        ``(n_spots, n_features)``.
    """
    path = folder / f"{key}.safetensors"
    try:
        write_hashed_tensors(path, {_KEY: features})
    except OSError as error:
        logger.warning("Features could not be cached in %s (%s): the next run computes them again.", path, error)
