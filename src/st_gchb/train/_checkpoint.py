"""Checkpoint files: one safetensors file with a JSON record in its header; no pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from st_gchb._errors import CheckpointError
from st_gchb._files import write_whole

FORMAT = 1


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state to a file, whole or not at all.

    Parameters
    ----------
    path
        The file.
    state
        Dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises
    ------
    OSError
        If the disk is full or refuses.
    """
    tensors: dict[str, Tensor] = {}
    record = json.dumps({"format": FORMAT, "state": _plain(state, tensors)})
    with write_whole(path) as part:
        try:
            save_file(tensors, part, metadata={"record": record, "sha256": _digest(record, tensors)})
        except SafetensorError as error:
            # So it calls a full disk; what it cannot hold has been refused before.
            raise OSError(f"{path} could not be written: {error}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that :func:`write_checkpoint` was given.

    Raises
    ------
    CheckpointError
        If the file is cut short, changed, or no checkpoint.
    """
    damaged = f"The checkpoint {path} is damaged ({{}}). Delete it, and train again from the beginning."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(damaged.format(error)) from error
    record = metadata.get("record", "")
    if metadata.get("sha256") != _digest(record, tensors):
        raise CheckpointError(damaged.format("its hash is not that of what it holds"))
    stored = json.loads(record)
    if stored["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint {path} is of format {stored['format']}, this version of st-gchb reads {FORMAT}. "
            "Go on with the version that wrote it, or delete it and train again."
        )
    state: dict[str, Any] = _restored(stored["state"], tensors)
    return state


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON: what JSON does not know is marked, tensors are put aside."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy each: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        # As pairs: keys may be numbers, and the order of an optimizer's parameters counts.
        return {"pairs": [[_plain(key, tensors), _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_plain(item, tensors) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint cannot hold a {type(value).__name__}.")


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_restored(item, tensors) for item in value["tuple"])
    return {_restored(key, tensors): _restored(item, tensors) for key, item in value["pairs"]}


def _digest(record: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(tensors[name].reshape(-1).view(torch.uint8).numpy()).data)
    return sha.hexdigest()
