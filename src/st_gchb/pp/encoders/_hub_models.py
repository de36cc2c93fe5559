"""Encoders from repositories of the Hugging Face hub, or from folders and files that were downloaded there.

One way for all: files are fetched, weights are read without running code, and timm or transformers builds the network
that ``config.json`` describes. Nothing that a repository brings as code is run.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from st_gchb._artifacts import DamagedFileError, is_there, read_json
from st_gchb._errors import EncoderError, HubError, MissingExtraError, WeightsUnavailableError
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_WEIGHTS, is_default
from st_gchb.pp.encoders._backbones import ON_HUB, Backbone, missing_weights, read_state, unavailable, weight_init
from st_gchb.pp.encoders._pathology import PATHOLOGY_ENCODERS, PathologyEncoder, pathology_encoder

_CONFIG, _PREPROCESSOR, _INDEX = "config.json", "preprocessor_config.json", "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, best first: the former cannot hold code."""
_CLASS_TOKEN_FIRST = ("vit", "dinov2", "dinov2_with_registers", "deit", "dinov3_vit")
"""Kinds of networks of transformers that give tokens with the class token first."""
_SEED = 0


@dataclass(frozen=True)
class _Source:
    """Files of an encoder.

    Parameters
    ----------
    name
        Name of the encoder, for messages.
    folder
        Folder with ``config.json`` and weights; None for a weights file alone.
    file
        Weights file; None where the folder has it, or for random weights.
    label
        Text by which the same weights are found again.
    """

    name: str
    folder: Path | None
    file: Path | None
    label: str

    @property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json``; empty for a weights file alone."""
        return {} if self.folder is None else _read_config(self.folder / _CONFIG, self.name)


def is_hub_name(name: str) -> bool:
    """Return whether a name is a short name of a pathology encoder, or names a repository: ``hf-hub:owner/name``."""
    return name in PATHOLOGY_ENCODERS or name.startswith(ON_HUB)


def hub_backbone(name: str, weights: str | None) -> Backbone:
    """Build an encoder of the hub.

    Parameters
    ----------
    name
        Short name of a pathology encoder, or ``hf-hub:owner/name``, with ``@revision`` where one is meant.
    weights
        ``"default"``, fetched once; ``"default@revision"``; the path of a downloaded repository's folder or weights
        file; or None for random weights.

    Returns
    -------
    Backbone
        The network, with the commit of its weights in ``weights``.

    Raises
    ------
    EncoderError
        The network needs code of its authors, is of a kind that cannot be used, or the weights do not fit it.
    MissingExtraError
        The package that builds it is not installed.
    WeightsUnavailableError
        The weights could not be had; a WeightsAccessError if they are shared under terms that are to be accepted.
    """
    entry = pathology_encoder(name)
    if entry is not None and entry.loader == "own code":
        raise EncoderError(
            f"encoder {name!r} ({entry.repo_id}): {entry.note}, and code of a repository is not run here. Install that "
            "package, and pass its network: st_gchb.pp.get_encoder(module, transform=...), or register it under a name "
            "of yours by st_gchb.pp.register_encoder. The page on encoders shows the lines."
        )
    source = _source(name, entry, weights)
    loader = entry.loader if entry is not None and source.folder is None else _loader_of(source)
    module = _by_timm(source, entry, weights) if loader == "timm" else _by_transformers(source, entry, weights)
    if weights is None:
        logger.warning("encoder %r has random weights (weights=None): its features tell little of the tissue.", name)
    input_px, mean, std = _input_of(source, entry, module)
    return Backbone(module, input_px, mean, std, source.label)


def _source(name: str, entry: PathologyEncoder | None, weights: str | None) -> _Source:
    """Find the files, and fetch those that are not here."""
    if weights is None:
        if entry is None or entry.architecture is None:
            raise EncoderError(
                f"encoder {name!r} is known by its files alone: weights=None makes none. Leave weights out."
            )
        return _Source(name, None, None, "none")
    if not is_default(weights):
        return _local(name, entry, Path(weights))
    from st_gchb._hub import check_repo_id, download

    repo_id, _, revision = ("" if name in PATHOLOGY_ENCODERS else name.partition(":")[2]).partition("@")
    # The cache tells repositories apart by capitals, which the hub does not.
    repo_id = repo_id if entry is None else entry.repo_id
    check_repo_id(repo_id)
    wanted = weights.partition("@")[2] or revision or None
    try:
        found = download(repo_id, lambda names: _files(names, name, repo_id), revision=wanted)
    except HubError as error:
        raise unavailable(error, name) from error
    return _Source(name, found.folder, None, f"{DEFAULT_WEIGHTS}@{found.commit}")


def _files(names: list[str], name: str, repo_id: str) -> list[str]:
    """Choose the files of an encoder in a repository.

    Raises
    ------
    EncoderError
        There is no configuration or no weights.
    """
    from st_gchb._hub import page_of

    shards = [one for one in names if one.endswith(".safetensors") and "/" not in one]
    whole = [one for one in _WEIGHTS if one in names][:1] or ([*shards, _INDEX] if _INDEX in names else [])
    if _CONFIG not in names or not whole:
        lacks = _CONFIG if _CONFIG not in names else " or ".join(_WEIGHTS)
        raise EncoderError(
            f"encoder {name!r}: {page_of(repo_id)} has no {lacks} (found {', '.join(sorted(names)[:5]) or 'nothing'}): "
            "it is in no format of timm or transformers. Build the network yourself, and pass it as a torch.nn.Module "
            "with a transform."
        )
    return [_CONFIG, *whole, *([_PREPROCESSOR] if _PREPROCESSOR in names else [])]


def _local(name: str, entry: PathologyEncoder | None, path: Path) -> _Source:
    """Take a folder or a weights file of the caller's."""
    if is_there(path, Path.is_dir):
        names = [one.name for one in path.iterdir() if one.is_file()]
        if _CONFIG not in names or not (set(_WEIGHTS) | {_INDEX}) & set(names):
            raise WeightsUnavailableError(
                f"encoder {name!r}: the folder {path} has no {_CONFIG}, or none of {' and '.join(_WEIGHTS)}. Pass the "
                "folder of the downloaded repository, which has both, or its weights file."
            )
        return _Source(name, path, None, str(path))
    if is_there(path) and (entry is None or entry.architecture is None):
        raise EncoderError(
            f"encoder {name!r}: the weights file {path} alone does not tell what network it is of. Pass "
            f"weights='{path.parent}', the folder with its {_CONFIG}."
        )
    return _Source(name, None, path, str(path))


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = read_json(path)
    except (DamagedFileError, OSError) as error:
        raise EncoderError(f"encoder {name!r}: {path} cannot be read ({error}). Fetch it again.") from error
    if not isinstance(config, dict):
        raise EncoderError(f"encoder {name!r}: {path} holds a {type(config).__name__}; expected settings by name.")
    return config


def _loader_of(source: _Source) -> str:
    """Tell which package builds the network that ``config.json`` describes.

    Raises
    ------
    EncoderError
        It is none, or the network needs code of the repository.
    """
    config = source.config
    if "architecture" in config:
        return "timm"
    if "auto_map" in config:
        raise EncoderError(
            f"encoder {source.name!r}: its network is code in its repository ({sorted(config['auto_map'])}), which is "
            "not run here. Build it yourself where you trust it, and pass it as a torch.nn.Module with a transform."
        )
    if "model_type" not in config:
        raise EncoderError(
            f"encoder {source.name!r}: {_CONFIG} names neither an architecture of timm nor a model_type of "
            f"transformers (found {sorted(config)[:5]}). Build the network yourself, and pass it as a torch.nn.Module."
        )
    if config["model_type"] not in _CLASS_TOKEN_FIRST:
        raise EncoderError(
            f"encoder {source.name!r} is a {config['model_type']!r} of transformers; of these, "
            f"{', '.join(_CLASS_TOKEN_FIRST)} are known to give tokens with the class token first. Build the network "
            "yourself, and pass it as a torch.nn.Module that gives features."
        )
    return "transformers"


def _state(source: _Source) -> dict[str, Tensor]:
    """Read the weights; errors as :func:`read_state`."""
    if source.folder is None:
        return read_state(source.file or Path())
    for name in _WEIGHTS:
        if is_there(source.folder / name):
            return read_state(source.folder / name)
    state: dict[str, Tensor] = {}
    for shard in sorted(source.folder.glob("*.safetensors")):
        state |= read_state(shard)
    return state


# ---- timm ----


def _by_timm(source: _Source, entry: PathologyEncoder | None, weights: str | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"encoder {source.name!r} needs timm, which is not installed: pip install 'st-gchb[timm]'."
        ) from error
    arguments = {} if entry is None else {key: _layer(timm, value) for key, value in entry.arguments.items()}
    overlay: dict[str, Any] = {}
    if weights is not None:
        # Given so, timm does not read the file itself, which may hold code.
        overlay = {"source": "", "state_dict": _state(source), "custom_load": False}
    network = f"local-dir:{source.folder}"
    if source.folder is None and entry is not None:
        network = str(entry.architecture)
    try:
        with weight_init(pretrained=weights is not None):
            module = timm.create_model(
                network, pretrained=weights is not None, num_classes=0, pretrained_cfg_overlay=overlay, **arguments
            )
    # timm raises RuntimeError for weights of another network and for names it does not know; TypeError and
    # AssertionError for arguments and configurations that a network does not take.
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise _misfit(source, str(error)) from error
    # timm loads what there is wherever it leaves the classifier out.
    missing = missing_weights(module)
    if missing:
        raise _misfit(source, f"{len(missing)} tensors are missing (first: {missing[:1]})")
    for config in ("pretrained_cfg", "default_cfg"):
        # The weights are held once.
        cast("dict[str, Any]", getattr(module, config)).pop("state_dict", None)
    return module


def _layer(timm: Any, value: Any) -> Any:
    """Return the class of a layer by its name, and any other value as it is."""
    if not isinstance(value, str) or not value:
        return value
    return getattr(timm.layers, value, None) or getattr(nn, value, value)


def _misfit(source: _Source, why: str) -> EncoderError:
    return EncoderError(
        f"encoder {source.name!r}: the weights {source.file or source.folder} do not fit the network "
        f"({why.splitlines()[0][:200] if why else 'no message'}). Fetch the files again, or pass those of this encoder."
    )


# ---- transformers ----


class Tokens(nn.Module):
    """A network of transformers that gives tokens, or its class token alone.

    Parameters
    ----------
    model
        Network whose output has ``last_hidden_state``, ``(b, n_tokens, n_features)``, the class token first.
    class_token_alone
        Whether :meth:`forward` gives the class token, ``(b, n_features)``, instead of all tokens.
    num_prefix_tokens
        Class token and registers, which are no patches.
    """

    def __init__(self, model: nn.Module, *, class_token_alone: bool, num_prefix_tokens: int = 1) -> None:
        super().__init__()
        self.model, self.class_token_alone, self.num_prefix_tokens = model, class_token_alone, num_prefix_tokens

    def forward(self, images: Tensor) -> Tensor:
        """Give tokens ``(b, n_tokens, n_features)``, or class tokens ``(b, n_features)``, of standardized images."""
        tokens: Tensor = self.model(pixel_values=images).last_hidden_state
        return tokens[:, 0] if self.class_token_alone else tokens


def _by_transformers(source: _Source, entry: PathologyEncoder | None, weights: str | None) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"encoder {source.name!r} needs transformers, which is not installed: pip install 'st-gchb[transformers]'."
        ) from error
    # A file that holds code is told in words before transformers refuses it.
    _state(source)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model, told = transformers.AutoModel.from_pretrained(
                str(source.folder), local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _misfit(source, str(error)) from error
    # The mask token is for training; the pooler is not asked.
    missing = [key for key in told["missing_keys"] if not key.startswith("pooler.") and not key.endswith("mask_token")]
    if missing or told["mismatched_keys"]:
        raise _misfit(source, f"{len(missing)} tensors are missing (first: {missing[:1]}), {told['mismatched_keys']}")
    alone = entry is not None and entry.pooling == "class token"
    registers = int(getattr(model.config, "num_register_tokens", 0) or 0)
    return Tokens(model.float(), class_token_alone=alone, num_prefix_tokens=1 + registers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers prints of its loading from the user's screen: it is checked here."""
    theirs = logging.getLogger("transformers")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        theirs.setLevel(level)


# ---- Input ----


def _input_of(
    source: _Source, entry: PathologyEncoder | None, module: nn.Module
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return the side of the input, px, and the mean and standard deviation by which it is standardized."""
    if entry is not None:
        mean, std = entry.normalization
        return entry.input_px, mean, std
    if not isinstance(module, Tokens):
        import timm

        numbers = timm.data.resolve_model_data_config(module)
        return int(numbers["input_size"][1]), tuple(numbers["mean"]), tuple(numbers["std"])
    path = (source.folder or Path()) / _PREPROCESSOR
    found = _read_config(path, source.name) if is_there(path) else {}
    if "image_mean" not in found or "image_std" not in found:
        raise EncoderError(
            f"encoder {source.name!r}: its repository has no {_PREPROCESSOR} that says how images are standardized. "
            "Build the network yourself, and pass it as a torch.nn.Module with a transform."
        )
    size = found.get("crop_size") or found.get("size") or {}
    side = _number(size) or int(source.config.get("image_size", 224))
    return side, tuple(map(float, found["image_mean"])), tuple(map(float, found["image_std"]))


def _number(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(size.get("height") or size.get("shortest_edge") or 0)
    return int(size) if isinstance(size, int) else 0
