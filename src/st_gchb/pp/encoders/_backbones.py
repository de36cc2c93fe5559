"""Image encoders: torchvision and timm models without their classification heads, and their weights.

Builds the architecture, reads weights from the library or a file, and validates that the weights fit the architecture.
"""

from __future__ import annotations

import difflib
import http.client
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from st_gchb._advice import Fix, advise
from st_gchb._compat import torchvision_models
from st_gchb._errors import (
    EncoderError,
    HubAccessError,
    HubError,
    MissingExtraError,
    WeightsAccessError,
    WeightsUnavailableError,
)
from st_gchb._logging import logger
from st_gchb.pp.encoders._pathology import PATHOLOGY_ENCODERS

models = torchvision_models()

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or one written by ``torch.save``.

    Raises
    ------
    WeightsUnavailableError
        There is no file at the path.
    EncoderError
        The file is damaged, or holds anything other than tensors.
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
    """Extract the state dict of a checkpoint, and remove the prefix of data-parallel training from its keys."""
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise EncoderError(f"{path}: found a {type(state).__name__}; expected a state dict, names to tensors.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def backbone_state(state: Mapping[str, Tensor], head: tuple[str, ...]) -> dict[str, Tensor]:
    """Remove the tensors of the head and rename keys of earlier torchvision versions.

    Parameters
    ----------
    state
        State dict of the whole model.
    head
        Paths of the modules to remove.

    Returns
    -------
    dict
        State dict of the backbone.
    """
    # The published weights of DenseNet use the earlier keys "norm.1" and "conv.1" for "norm1" and "conv1".
    modern = {re.sub(r"(denselayer\d+\.)(norm|conv)\.([12])\.", r"\1\2\3.", key): value for key, value in state.items()}
    return {key: value for key, value in modern.items() if not any(key.startswith(f"{prefix}.") for prefix in head)}


def disagreement(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Describe how a state dict differs from the tensors of a module; an empty string if they agree.

    Examples
    --------
    >>> from torch import nn
    >>> from st_gchb.pp.encoders._backbones import disagreement
    >>> disagreement(nn.Linear(2, 1), nn.Linear(3, 1).state_dict())
    "1 have another shape (first: 'weight')"
    """
    expected = module.state_dict()
    # Files of early torch versions lack the batch counter of batch norm, which is not used in eval mode.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    kinds = ((missing, "are missing"), (unknown, "are unknown"), (shapes, "have another shape"))
    return ", ".join(f"{len(keys)} {what} (first: {keys[0]!r})" for keys, what in kinds if keys)


ON_HUB = ("hf-hub:", "hf_hub:")
"""Prefixes of names of repositories on the Hugging Face hub."""
_SEED = 0
_HEADS = ("fc", "classifier", "heads", "head")
_AUXILIARY = ("AuxLogits", "aux1", "aux2")


@dataclass
class Backbone:
    """A module that computes features, and the standardization of its input.

    Parameters
    ----------
    module
        Model without its head.
    input_px
        Side of its input, px.
    mean, std
        Mean and standard deviation per channel by which the input, in 0 to 1, is standardized.
    weights
        ``"default"``, ``"none"`` (random) or the path of a file.
    """

    module: nn.Module
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str


def torchvision_names() -> list[str]:
    """List the names of torchvision's classification models."""
    return models.list_models(module=models)


def torchvision_backbone(name: str, weights: str | None, registered: Sequence[str] = ()) -> Backbone:
    """Build a torchvision classification model without its last layer; ``registered`` names are told of in errors.

    Parameters
    ----------
    name
        Name of the model.
    weights
        ``"default"``: torchvision's default weights, downloaded if needed. Otherwise the path of a file, or None for
        random weights.

    Returns
    -------
    Backbone
        Model without its last layer.

    Raises
    ------
    EncoderError
        The name is unknown, or the weights belong to another architecture.
    WeightsUnavailableError
        The weights could not be downloaded, or there is no file at the path.
    """
    if name not in torchvision_names():
        raise EncoderError(_unknown(name, list(registered)))
    preset = models.get_model_weights(name).DEFAULT
    # Only the numbers of the preset's transform are used: the transform itself crops the border of the patch.
    numbers = preset.transforms()
    input_px = int(numbers.crop_size[0])
    module, head = _build(name, input_px, pretrained=weights is not None)
    if weights == "default":
        _load(module, _download(name, preset), head, name, f"the default weights of {name!r}")
    elif weights is not None:
        _load(module, read_state(weights), head, name, str(weights))
    else:
        logger.warning("encoder %r has random weights (weights=None): its features tell little of the tissue.", name)
    return Backbone(module, input_px, tuple(numbers.mean), tuple(numbers.std), _label(weights))


def backbone_without_weights(name: str) -> nn.Module:
    """Build the architecture of a torchvision model without its last layer; its weights are yet to be loaded."""
    preset = models.get_model_weights(name).DEFAULT
    return _build(name, int(preset.transforms().crop_size[0]), pretrained=True)[0].eval()


@contextmanager
def weight_init(*, pretrained: bool) -> Iterator[None]:
    """Initialize the weights of a network that is built from a fixed seed, and leave the caller's random state.

    Weights of a pretrained network are NaN until they are loaded: to draw random ones takes longer than to read the
    file, seconds for a large vision transformer, and what a file lacks must not pass for a weight.
    """
    with torch.random.fork_rng(devices=[]), _FillWithNaN() if pretrained else nullcontext():
        torch.manual_seed(_SEED)
        yield


def missing_weights(module: nn.Module) -> list[str]:
    """List the tensors of a pretrained network, built in :func:`weight_init`, that were not loaded."""
    values = module.state_dict().items()
    return [
        name for name, value in values if value.is_floating_point() and value.numel() and value.flatten()[0].isnan()
    ]


class _FillWithNaN(TorchFunctionMode):
    """Fill tensors with NaN in place of random numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _RANDOM:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            tensor.detach().fill_(math.nan)
            return tensor
        return func(*args, **(kwargs or {}))


_RANDOM = {"uniform_", "normal_", "trunc_normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"}


def _build(name: str, input_px: int, *, pretrained: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a torchvision model with an identity as head, and list the paths of removed modules.

    The weights are those of :func:`weight_init`.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = input_px
    if name in ("inception_v3", "googlenet"):
        options.update(aux_logits=False, init_weights=not pretrained, transform_input=pretrained)
    with weight_init(pretrained=pretrained):
        module = models.get_model(name, weights=None, **options)
    path = _head_path(module)
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Identity())
    return module, (path, *_AUXILIARY)


def _load(module: nn.Module, state: Mapping[str, Tensor], head: tuple[str, ...], name: str, source: str) -> None:
    """Load a state dict into a backbone; tensors of the head are optional, all others must match."""
    backbone = backbone_state(state, head)
    difference = disagreement(module, backbone)
    if difference:
        fitting = _fitting(state)
        raise EncoderError(
            f"{source}: the weights are not those of encoder {name!r}: of the tensors, {difference}. "
            + (f"They fit encoder={fitting!r}." if fitting else "They fit no model of torchvision: name their own.")
        )
    module.load_state_dict({**module.state_dict(), **backbone}, strict=True)


def _fitting(state: Mapping[str, Tensor]) -> str | None:
    """Find the torchvision model whose backbone has exactly these tensors; None if there is none."""
    size = sum(value.numel() for value in state.values())
    presets = {name: models.get_model_weights(name).DEFAULT for name in torchvision_names()}
    # The nearest in size first: with its head, the one that fits is the first or one of the first to be built.
    for name in sorted(presets, key=lambda one: abs(math.log(max(size, 1) / presets[one].meta["num_params"]))):
        preset = presets[name]
        # Sizes need only be similar: heads may be absent or of another width, and buffers of batch norm are no
        # parameters. Keys distinguish RegNet, whose candidates are expensive to build.
        other_family = name.startswith("regnet_") and not any(key.startswith("trunk_output.") for key in state)
        if other_family or not 0.3 < size / preset.meta["num_params"] < 2:
            continue
        # The meta device allocates no memory and draws no random numbers. RegNet cannot be built on it, because its
        # constructor computes with tensors.
        with torch.device("cpu" if name.startswith("regnet_") else "meta"):
            candidate, head = _build(name, int(preset.transforms().crop_size[0]), pretrained=True)
        if not disagreement(candidate, backbone_state(state, head)):
            return name
    return None


def _head_path(module: nn.Module) -> str:
    """Find the path of the last layer, which maps features to classes."""
    head = next(name for name in _HEADS if hasattr(module, name))
    layers = [
        path for path, layer in module.get_submodule(head).named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    return f"{head}.{layers[-1]}".rstrip(".")


def _download(name: str, preset: Any) -> dict[str, Tensor]:
    try:
        return preset.get_state_dict(progress=logger.isEnabledFor(20), check_hash=True)
    # URLError and timeouts are OSErrors; an interrupted download is an HTTPException, a wrong hash a RuntimeError.
    except (OSError, http.client.HTTPException, RuntimeError, EOFError) as error:
        raise WeightsUnavailableError(
            f"the default weights of encoder {name!r} could not be had from {preset.url} ({error}). Without network, "
            "fetch that file elsewhere. "
            + advise(
                Fix("weights", f"'path/to/{preset.url.rsplit('/', 1)[-1]}'", "then"),
                Fix("encoder", "'texture'", "which needs no weights"),
            )
            + f" A damaged earlier download lies in {torch.hub.get_dir()}."
        ) from error


def timm_backbone(name: str, weights: str | None) -> Backbone:
    """Build a timm model without its classifier.

    Parameters
    ----------
    name
        Name of the model, without the prefix ``"timm:"``.
    weights
        ``"default"``: timm's pretrained weights, downloaded if needed. Otherwise the path of a file, or None for
        random weights.

    Returns
    -------
    Backbone
        Model without its classifier.

    Raises
    ------
    MissingExtraError
        timm is not installed.
    EncoderError
        The name is unknown, or the weights belong to another architecture.
    WeightsUnavailableError
        The weights could not be downloaded, or there is no file at the path.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"encoder 'timm:{name}' needs timm, which is not installed: pip install 'st-gchb[timm]'."
        ) from error
    if not name.startswith((*ON_HUB, "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise EncoderError(f"timm has no model {name!r}." + (f" Did you mean {' or '.join(close)}?" if close else ""))
    module = _create_timm(timm, name, weights)
    if weights is None:
        logger.warning("encoder 'timm:%s' has random weights (weights=None).", name)
    elif weights != "default":
        classifier = cast("dict[str, Any]", module.pretrained_cfg).get("classifier") or ()
        head = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        _load(module, read_state(weights), head, f"timm:{name}", str(weights))
    numbers = timm.data.resolve_model_data_config(module)
    input_px = int(numbers["input_size"][1])
    return Backbone(module, input_px, tuple(numbers["mean"]), tuple(numbers["std"]), _label(weights))


def _create_timm(timm: Any, name: str, weights: str | None) -> nn.Module:
    try:
        with weight_init(pretrained=weights is not None):
            return timm.create_model(name, pretrained=weights == "default", num_classes=0)
    # All errors of the Hugging Face hub (no network, no access, unknown repository) derive from OSError; timm itself
    # raises RuntimeError.
    except (OSError, RuntimeError) as error:
        # Imported here, since the hub's client takes half a second, and most encoders are no business of the hub.
        from st_gchb._hub import refusal

        refused = refusal(error, name.partition(":")[2].partition("@")[0]) if name.startswith(ON_HUB) else None
        if refused is not None:
            raise unavailable(refused, f"timm:{name}") from error
        raise WeightsUnavailableError(
            f"the weights of 'timm:{name}' could not be had ({error}). Log in by `hf auth login` where the model asks "
            f"for it. {_ways_around()}"
        ) from error


def unavailable(error: HubError, name: str) -> WeightsUnavailableError:
    """Turn a refusal of the hub into the error of an encoder's weights, with ways around it."""
    kind = WeightsAccessError if isinstance(error, HubAccessError) else WeightsUnavailableError
    return kind(f"the weights of encoder {name!r}: {error} {_ways_around()}")


def _ways_around() -> str:
    return advise(
        Fix("weights", why="with the path of its file, or of the folder of its repository, without network"),
        Fix("encoder", "'texture'"),
    )


def _label(weights: str | None) -> str:
    return "none" if weights is None else str(weights)


def _unknown(name: str, registered: list[str]) -> str:
    names = [*torchvision_names(), "texture", *PATHOLOGY_ENCODERS, *registered]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"Did you mean {' or '.join(repr(item) for item in close)}?" if close else "Known: see torchvision.models."
    return (
        f"unknown encoder {name!r}. {hint} Expected a torchvision classification model such as 'resnet50', a pathology "
        "encoder of st_gchb.pp.list_encoders() such as 'uni', 'hf-hub:owner/name', 'timm:<name>', 'texture', a name "
        "registered in this process with st_gchb.pp.register_encoder "
        f"({', '.join(map(repr, registered)) or 'there is none'}), or a torch.nn.Module."
    )
