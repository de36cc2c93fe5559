"""Model files: safetensors for numbers, Parquet for the reference's origin, JSON for the rest; no pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from safetensors import SafetensorError
from safetensors.numpy import save_file

from st_gchb import __version__
from st_gchb._artifacts import digest, encode, make_readable, sha256_of
from st_gchb._errors import InputError, StoreError
from st_gchb.model._confidence import Calibration
from st_gchb.model._module import STGCHBModule
from st_gchb.model._query import Preprocessor
from st_gchb.retrieval import ReferenceBank

FORMAT, OLDEST_FORMAT = 4, 2
"""The format that is written, and the oldest that is read."""
JSON, TENSORS, REFERENCE, INDEX, ORIGIN, _ADATA = (
    "model.json",
    "network.safetensors",
    "reference.safetensors",
    "index.safetensors",
    "origin.parquet",
    "adata.h5ad",
)

INDEX_ARRAYS, INDEX_NUMBERS = ("centers", "codebook", "codes"), ("n_probe", "k", "recall")
"""Parts of a search index, beside the keys, which the reference holds."""


@dataclass(frozen=True)
class SavedModel:
    """All that a model folder holds.

    Parameters
    ----------
    preset, seed, settings
        Arguments of the model.
    registry
        scvi-tools' registry of the setup call.
    state
        The network's numbers.
    rules, bank, calibration
        The fitted parts.
    history
        Losses by epoch.
    model_id
        Identity of the trained model.
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
    """Write all files to a folder beside, then put it in place."""
    _check_target(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise StoreError(f"{folder}: nothing can be written there ({error}). Name another folder.") from error
    try:
        _write_tensors(saved, part)
        saved.bank.origin.to_parquet(part / ORIGIN)
        (part / JSON).write_text(json.dumps(_settings(saved, part), indent=1), encoding="utf-8")
        if adata is not None:
            adata.write_h5ad(part / _ADATA, **write)
        part.chmod(0o755)
        for file in part.iterdir():
            make_readable(file)
        if folder.exists():
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            folder.replace(old / folder.name)
            try:
                part.replace(folder)
            except OSError:
                (old / folder.name).replace(folder)
                raise
            finally:
                shutil.rmtree(old)
        else:
            try:
                part.replace(folder)
            except OSError as error:
                raise StoreError(
                    f"{folder}: no folder can be put there ({error.strerror}). Name another one."
                ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_target(folder: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, unless it was asked for and is a model and nothing else."""
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
    if rules.context.center is not None:
        network["context.center"] = rules.context.center
    if saved.calibration is not None:
        network |= {f"calibration.{key}": np.asarray(value) for key, value in vars(saved.calibration).items()}
    reference = {"keys": bank.keys, "image_keys": bank.image_keys, "linear": bank.linear, "appearance": bank.appearance}
    for name, table in bank.tables.items():
        csr = table.values
        parts = {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr, "shape": np.array(csr.shape)}
        reference |= {f"table.{name}.{key}": value for key, value in parts.items()}
    files = {TENSORS: network, REFERENCE: reference}
    if bank.index is not None:
        files[INDEX] = {name: getattr(bank.index, name) for name in INDEX_ARRAYS}
    for name, tensors in files.items():
        try:
            save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / name)
        except SafetensorError as error:
            # So it calls a full disk.
            raise OSError(f"{folder / name} could not be written: {error}") from error


def _settings(saved: SavedModel, folder: Path) -> dict[str, Any]:
    rules = saved.rules
    record = {
        "format": FORMAT,
        "kind": "STGCHB",
        "version": __version__,
        "model_id": saved.model_id,
        "preset": saved.preset,
        "seed": saved.seed,
        "settings": saved.settings,
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
    return record | {"record_sha256": digest(record)}


def new_model_id(module: STGCHBModule, genes: pd.Index, bank: ReferenceBank) -> str:
    """Identity of a trained model: hash of its network's numbers, its genes and its reference spots."""
    sha = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        sha.update(key.encode() + value.cpu().numpy().tobytes())
    sha.update("\n".join([*genes, *bank.origin["name"]]).encode())
    return sha.hexdigest()[:16]
