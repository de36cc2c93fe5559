"""Read model folders: the hash of every file is checked, and no code of theirs is executed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from st_gchb._artifacts import (
    DamagedFileError,
    decode,
    has_own_digest,
    is_there,
    read_json,
    read_tensors,
    sha256_of,
)
from st_gchb._compat import ARRAY_ERRORS
from st_gchb._errors import MissingFileError, ModelFileError, STGCHBError
from st_gchb.model._confidence import Calibration
from st_gchb.model._earlier_formats import RENAMED_IN, arrays_of_today, record_of_today, without_dropped
from st_gchb.model._features import NeighborhoodAggregator
from st_gchb.model._kernel_inputs import KernelMap
from st_gchb.model._projections import FeatureSpace, LinearProjection
from st_gchb.model._query import Preprocessor
from st_gchb.model._saving import (
    FORMAT,
    INDEX,
    INDEX_ARRAYS,
    INDEX_NUMBERS,
    JSON,
    OLDEST_FORMAT,
    ORIGIN,
    PATCH_MATRIX,
    REFERENCE,
    TENSORS,
    SavedModel,
)
from st_gchb.model._schema import check_numbers, check_record, read_table
from st_gchb.model._settings import ModelSettings, network_settings
from st_gchb.nn import STGCHBNetwork
from st_gchb.pp import FeatureSet, GraphSpec
from st_gchb.pp.expression import ExpressionRule
from st_gchb.pp.patches import stage_without_weights
from st_gchb.retrieval import KernelHead, ReferenceBank, ReferenceTable, SearchIndex

_NUMBERS = (
    *("keys", "image_keys", "linear", "appearance", "table.panel.data", "table.all_genes.data"),
    *("kernel.points", "kernel.scales", "kernel.coefficients", "kernel.scores"),
)
"""Parts of the reference that are finite in every model; other tables belong to the user."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the JSON part of a model folder, and check the hashes of its other files.

    Returns
    -------
    dict
        Fields of ``model.json`` under their present names.

    Raises
    ------
    MissingFileError
        The folder or one of its files does not exist.
    ModelFileError
        A file is damaged, or of a format that this version does not read.
    """
    if not is_there(folder, Path.is_dir):
        raise MissingFileError(f"There is no model folder {folder}. Pass the folder that model.save wrote.")
    for name in (JSON, TENSORS, REFERENCE, ORIGIN):
        _check_there(folder, name)
    try:
        settings = read_json(folder / JSON)
        kind, written = settings["kind"], int(settings["format"])
    except (DamagedFileError, ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise ModelFileError(
            f"{folder / JSON} cannot be read ({error}): it is damaged. Copy the model again."
        ) from error
    if kind != "STGCHB":
        raise ModelFileError(f"{folder} holds a model of class {kind!r}, not STGCHB.")
    if written > FORMAT:
        raise ModelFileError(
            f"{folder} was written by st-gchb {settings.get('version')}, which is newer. Update st-gchb."
        )
    if written < OLDEST_FORMAT:
        raise ModelFileError(
            f"{folder} was written by st-gchb {settings.get('version')} in format {written}; this version reads format "
            f"{OLDEST_FORMAT} and newer. Train the model again."
        )
    if not has_own_digest(settings):
        raise ModelFileError(f"{folder / JSON} is not as it was written: it is damaged. Copy the model again.")
    settings = without_dropped(record_of_today(settings) if written < RENAMED_IN else settings)
    check_record(settings, folder / JSON)
    for name in settings["sha256"]:
        if name not in (TENSORS, REFERENCE, ORIGIN, INDEX):
            raise ModelFileError(f"{folder / JSON} speaks of a file {name!r} that no model has. Copy the model again.")
    for name in (TENSORS, REFERENCE, ORIGIN, *([INDEX] if "index" in settings else [])):
        if name not in settings["sha256"]:
            raise ModelFileError(f"{folder / JSON} has no hash of {name}: it was edited. Copy the model again.")
    for name, expected in settings["sha256"].items():
        _check_there(folder, name)
        found = sha256_of(folder / name)
        if found != expected:
            raise ModelFileError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}…, expected {expected[:12]}…. Copy it again."
            )
    # What a model's version did not have, it did without, whatever its preset has today.
    settings["settings"] = asdict(ModelSettings(**settings["settings"]))
    return settings


def _check_there(folder: Path, name: str) -> None:
    """Check that a file of a model folder exists."""
    if not is_there(folder / name, Path.is_file):
        raise MissingFileError(f"{folder} has no {name}: it is no st-gchb model, or was copied in part. Copy it again.")


def read_registry(folder: Path) -> dict[str, Any]:
    """Read the registry of scvi-tools saved with a model; errors as :func:`read_settings`."""
    return decode(read_settings(folder)["registry"])


def read_model(folder: Path) -> SavedModel:
    """Read a model folder; errors as :func:`read_settings`."""
    stored = read_settings(folder)
    try:
        network, reference = arrays_of_today(read_tensors(folder / TENSORS)[0]), read_tensors(folder / REFERENCE)[0]
        index = arrays_of_today(read_tensors(folder / INDEX)[0]) if "index" in stored else None
        origin = pd.read_parquet(folder / ORIGIN)
    except (DamagedFileError, *ARRAY_ERRORS) as error:
        raise ModelFileError(f"{folder} cannot be read ({error}): it is damaged. Copy the model again.") from error
    check_numbers(stored, network, reference, origin, folder)
    _check_finite(folder, network, {key: reference[key] for key in _NUMBERS if key in reference})
    return SavedModel(
        preset=stored["preset"],
        seed=stored["seed"],
        settings=stored["settings"],
        registry=decode(stored["registry"]),
        state={k.removeprefix("module."): torch.from_numpy(v) for k, v in network.items() if k.startswith("module.")},
        rules=_rules(stored, network),
        bank=_bank(stored, reference, origin, index, folder),
        calibration=_calibration(network),
        history={
            key: pd.DataFrame({key: values}, index=pd.RangeIndex(len(values), name="epoch"))
            for key, values in stored["history"].items()
        },
        model_id=stored["model_id"],
    )


def network_of(saved: SavedModel, settings: ModelSettings, folder: Path) -> STGCHBNetwork:
    """Build the network of a saved model, with its weights.

    Parameters
    ----------
    saved
        Content of the folder.
    settings
        The model's settings.
    folder
        Folder, for messages.

    Raises
    ------
    ModelFileError
        The weights do not fit the settings.
    """
    rule = saved.rules.features
    try:
        fixed = (saved.state[f"network.image.fixed.{name}"].numpy() for name in ("offset", "matrix"))
        sizes = network_settings(saved.rules, LinearProjection(*fixed), settings)
        with torch.random.fork_rng():
            stage = None if rule is None or not rule.feature_maps else stage_without_weights(rule.first)
            network = STGCHBNetwork(sizes, stage)
        network.load_state_dict({name.removeprefix("network."): value for name, value in saved.state.items()})
    except STGCHBError:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        # So torch calls weights that are absent or of another shape.
        raise ModelFileError(
            f"{folder}: the network's weights do not fit its settings ({error}). Copy the model again."
        ) from error
    return network


def _check_finite(folder: Path, *parts: dict[str, np.ndarray]) -> None:
    """Check that arrays are finite: those of a training that diverged are not."""
    bad = [key for part in parts for key, values in part.items() if not np.isfinite(values).all()]
    if bad:
        raise ModelFileError(
            f"{folder} holds NaN or infinite numbers in {bad[:3]}, from a training that ran away: it predicts nothing. "
            "Train the model again with a lower learning rate."
        )


def _calibration(network: dict[str, np.ndarray]) -> Calibration | None:
    if "calibration.center" not in network:
        return None
    numbers: dict[str, Any] = {name: network.get(f"calibration.{name}") for name in Calibration.__dataclass_fields__}
    limits = {name: numbers[name].item() for name in ("outlier_distance", "outlier_slide")}
    return Calibration(**numbers | limits)


def _rules(stored: dict[str, Any], network: dict[str, np.ndarray]) -> Preprocessor:
    expression = ExpressionRule(
        genes=pd.Index(stored["genes"]),
        log_normalized=stored["log_normalized"],
        offset=network["expression.offset"],
        matrix=network["expression.matrix"],
    )
    return Preprocessor(
        expression=expression,
        features=None if stored["features"] is None else FeatureSet.from_uns(stored["features"]),
        features_key=stored["features_key"],
        n_features=stored["n_features"],
        graph=GraphSpec(**stored["graph"]),
        context=NeighborhoodAggregator(
            stored["context_rings"],
            network.get("context.center"),
            stored["settings"].get("context_surroundings", 0),
        ),
        linear=LinearProjection(network["linear.offset"], network["linear.matrix"]),
        appearance=FeatureSpace(*(network[f"appearance.{name}"] for name in FeatureSpace.__dataclass_fields__)),
        slice_key=stored["slice_key"],
        kernel=_kernel_map(network) if _has_kernel(stored) else None,
    )


def _kernel_map(network: dict[str, np.ndarray]) -> KernelMap:
    context = LinearProjection(network["kernel.offset"], network["kernel.matrix"])
    if PATCH_MATRIX not in network:
        return KernelMap(context)
    matrix = network[PATCH_MATRIX]
    return KernelMap(context, LinearProjection(context.offset[: len(matrix)], matrix))


def _has_kernel(stored: dict[str, Any]) -> bool:
    """Return True if predictions have a share of the kernel head."""
    return bool(stored["settings"].get("kernel_weight"))


def _bank(
    stored: dict[str, Any],
    reference: dict[str, np.ndarray],
    origin: pd.DataFrame,
    index: dict[str, np.ndarray] | None,
    folder: Path,
) -> ReferenceBank:
    tables = {
        name: ReferenceTable(read_table(name, columns, reference, len(origin), folder), pd.Index(columns))
        for name, columns in stored["tables"].items()
    }
    arrays = {key: reference[key] for key in ("keys", "image_keys", "linear", "appearance")}
    parts: dict[str, Any] = {}
    if index is not None:
        missing = [name for name in INDEX_ARRAYS if name not in index]
        if missing:
            raise ModelFileError(f"{folder / INDEX} has no array {missing[0]!r}. Copy the model again.")
        parts = {"keys": arrays["keys"]} | {name: index[name] for name in INDEX_ARRAYS}
        parts |= {name: stored["index"][name] for name in INDEX_NUMBERS}
    made = SearchIndex(**parts) if parts else None
    names = KernelHead.__dataclass_fields__ if _has_kernel(stored) else ()
    head = KernelHead(**{name: reference[f"kernel.{name}"] for name in names}) if names else None
    return ReferenceBank(origin=origin, tables=tables, index=made, kernel_head=head, **arrays)
