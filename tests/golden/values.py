"""Golden values on disk: arrays in one compressed file, all else in one JSON file, and the machine they are of."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from golden.scenes import HERE, Values, plain

VALUES = HERE / "values"
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "pandas", "anndata", "scvi-tools", "squidpy")


def machine() -> dict[str, str]:
    """What the last bit of a float can depend on: processor, Python and numerical libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = {"processor": names[0] if names else platform.processor(), "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


def write(scene: str, values: Values) -> None:
    """Write the values of a scene."""
    VALUES.mkdir(exist_ok=True)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    np.savez_compressed(VALUES / f"{scene}.npz", **arrays)
    rest = {name: plain(value) for name, value in values.items() if name not in arrays}
    (VALUES / f"{scene}.json").write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")


def read(scene: str) -> Values:
    """Read the values of a scene."""
    with np.load(VALUES / f"{scene}.npz", allow_pickle=False) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored}
    return arrays | json.loads((VALUES / f"{scene}.json").read_text(encoding="utf-8"))


def write_machine() -> None:
    """Note of which machine the values are."""
    VALUES.mkdir(exist_ok=True)
    (VALUES / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n", encoding="utf-8")


def is_same_machine() -> bool:
    """Return whether the values were recorded on a machine like this one, with the same libraries."""
    return bool(json.loads((VALUES / "machine.json").read_text(encoding="utf-8")) == machine())
