"""State dicts: read from a file without running its code, and compared with the trunk they are meant for."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from st_gchb._advice import Fix, advise
from st_gchb._errors import EncoderError, WeightsUnavailableError

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or one of ``torch.save``.

    Raises
    ------
    WeightsUnavailableError
        There is no file at the path.
    EncoderError
        The file is damaged, or holds anything else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsUnavailableError(
            f"{path}: there is no such weights file (now in {Path.cwd()}). "
            + advise(Fix("weights", why="with the right path"), Fix("encoder", "'texture'", "which needs no weights"))
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise EncoderError(f"{path}: the weights file is damaged ({error}). Fetch it again.") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{path}: the file is damaged, or holds more than tensors, which would mean running its code. Save the "
            "state dict alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise EncoderError(f"{path}: the weights file is damaged ({error}). Fetch or save it again.") from error
    return _unwrap(state, path)


def _unwrap(state: Any, path: Path) -> dict[str, Tensor]:
    """Take a state dict out of a checkpoint, and the prefix of data-parallel training off its keys."""
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise EncoderError(f"{path}: found a {type(state).__name__}; expected a state dict, names to tensors.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def trunk_state(state: Mapping[str, Tensor], head: tuple[str, ...]) -> dict[str, Tensor]:
    """Leave out the tensors of the head, whose modules are named, and give the others today's names."""
    # The published files of DenseNet still say norm.1 for norm1.
    modern = {re.sub(r"(denselayer\d+\.)(norm|conv)\.([12])\.", r"\1\2\3.", key): value for key, value in state.items()}
    return {key: value for key, value in modern.items() if not any(key.startswith(f"{prefix}.") for prefix in head)}


def disagreement(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Say in what a state dict differs from the tensors of a module; empty where they agree.

    Examples
    --------
    >>> from torch import nn
    >>> from st_gchb.pp._weights import disagreement
    >>> disagreement(nn.Linear(2, 1), nn.Linear(3, 1).state_dict())
    "1 have another shape (first: 'weight')"
    """
    expected = module.state_dict()
    # Old files lack the counter of batches, which plays no part in eval mode.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    kinds = ((missing, "are missing"), (unknown, "are unknown"), (shapes, "have another shape"))
    return ", ".join(f"{len(keys)} {what} (first: {keys[0]!r})" for keys, what in kinds if keys)
