"""Features on disk, found again by the content of what they were made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from st_gchb._artifacts import write_whole
from st_gchb._logging import logger
from st_gchb._settings import settings

CODE_VERSION = 1
"""To be raised whenever patches or features come out differently from the same input."""
_KEY = "features"

Features = npt.NDArray[np.float32]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of cached features: in the folder that is given, else in ``settings.cache_dir``.

    Examples
    --------
    >>> from st_gchb.pp.patches._cache import cache_folder
    >>> cache_folder("/data/cache").as_posix()
    '/data/cache/features'
    """
    return (Path(cache_dir).expanduser() if cache_dir else settings.cache_dir) / "features"


def content_key(**parts: Any) -> str:
    """Hash of everything that the features depend on; arrays count by their bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.patches._cache import content_key
    >>> content_key(a=np.zeros(2)) == content_key(a=np.ones(2))
    False
    """
    digest = hashlib.sha256(f"st_gchb-{CODE_VERSION}".encode())
    for name, value in sorted(parts.items()):
        if isinstance(value, np.ndarray):
            digest.update(f"{name}:{value.dtype}:{value.shape}:".encode())
            digest.update(np.ascontiguousarray(value).data)
        else:
            digest.update(json.dumps([name, value]).encode())
    return digest.hexdigest()


def load_features(folder: Path, key: str, shape: tuple[int, int]) -> Features | None:
    """Load features that were stored; None where there are none, or the file is damaged (with a warning)."""
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            stored_hash = (file.metadata() or {}).get("sha256")
            features = file.get_tensor(_KEY)
    except (SafetensorError, OSError) as error:
        logger.warning("The cached features in %s are damaged (%s): they are computed again.", path, error)
        return None
    if features.shape != shape or features.dtype != np.float32 or _sha256(features) != stored_hash:
        logger.warning("The cached features in %s are not what was stored: they are computed again.", path)
        return None
    return features


def store_features(folder: Path, key: str, features: Features) -> None:
    """Store features; where the disk refuses, say so and go on, since they are in memory."""
    path = folder / f"{key}.safetensors"
    try:
        with write_whole(path) as part:
            save_file({_KEY: np.ascontiguousarray(features)}, part, metadata={"sha256": _sha256(features)})
    except (OSError, SafetensorError) as error:
        logger.warning("Features could not be cached in %s (%s): the next run computes them again.", path, error)


def _sha256(features: Features) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()
