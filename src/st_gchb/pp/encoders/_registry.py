"""Encoders of others, found by the name under which their factory is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from st_gchb._arguments import checked
from st_gchb._errors import ArgumentError, EncoderError, STGCHBError
from st_gchb.pp.encoders._backbones import torchvision_names
from st_gchb.pp.encoders._hub_models import is_hub_name
from st_gchb.pp.encoders._pathology import pathology_encoder

F = TypeVar("F", bound=Callable[..., Any])

FACTORIES: dict[str, Callable[..., Any]] = {}
"""Registered factories by the name of their encoder."""
_PREFIXES = ("timm:", "module:")


@checked
def register_encoder(
    name: str, factory: Callable[..., Any] | None = None, *, overwrite: bool = False
) -> Callable[..., Any]:
    """Register a factory of an encoder, so that the encoder can be used by name.

    Features made with ``embed_patches(encoder=name)`` and models trained on them store the name and the hash of the
    weights. A model embeds a query's patches by calling the factory again, in whichever process it is loaded: register
    the factory there first, on the workers of a cluster too.

    Parameters
    ----------
    name
        Name of the encoder.
    factory
        Function that returns a :class:`torch.nn.Module` with the attributes ``transform``, which turns a batch of
        patches ``(b, 3, h, w)`` uint8 into what the module takes, and ``input_px``, the side of these patches (224
        where it is absent); or what :func:`get_encoder` returns for a module and its transform. The module maps to
        features ``(b, n_features)``, tokens or feature maps. A factory with an argument ``weights`` is given that of
        :func:`embed_patches`: ``"default"``, None or a path. ``None`` returns a decorator.
    overwrite
        Replace a factory of the same name. The package's own encoders cannot be replaced.

    Returns
    -------
    collections.abc.Callable
        The factory, or a decorator for it.

    Raises
    ------
    EncoderError
        The name is taken.
    ArgumentError
        The name is empty, or the factory cannot be called.

    Examples
    --------
    >>> import torch
    >>> from st_gchb.pp import get_encoder, register_encoder
    >>> class MeanColor(torch.nn.Module):
    ...     input_px = 32
    ...
    ...     def transform(self, patches):
    ...         return patches.float() / 255
    ...
    ...     def forward(self, rgb):
    ...         return rgb.mean((2, 3))
    >>> @register_encoder("mean-color", overwrite=True)
    ... def mean_color():
    ...     return MeanColor()
    >>> get_encoder("mean-color").n_features
    3
    """
    if not name.strip() or name != name.strip():
        raise ArgumentError(f"register_encoder: name={name!r}; expected a name without space around it.")
    if name == "texture" or name.startswith(_PREFIXES) or is_hub_name(name) or name in torchvision_names():
        raise EncoderError(
            f"register_encoder: {name!r} is the name of one of the package's own encoders. Choose another."
        )
    if name in FACTORIES and not overwrite:
        raise EncoderError(
            f"register_encoder: an encoder {name!r} is registered already. Choose another name, or pass overwrite=True "
            "to replace it."
        )

    def register(function: F) -> F:
        if not callable(function):
            raise ArgumentError(
                f"register_encoder: found a {type(function).__name__} for {name!r}; expected a function that returns "
                "a torch.nn.Module."
            )
        FACTORIES[name] = function
        return function

    return register if factory is None else register(factory)


def registered_names() -> list[str]:
    """List the names of registered encoders."""
    return list(FACTORIES)


def is_known(name: str) -> bool:
    """Tell whether a name is one of the package's encoders or a registered one."""
    own = name == "texture" or name.startswith(_PREFIXES) or is_hub_name(name) or name in torchvision_names()
    return own or name in FACTORIES


def call_factory(name: str, weights: str | None) -> Any:
    """Call the factory of a registered encoder.

    Raises
    ------
    EncoderError
        The factory fails, or takes no weights where some are named.
    """
    factory = FACTORIES[name]
    takes_weights = "weights" in inspect.signature(factory).parameters
    if not takes_weights and weights != "default":
        raise EncoderError(
            f"weights={weights!r}: the factory of encoder {name!r} has no argument weights. Leave weights out, or give "
            "the factory one."
        )
    try:
        return factory(weights=weights) if takes_weights else factory()
    except STGCHBError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ImportError) as error:
        raise EncoderError(
            f"the factory of encoder {name!r} failed ({type(error).__name__}: {error}). Correct it, and register it "
            "again with overwrite=True."
        ) from error


def license_of(name: str) -> str:
    """Say under which license the weights of an encoder are shared, as far as it is known.

    Examples
    --------
    >>> from st_gchb.pp.encoders import license_of
    >>> license_of("uni")
    'CC BY-NC-ND 4.0, terms to be accepted on https://huggingface.co/MahmoodLab/UNI'
    >>> license_of("texture")
    'no weights; part of st-gchb'
    """
    if name == "texture":
        return "no weights; part of st-gchb"
    if name in torchvision_names():
        return "that of torchvision (BSD-3-Clause) where its own weights are used, which are trained on ImageNet"
    entry = pathology_encoder(name)
    if entry is None:
        return "not known to st-gchb"
    terms = (
        f", terms to be accepted on https://huggingface.co/{entry.repo_id}"
        if entry.gated in ("terms", "by hand")
        else ""
    )
    return f"{entry.license}{terms}"
