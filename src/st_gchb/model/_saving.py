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
from safetensors.numpy import load_file, save_file
from scipy import sparse

from st_gchb import __version__
from st_gchb._errors import InputError, MissingFileError, ModelFileError
from st_gchb._files import make_readable, sha256_of
from st_gchb.model._calibration import Calibration
from st_gchb.model._inputs import AppearanceMap, ContextRule, FixedMap
from st_gchb.model._module import STGCHBModule
from st_gchb.model._query import Rules
from st_gchb.model._record import decode, digest, encode
from st_gchb.pp import FeatureRule, GraphRule
from st_gchb.pp._expression import ExpressionRule
from st_gchb.retrieval import ReferenceBank
from st_gchb.retrieval._bank import ReferenceTable

FORMAT = 3
"""Newest format that is read and written."""
_PLAIN_FORMAT = 2
"""Written where patches are neither normalised in stain nor encoded in half precision: programs that know nothing of
that read it."""
_JSON, _TENSORS, _REFERENCE, _ORIGIN, _ADATA = (
    "model.json",
    "network.safetensors",
    "reference.safetensors",
    "origin.parquet",
    "adata.h5ad",
)


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
    rules: Rules
    bank: ReferenceBank
    calibration: Calibration | None
    history: dict[str, pd.DataFrame]
    model_id: str


def write_model(
    saved: SavedModel, folder: Path, *, overwrite: bool, adata: AnnData | None, write: dict[str, Any]
) -> None:
    """Write all files to a folder beside, then put it in place."""
    _check_target(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write_tensors(saved, part)
        saved.bank.origin.to_parquet(part / _ORIGIN)
        (part / _JSON).write_text(json.dumps(_settings(saved, part), indent=1), encoding="utf-8")
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
            part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_target(folder: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, unless it was asked for and is a model and nothing else."""
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{folder} is there already. Pass overwrite=True to replace it, or another folder.")
    known = (_JSON, _TENSORS, _REFERENCE, _ORIGIN, _ADATA)
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
        "expression.variance": rules.expression.variance,
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
    for name, tensors in ((_TENSORS, network), (_REFERENCE, reference)):
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / name)


def _settings(saved: SavedModel, folder: Path) -> dict[str, Any]:
    rules = saved.rules
    record = {
        "format": _PLAIN_FORMAT if rules.features is None or rules.features.is_plain else FORMAT,
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
        "sha256": {name: sha256_of(folder / name) for name in (_TENSORS, _REFERENCE, _ORIGIN)},
    }
    return record | {"record_sha256": digest(record)}


def read_settings(folder: Path) -> dict[str, Any]:
    """The JSON part of a model folder, with every other file's hash checked.

    Raises
    ------
    MissingFileError
        If the folder or one of its files is not there.
    ModelFileError
        If a file is not what was written.
    """
    if not folder.is_dir():
        raise MissingFileError(f"There is no model folder {folder}. Pass the folder that model.save wrote.")
    for name in (_JSON, _TENSORS, _REFERENCE, _ORIGIN):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder} has no {name}: it is no st-gchb model, or was copied in part. Copy it again."
            )
    try:
        settings = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        kind, written, written_digest = settings["kind"], int(settings["format"]), settings.get("record_sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{folder / _JSON} cannot be read ({error}): it is damaged. Copy the model again."
        ) from error
    if kind != "STGCHB":
        raise ModelFileError(f"{folder} holds a model of class {kind!r}, not STGCHB.")
    if written > FORMAT:
        raise ModelFileError(
            f"{folder} was written by st-gchb {settings.get('version')}, which is newer. Update st-gchb."
        )
    if written < _PLAIN_FORMAT:
        raise ModelFileError(
            f"{folder} was written by st-gchb {settings.get('version')} in format {written}; this version reads format "
            f"{_PLAIN_FORMAT} and newer. Train the model again."
        )
    if written_digest != digest(settings):
        raise ModelFileError(f"{folder / _JSON} is not as it was written: it is damaged. Copy the model again.")
    for name, expected in settings["sha256"].items():
        found = sha256_of(folder / name)
        if found != expected:
            raise ModelFileError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}…, expected {expected[:12]}…. Copy it again."
            )
    return settings


def read_registry(folder: Path) -> dict[str, Any]:
    """The registry saved with a model."""
    return decode(read_settings(folder)["registry"])


def read_model(folder: Path) -> SavedModel:
    """Read a model folder; errors as :func:`read_settings`."""
    stored = read_settings(folder)
    try:
        network, reference = load_file(folder / _TENSORS), load_file(folder / _REFERENCE)
        origin = pd.read_parquet(folder / _ORIGIN)
    except (SafetensorError, ValueError) as error:
        raise ModelFileError(f"{folder} cannot be read ({error}): it is damaged. Copy the model again.") from error
    return SavedModel(
        preset=stored["preset"],
        seed=stored["seed"],
        settings=stored["settings"],
        registry=decode(stored["registry"]),
        state={k.removeprefix("module."): torch.from_numpy(v) for k, v in network.items() if k.startswith("module.")},
        rules=_rules(stored, network),
        bank=_bank(stored, reference, origin),
        calibration=_calibration(network),
        history={
            key: pd.DataFrame({key: values}, index=pd.RangeIndex(len(values), name="epoch"))
            for key, values in stored["history"].items()
        },
        model_id=stored["model_id"],
    )


def _calibration(network: dict[str, np.ndarray]) -> Calibration | None:
    if "calibration.centre" not in network:
        return None
    numbers: dict[str, Any] = {name: network[f"calibration.{name}"] for name in Calibration.__dataclass_fields__}
    limits = {name: numbers[name].item() for name in ("outlier_distance", "outlier_slide")}
    return Calibration(**numbers | limits)


def new_model_id(module: STGCHBModule, genes: pd.Index, bank: ReferenceBank) -> str:
    """Identity of a trained model: hash of its network's numbers, its genes and its reference spots."""
    sha = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        sha.update(key.encode() + value.cpu().numpy().tobytes())
    sha.update("\n".join([*genes, *bank.origin["name"]]).encode())
    return sha.hexdigest()[:16]


def _rules(stored: dict[str, Any], network: dict[str, np.ndarray]) -> Rules:
    expression = ExpressionRule(
        genes=pd.Index(stored["genes"]),
        log_normalized=stored["log_normalized"],
        offset=network["expression.offset"],
        matrix=network["expression.matrix"],
        variance=network["expression.variance"],
    )
    return Rules(
        expression=expression,
        features=None if stored["features"] is None else FeatureRule.from_uns(stored["features"]),
        features_key=stored["features_key"],
        n_features=stored["n_features"],
        graph=GraphRule(**stored["graph"]),
        context=ContextRule(stored["context_rings"], network.get("context.center")),
        linear=FixedMap(network["linear.offset"], network["linear.matrix"]),
        appearance=AppearanceMap(*(network[f"appearance.{name}"] for name in AppearanceMap.__dataclass_fields__)),
        slice_key=stored["slice_key"],
    )


def _bank(stored: dict[str, Any], reference: dict[str, np.ndarray], origin: pd.DataFrame) -> ReferenceBank:
    tables = {}
    for name, columns in stored["tables"].items():
        part = {key: reference[f"table.{name}.{key}"] for key in ("data", "indices", "indptr", "shape")}
        shape = (int(part["shape"][0]), int(part["shape"][1]))
        csr = sparse.csr_matrix((part["data"], part["indices"], part["indptr"]), shape=shape)
        tables[name] = ReferenceTable(csr, pd.Index(columns))
    arrays = {key: reference[key] for key in ("keys", "image_keys", "linear", "appearance")}
    return ReferenceBank(origin=origin, tables=tables, **arrays)
