"""Names in model folders of formats 2 and 3, and their names today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st_gchb.pp.patches import EARLIER_NAMES

RENAMED_IN = 4
"""First format with today's names."""

_SETTINGS = {
    "n_image_tail": "n_image_adapter",
    "image_tail": "finetune",
    "image_tail_lr": "finetune_lr_factor",
    "literal": "paper_equations",
    "linear_weight": "ridge_weight",
    "linear_full_at": "ridge_full_at",
    "linear_components": "ridge_components",
    "linear_penalty": "ridge_penalty",
}
EARLIEST_SETTINGS = {today: earlier for earlier, today in _SETTINGS.items()}
"""Names of settings today, and those in the first formats."""
_ARRAYS = {"calibration.centre": "calibration.center", "centres": "centers"}


_DROPPED = {"features": {"stain_augment"}}
"""Fields of parts of the record that are not read any more: versions of the reference in other stains."""


def without_dropped(record: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the fields of features that no longer exist from the JSON part of a model folder."""
    result = dict(record)
    for part, names in _DROPPED.items():
        if isinstance(result.get(part), Mapping):
            result[part] = {key: value for key, value in result[part].items() if key not in names}
    return result


def record_of_today(record: dict[str, Any]) -> dict[str, Any]:
    """Give the JSON part of a model folder under today's names; what is damaged in it stays so."""
    result = dict(record)
    for part, names in (("settings", _SETTINGS), ("features", EARLIER_NAMES)):
        if isinstance(result.get(part), Mapping):
            result[part] = {names.get(key, key): value for key, value in result[part].items()}
    return result


def arrays_of_today(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Give arrays of a model folder under today's names."""
    return {_ARRAYS.get(name, name): values for name, values in arrays.items()}
