"""The JSON part of a model folder: arrays in it, and the hash that it vouches for itself with."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def digest(record: dict[str, Any]) -> str:
    """Hash of the JSON part without its hash: the file holds the genes' names, and vouches for the other files."""
    own = {key: value for key, value in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def encode(value: Any) -> Any:
    """A registry as JSON: arrays are marked, so that they come back as arrays."""
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": "object" if value.dtype.kind in "OUS" else str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """The registry that :func:`encode` was given."""
    if isinstance(value, dict):
        if "__array__" in value:
            return np.array(value["__array__"], dtype=value["dtype"])
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value
