"""Frozen encoders, built by name or from a module."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from st_gchb._advice import Fix, advise
from st_gchb._arguments import checked
from st_gchb._compat import fold_batch_norm
from st_gchb._errors import EncoderError
from st_gchb._options import DEFAULT_ENCODER
from st_gchb.pp.encoders._backbones import Backbone, timm_backbone, torchvision_backbone, torchvision_names
from st_gchb.pp.encoders._hub_models import hub_backbone, is_hub_name
from st_gchb.pp.encoders._registry import call_factory, registered_names
from st_gchb.pp.encoders._texture import TEXTURE_INPUT_PX, TEXTURE_VERSION, Texture

_MODULE_INPUT_PX = 224

_LARGE = 50_000_000
"""Number of weights from which a pass of shapes takes less time than a patch."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen encoder with everything that is needed to use it the same way again.

    Made by :func:`get_encoder`.

    Parameters
    ----------
    name
        Name, as :func:`get_encoder` takes it.
    weights
        ``"default"``, ``"default@commit"`` of a repository, ``"none"`` (random), ``"module"``, or a path.
    weights_sha256
        Hash of the network's tensors.
    input_px
        Side of the patches that it takes, px.
    n_features
        Number of features per patch.
    module
        The network, without its head, in eval mode, without gradients.
    mean, std
        Mean and standard deviation of the channels, in 0 to 1, with which patches are standardized.
    transform
        Function that is used instead of mean and std where a module has its own.
    identity
        Text that differs between encoders whose features differ: part of the key of cached features.
    """

    name: str
    weights: str
    weights_sha256: str
    input_px: int
    n_features: int
    module: nn.Module
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    transform: Callable[[Tensor], Tensor] | None = None
    identity: str = field(default="", repr=False)

    @torch.inference_mode()
    def __call__(self, patches: Tensor) -> Tensor:
        """Encode patches, ``(b, 3, input_px, input_px)`` uint8, to features ``(b, n_features)`` float32."""
        return _pool(self.module(self._prepare(patches)), self.module).float()

    @cached_property
    def folded(self) -> nn.Module:
        """The network with batch norm folded into the convolutions before it, where it is one of torchvision's.

        All networks of torchvision can be traced. Features change by rounding only; MobileNetV2 takes little more than
        half the time. Other networks are not changed.
        """
        if self.name not in torchvision_names() or self.weights == "module":
            return self.module
        return fold_batch_norm(self.module).to(memory_format=torch.channels_last)

    def _prepare(self, patches: Tensor) -> Tensor:
        if self.transform is not None:
            return _apply_transform(self.transform, patches, self.name)
        # On a CPU, convolutions of uint8 images, which come channels last, are a third faster in that order.
        values = patches.to(torch.float32, memory_format=torch.channels_last, copy=True)
        # Whole rows with interleaved channels: three numbers at a time would take four times as long.
        lines = values.permute(0, 2, 3, 1).view(len(patches), patches.shape[2], -1)
        mean, std = (lines.new_tensor(numbers).repeat(patches.shape[3]) for numbers in (self.mean, self.std))
        lines.div_(255).sub_(mean).div_(std)
        return values


@checked
def get_encoder(
    encoder: str | nn.Module | Encoder = DEFAULT_ENCODER,
    weights: str | Path | None = "default",
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Encoder:
    """Get a frozen encoder by name.

    Parameters
    ----------
    encoder
        Name of a torchvision classification model, short name of a pathology encoder (:func:`list_encoders`, such as
        ``"uni"``), ``"hf-hub:owner/name"`` for a repository of the Hugging Face hub (``@revision`` may follow),
        ``"timm:<name>"``, ``"texture"`` (statistics, no weights), a name of :func:`register_encoder`, or a
        :class:`torch.nn.Module` that gives features. A module is copied, not changed. Encoders of the hub need the
        extra ``timm`` or ``transformers``.
    weights
        ``"default"`` (the library's pretrained weights, downloaded once), a path of a ``.safetensors`` or state-dict
        file, or None for random weights from a fixed seed. Encoders of the hub also take ``"default@revision"`` and
        the folder of a downloaded repository. Ignored for ``"texture"`` and modules; passed to a registered factory
        that takes it.
    transform
        Function that turns patches ``(b, 3, h, w)`` uint8 into what a module takes; by default the module's attribute
        ``transform``.

    Returns
    -------
    Encoder
        The image encoder with its input size, standardization and hash.

    Raises
    ------
    EncoderError
        The name is unknown or not registered in this process, the weights are another architecture's, or the module
        gives no features.
    WeightsUnavailableError
        The weights could not be downloaded, or are not at the path; a
        :class:`~st_gchb.errors.WeightsAccessError` if they are shared under terms that are to be accepted first.

    Examples
    --------
    >>> from st_gchb.pp import get_encoder
    >>> get_encoder("texture").n_features
    107
    """
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, nn.Module):
        return _from_module(encoder, transform)
    if not isinstance(encoder, str):
        raise EncoderError(f"encoder is a {type(encoder).__name__}; expected a name or a torch.nn.Module.")
    if transform is not None:
        raise EncoderError(f"transform= goes with a torch.nn.Module; encoder {encoder!r} brings its own. Leave it out.")
    named = None if weights is None else str(weights)
    if encoder == "texture":
        backbone = Backbone(Texture(), TEXTURE_INPUT_PX, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "default")
        return _freeze(encoder, backbone, f"texture-{TEXTURE_VERSION}")
    if encoder in registered_names():
        return _from_factory(encoder, named)
    if is_hub_name(encoder):
        backbone = hub_backbone(encoder, named)
    elif encoder.startswith("timm:"):
        backbone = timm_backbone(encoder.removeprefix("timm:"), named)
    else:
        backbone = torchvision_backbone(encoder, named, registered_names())
    return _freeze(encoder, backbone, f"{encoder}-{backbone.input_px}-{backbone.mean}-{backbone.std}")


def _freeze(name: str, backbone: Backbone, identity: str) -> Encoder:
    module = backbone.module.eval().requires_grad_(False)
    sha256 = state_sha256(module)
    encoder = Encoder(name, backbone.weights, sha256, backbone.input_px, 0, module, backbone.mean, backbone.std)
    _check_finite(encoder)
    object.__setattr__(encoder, "n_features", _width(encoder))
    object.__setattr__(encoder, "identity", f"{identity}-{sha256}")
    module.to(memory_format=torch.channels_last)
    return encoder


def _from_factory(name: str, weights: str | None) -> Encoder:
    """Build a registered encoder.

    Raises
    ------
    EncoderError
        The factory returns no module with a transform, or one that gives no features.
    """
    made = call_factory(name, weights)
    if isinstance(made, nn.Module) and callable(getattr(made, "transform", None)):
        made = _from_module(made, None)
    if not isinstance(made, Encoder) or made.transform is None:
        found = f"the encoder {made.name!r}" if isinstance(made, Encoder) else f"a {type(made).__name__}"
        raise EncoderError(
            f"the factory of encoder {name!r} returned {found}; expected a torch.nn.Module with the attributes "
            "transform and input_px, or st_gchb.pp.get_encoder(module, transform=...)."
        )
    label = "none" if weights is None else weights
    return replace(made, name=name, weights=label, identity=f"registered:{name}-{made.identity}")


def _from_module(module: nn.Module, transform: Callable[[Tensor], Tensor] | None) -> Encoder:
    name = f"module:{type(module).__name__}"
    own = transform if transform is not None else getattr(module, "transform", None)
    if not callable(own):
        raise EncoderError(
            f"encoder {name!r} has no transform, which turns patches (b, 3, h, w) uint8 into what the module takes, "
            "e.g. torchvision.transforms.v2 with ToDtype(torch.float32, scale=True) and Normalize. "
            + advise(Fix("transform", why="with it"), otherwise="Set it as the module's attribute 'transform'.")
        )
    frozen = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    input_px = int(getattr(module, "input_px", _MODULE_INPUT_PX))
    sha256 = state_sha256(frozen)
    encoder = Encoder(name, "module", sha256, input_px, 0, frozen, transform=own)
    answer = _probe(encoder)
    # Code and transform have no hash of their own: their features of a fixed patch identify them.
    rounded = hashlib.sha256((answer * 1e3).round().to(torch.int64).numpy().tobytes()).hexdigest()
    object.__setattr__(encoder, "n_features", answer.shape[1])
    object.__setattr__(encoder, "identity", f"{name}-{input_px}-{sha256}-{rounded}")
    return encoder


def _check_finite(encoder: Encoder) -> None:
    """Refuse weights that are no numbers, which would show in the features of some patches alone."""
    values = encoder.module.state_dict().items()
    bad = [
        key
        for key, value in values
        if value.is_floating_point() and value.numel() and not all(map(torch.isfinite, value.aminmax()))
    ]
    if bad:
        raise EncoderError(
            f"encoder {encoder.name!r} (weights {encoder.weights!r}) has NaN or infinite weights ({bad[0]!r}"
            f"{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}): it gives no finite features. Fetch or save the "
            "weights again."
        )


def _width(encoder: Encoder) -> int:
    """Find the number of features: of a large network by a pass of shapes alone, since a patch takes it seconds.

    Networks that look at numbers on their way are given a patch, and so are small ones, which are faster with it.
    """
    if sum(value.numel() for value in encoder.module.parameters()) < _LARGE:
        return _probe(encoder).shape[1]
    tensors = [*encoder.module.named_parameters(), *encoder.module.named_buffers()]
    patch = torch.empty((1, 3, encoder.input_px, encoder.input_px), device="meta")
    try:
        # A copy with the same tensors: some networks keep what they compute on their way, here without numbers.
        module = copy.deepcopy(encoder.module, {id(value): value for _, value in tensors})
        with torch.inference_mode():
            answer = _pool(functional_call(module, {key: value.to("meta") for key, value in tensors}, (patch,)), module)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        answer = _probe(encoder)
    return answer.shape[1]


def _probe(encoder: Encoder) -> Tensor:
    """Encode one fixed patch, which shows whether the encoder gives features, and how many."""
    generator = torch.Generator().manual_seed(0)
    size = (1, 3, encoder.input_px, encoder.input_px)
    patch = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    try:
        answer = encoder(patch)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, EncoderError):
            raise
        raise EncoderError(
            f"encoder {encoder.name!r} cannot take a patch of {encoder.input_px} x {encoder.input_px} px ({error}). "
            "Give the module an attribute input_px, and a transform that makes what it takes."
        ) from error
    if answer.shape[1] == 0 or not torch.isfinite(answer).all():
        raise EncoderError(f"encoder {encoder.name!r} gives no finite features: check its weights and its transform.")
    return answer


def _apply_transform(transform: Callable[[Tensor], Tensor], patches: Tensor, name: str) -> Tensor:
    try:
        values = transform(patches)
    except (TypeError, ValueError, AttributeError) as error:
        raise EncoderError(
            f"the transform of encoder {name!r} failed on a uint8 tensor of shape {tuple(patches.shape)} ({error}). It "
            "gets whole batches: use torchvision.transforms.v2, with ToDtype(torch.float32, scale=True) for ToTensor."
        ) from error
    if not isinstance(values, Tensor) or values.shape[0] != patches.shape[0]:
        raise EncoderError(f"the transform of encoder {name!r} gives no tensor of {patches.shape[0]} patches.")
    return values


def _pool(answer: Any, module: nn.Module) -> Tensor:
    """Pool to one vector per patch: the mean of feature maps; of tokens, the class token and the mean of the others."""
    if not isinstance(answer, Tensor) or answer.ndim not in (2, 3, 4):
        found = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise EncoderError(
            f"the encoder gives {found}; expected features (b, n), tokens (b, t, n) or maps (b, n, h, w)."
        )
    if answer.ndim == 2:
        return answer
    if answer.ndim == 4:
        return answer.mean((2, 3))
    prefix = max(int(getattr(module, "num_prefix_tokens", 1)), 1)
    return torch.cat([answer[:, 0], answer[:, prefix:].mean(1)], dim=1)


def state_sha256(module: nn.Module) -> str:
    """Hash names, types, shapes and bytes of a module's tensors: SHA-256, hexadecimal.

    Examples
    --------
    >>> from torch import nn
    >>> from st_gchb.pp.encoders._encoder import state_sha256
    >>> state_sha256(nn.Identity())[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
