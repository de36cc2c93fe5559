"""Write model folders: safetensors for arrays, Parquet for the origin of reference spots, JSON for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from st_gchb import __version__
from st_gchb._artifacts import (
    encode,
    sha256,
    sha256_of,
    with_digest,
    write_folder_whole,
    write_json,
    write_tensors,
)
from st_gchb._constants import MODEL_RECORD
from st_gchb._errors import InputError
from st_gchb.model._confidence import Calibration
from st_gchb.model._query import Preprocessor
from st_gchb.model._settings import ModelSettings
from st_gchb.retrieval import ReferenceBank

FORMAT, OLDEST_FORMAT = 5, 2
"""Newest and oldest format that is read."""
_EARLIER_FORMAT = 4
"""Format of a model that earlier versions read too: without what has come since, such as a kernel head or features of
several encoders and patch sizes."""
_SINCE = {
    name: getattr(ModelSettings(), name)
    for name in ("kernel_weight", "kernel_components", "kernel_rank", "sharpening", "context_surroundings")
}
"""Settings that have come since, with the values that stand for a model without them."""
JSON, TENSORS, REFERENCE, INDEX, ORIGIN, _ADATA = (
    MODEL_RECORD,
    "network.safetensors",
    "reference.safetensors",
    "index.safetensors",
    "origin.parquet",
    "adata.h5ad",
)

PATCH_MATRIX = "kernel.patch_matrix"
"""Projection of the patch alone for the kernel head; its offset is the first part of the context's."""

INDEX_ARRAYS, INDEX_NUMBERS = ("centers", "codebook", "codes"), ("n_probe", "k", "recall")
"""Parts of a search index; its keys are stored with the reference."""


@dataclass(frozen=True)
class SavedModel:
    """Content of a model folder.

    Parameters
    ----------
    preset, seed, settings
        Arguments of the model.
    registry
        Registry of the setup call, as scvi-tools records it.
    state
        State dictionary of the network.
    rules, bank, calibration
        Fitted preprocessing, reference bank and calibration of the confidence.
    history
        Losses by epoch.
    model_id
        Identity of the trained model, from :func:`new_model_id`.
    """

    preset: str
    seed: int
    settings: dict[str, Any]
    registry: dict[str, Any]
    state: dict[str, torch.Tensor]
    rules: Preprocessor
    bank: ReferenceBank
    calibration: Calibration | None
    history: dict[str, pd.DataFrame]
    model_id: str


def write_model(
    saved: SavedModel, folder: Path, *, overwrite: bool, adata: AnnData | None, write: dict[str, Any]
) -> None:
    """Write a model folder as a whole or not at all.

    Parameters
    ----------
    saved
        Content of the folder.
    folder
        Folder to write.
    overwrite
        Replace an existing model folder.
    adata
        Training data that are saved with the model; None to leave them out.
    write
        Arguments of ``adata.write_h5ad``.

    Raises
    ------
    InputError
        The folder exists and ``overwrite`` is False, or it holds files that are no part of a model.
    StoreError
        The folder cannot be written.
    """
    _check_target(folder, overwrite)
    with write_folder_whole(folder) as part:
        _write_tensors(saved, part)
        saved.bank.origin.to_parquet(part / ORIGIN)
        write_json(part / JSON, _settings(saved, part), indent=1)
        if adata is not None:
            adata.write_h5ad(part / _ADATA, **write)


def _check_target(folder: Path, overwrite: bool) -> None:
    """Check that nothing is replaced unless requested, and then a model folder without other files alone."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"{str(folder)!r} is no valid Unicode, and safetensors writes to no such path.") from None
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{folder} is there already. Pass overwrite=True to replace it, or another folder.")
    known = (JSON, TENSORS, REFERENCE, INDEX, ORIGIN, _ADATA)
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else ["a file"]
    if others:
        raise InputError(
            f"{folder} holds other things than a model ({others[:3]}), which would be lost. Pass another folder."
        )


def _write_tensors(saved: SavedModel, folder: Path) -> None:
    rules, bank = saved.rules, saved.bank
    network = {f"module.{key}": value.cpu().numpy() for key, value in saved.state.items()}
    network |= {
        "expression.offset": rules.expression.offset,
        "expression.matrix": rules.expression.matrix,
        "linear.offset": rules.linear.offset,
        "linear.matrix": rules.linear.matrix,
        **{f"appearance.{name}": np.asarray(value) for name, value in vars(rules.appearance).items()},
    }
    if rules.kernel is not None:
        network |= {"kernel.offset": rules.kernel.context.offset, "kernel.matrix": rules.kernel.context.matrix}
        if rules.kernel.patch is not None:
            network[PATCH_MATRIX] = rules.kernel.patch.matrix
    if rules.context.center is not None:
        network["context.center"] = rules.context.center
    if saved.calibration is not None:
        given = {key: value for key, value in vars(saved.calibration).items() if value is not None}
        network |= {f"calibration.{key}": np.asarray(value) for key, value in given.items()}
    reference = {"keys": bank.keys, "image_keys": bank.image_keys, "linear": bank.linear, "appearance": bank.appearance}
    if bank.kernel_head is not None:
        reference |= {f"kernel.{key}": value for key, value in vars(bank.kernel_head).items()}
    for name, table in bank.tables.items():
        csr = table.values
        parts = {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr, "shape": np.array(csr.shape)}
        reference |= {f"table.{name}.{key}": value for key, value in parts.items()}
    files = {TENSORS: network, REFERENCE: reference}
    if bank.index is not None:
        files[INDEX] = {name: getattr(bank.index, name) for name in INDEX_ARRAYS}
    for name, tensors in files.items():
        # Numbers are stored as arrays of length 1.
        write_tensors(folder / name, {key: np.atleast_1d(value) for key, value in tensors.items()})


def _settings(saved: SavedModel, folder: Path) -> dict[str, Any]:
    rules, settings = saved.rules, saved.settings
    earlier = _of_one_part(rules) and all(settings[name] == value for name, value in _SINCE.items())
    if earlier:
        settings = {name: value for name, value in settings.items() if name not in _SINCE}
    record = {
        "format": _EARLIER_FORMAT if earlier else FORMAT,
        "kind": "STGCHB",
        "version": __version__,
        "model_id": saved.model_id,
        "preset": saved.preset,
        "seed": saved.seed,
        "settings": settings,
        "registry": encode(saved.registry),
        "genes": list(rules.expression.genes),
        "log_normalized": rules.expression.log_normalized,
        "features": None if rules.features is None else rules.features.to_dict(),
        "features_key": rules.features_key,
        "n_features": rules.n_features,
        "context_rings": rules.context.n_rings,
        "graph": rules.graph.to_dict(),
        "slice_key": rules.slice_key,
        "tables": {name: list(table.columns) for name, table in saved.bank.tables.items()},
        "history": {key: frame.iloc[:, 0].tolist() for key, frame in saved.history.items()},
        "sha256": {
            name: sha256_of(folder / name) for name in (TENSORS, REFERENCE, ORIGIN, INDEX) if (folder / name).exists()
        },
    }
    if saved.bank.index is not None:
        record["index"] = {name: getattr(saved.bank.index, name) for name in INDEX_NUMBERS}
    return with_digest(record)


def _of_one_part(rules: Preprocessor) -> bool:
    """Return True if the features are of one encoder at one patch size, or made outside."""
    return rules.features is None or len(rules.features) == 1


def new_model_id(module: torch.nn.Module, genes: pd.Index, bank: ReferenceBank) -> str:
    """Compute the identity of a trained model from its weights, gene names and reference spots.

    Parameters
    ----------
    module
        Trained network.
    genes
        Names of the panel's genes.
    bank
        Reference bank.

    Returns
    -------
    str
        First 16 digits of a SHA-256.
    """
    weights = (part for item in sorted(module.state_dict().items()) for part in item)
    return sha256(*weights, "\n".join([*genes, *bank.origin["name"]]))[:16]
