"""Model files: safetensors for numbers, Parquet for the reference's origin, JSON for the rest; no pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scvi.model._utils import parse_device_args

from st_gchb import __version__
from st_gchb._errors import InputError, MissingFileError, ModelFileError, NotTrainedError
from st_gchb._files import sha256_of
from st_gchb.model._calibration import Calibration
from st_gchb.model._fitting import network_settings
from st_gchb.model._inputs import FixedMap
from st_gchb.model._module import STGCHBModule
from st_gchb.model._query import Rules
from st_gchb.pp import FeatureRule, GraphRule
from st_gchb.pp._expression import ExpressionRule
from st_gchb.retrieval import ReferenceBank
from st_gchb.retrieval._bank import ReferenceTable

if TYPE_CHECKING:
    from st_gchb.model._stgchb import STGCHB

FORMAT = 1
_JSON, _TENSORS, _REFERENCE, _ORIGIN, _ADATA = (
    "model.json",
    "network.safetensors",
    "reference.safetensors",
    "origin.parquet",
    "adata.h5ad",
)


def save_model(model: STGCHB, folder: Path, *, overwrite: bool, save_anndata: bool, write: dict[str, Any]) -> None:
    """Write all files to a folder beside, then put it in place."""
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} is there already. Pass overwrite=True to replace it, or another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write(model, part)
        if save_anndata:
            model.adata.write_h5ad(part / _ADATA, **write)
        part.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            folder.replace(old / folder.name)
            part.replace(folder)
            shutil.rmtree(old)
        else:
            part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(model: STGCHB, folder: Path) -> None:
    rules, bank, calibration = model.rules_, model.bank_, model.calibration_
    if rules is None or bank is None or calibration is None:
        raise NotTrainedError("save needs a trained model. Call model.train() first.")
    network = {f"module.{key}": value.cpu().numpy() for key, value in model.module.state_dict().items()}
    network |= {
        "expression.offset": rules.expression.offset,
        "expression.matrix": rules.expression.matrix,
        "expression.variance": rules.expression.variance,
        "context.offset": rules.context.offset,
        "context.matrix": rules.context.matrix,
    }
    network |= {f"calibration.{key}": np.asarray(value) for key, value in vars(calibration).items()}
    reference = {"keys": bank.keys, "image_keys": bank.image_keys, "context": bank.context}
    for name, table in bank.tables.items():
        csr = table.values
        parts = {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr, "shape": np.array(csr.shape)}
        reference |= {f"table.{name}.{key}": value for key, value in parts.items()}
    for name, tensors in ((_TENSORS, network), (_REFERENCE, reference)):
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / name)
    bank.origin.to_parquet(folder / _ORIGIN)
    settings = {
        "format": FORMAT,
        "kind": type(model).__name__,
        "version": __version__,
        "model_id": model.model_id_,
        "preset": model.preset,
        "seed": model.seed,
        "settings": asdict(model.settings),
        "registry": _encode(model.registry_),
        "genes": list(rules.expression.genes),
        "log_normalized": rules.expression.log_normalized,
        "features": None if rules.features is None else rules.features.to_dict(),
        "features_key": rules.features_key,
        "n_features": rules.n_features,
        "graph": rules.graph.to_dict(),
        "slice_key": rules.slice_key,
        "tables": {name: list(table.columns) for name, table in bank.tables.items()},
        "history": {key: frame.iloc[:, 0].tolist() for key, frame in (model.history_ or {}).items()},
        "sha256": {name: sha256_of(folder / name) for name in (_TENSORS, _REFERENCE, _ORIGIN)},
    }
    (folder / _JSON).write_text(json.dumps(settings, indent=1), encoding="utf-8")


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
        kind, written, hashes = settings["kind"], settings["format"], settings["sha256"]
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
    for name, expected in hashes.items():
        found = sha256_of(folder / name)
        if found != expected:
            raise ModelFileError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}…, expected {expected[:12]}…. Copy it again."
            )
    return settings


def read_registry(folder: Path) -> dict[str, Any]:
    """The registry saved with a model."""
    return _decode(read_settings(folder)["registry"])


def load_model(cls: type[STGCHB], folder: Path, adata: AnnData | None, accelerator: str, device: int | str) -> STGCHB:
    """Rebuild a model from its folder; see :meth:`st_gchb.model.STGCHB.load`."""
    stored = read_settings(folder)
    try:
        network, reference = load_file(folder / _TENSORS), load_file(folder / _REFERENCE)
        origin = pd.read_parquet(folder / _ORIGIN)
    except (SafetensorError, ValueError) as error:
        raise ModelFileError(f"{folder} cannot be read ({error}): it is damaged. Copy the model again.") from error
    registry = _decode(stored["registry"])
    arguments: dict[str, Any] = dict(preset=stored["preset"], seed=stored["seed"], **stored["settings"])
    if adata is None:
        model = cls(registry=registry, **arguments)
    else:
        cls.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
        model = cls(adata, panel=stored["genes"], **arguments)
    model.rules_ = _rules(stored, network)
    image_map = FixedMap(network["module.network.image.fixed.offset"], network["module.network.image.fixed.matrix"])
    model.module = STGCHBModule(network_settings(model.rules_, image_map, model.settings), model.settings.loss)
    state = {
        key.removeprefix("module."): torch.from_numpy(v) for key, v in network.items() if key.startswith("module.")
    }
    model.module.load_state_dict(state)
    model.bank_ = _bank(stored, reference, origin)
    numbers: dict[str, Any] = {name: network[f"calibration.{name}"] for name in Calibration.__dataclass_fields__}
    model.calibration_ = Calibration(**numbers | {"outlier_distance": float(numbers["outlier_distance"])})
    model.history_ = {
        key: pd.DataFrame({key: values}, index=pd.RangeIndex(len(values), name="epoch"))
        for key, values in stored["history"].items()
    }
    model.model_id_, model.is_trained_ = stored["model_id"], True
    model._describe()
    _, _, chosen = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
    model.to_device(chosen)
    model.module.eval()
    return model


def new_model_id(module: STGCHBModule, genes: pd.Index, bank: ReferenceBank) -> str:
    """Identity of a trained model: hash of its network's numbers, its genes and its reference spots."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    digest.update("\n".join([*genes, *bank.origin["name"]]).encode())
    return digest.hexdigest()[:16]


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
        context=FixedMap(network["context.offset"], network["context.matrix"]),
        slice_key=stored["slice_key"],
    )


def _bank(stored: dict[str, Any], reference: dict[str, np.ndarray], origin: pd.DataFrame) -> ReferenceBank:
    tables = {}
    for name, columns in stored["tables"].items():
        part = {key: reference[f"table.{name}.{key}"] for key in ("data", "indices", "indptr", "shape")}
        shape = (int(part["shape"][0]), int(part["shape"][1]))
        csr = sparse.csr_matrix((part["data"], part["indices"], part["indptr"]), shape=shape)
        tables[name] = ReferenceTable(csr, pd.Index(columns))
    return ReferenceBank(reference["keys"], reference["image_keys"], reference["context"], origin, tables)


def _encode(value: Any) -> Any:
    """A registry as JSON: arrays are marked, so that they come back as arrays."""
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": "object" if value.dtype.kind in "OUS" else str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if "__array__" in value:
            return np.array(value["__array__"], dtype=value["dtype"])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value
