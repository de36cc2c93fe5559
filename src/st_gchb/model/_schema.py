"""Schema of a model folder, and validation of its JSON fields, arrays and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._arguments import Count, Rings, Seed, Share, check_keywords, check_value
from st_gchb._artifacts import decode
from st_gchb._compat import ARRAY_ERRORS
from st_gchb._errors import InputError, MissingKeyError, ModelFileError
from st_gchb._options import Preset
from st_gchb.model._settings import ModelSettings
from st_gchb.model._validation import Registered
from st_gchb.pp import FeatureSet, FeatureSpec, GraphSpec
from st_gchb.pp.patches import OF_EACH_PART

FIELDS: dict[str, Any] = {
    "version": str,
    "model_id": str,
    "preset": Preset,
    "seed": Seed,
    "settings": dict[str, Any],
    "registry": dict[str, Any],
    "genes": list[str],
    "log_normalized": bool,
    "features": dict[str, Any] | None,
    "features_key": str,
    "n_features": Count,
    "context_rings": Rings,
    "graph": dict[str, Any],
    "slice_key": str | None,
    "tables": dict[str, list[str]],
    "history": dict[str, list[Any]],
    "sha256": dict[str, str],
}
"""Fields of the JSON part, each with the type of its values."""

_INDEX: dict[str, Any] = {"n_probe": Count, "k": Count, "recall": Share}

NETWORK = {
    "expression.offset": "g",
    "expression.matrix": "ge",
    "linear.offset": "c",
    "linear.matrix": "cl",
    "appearance.offset": "f",
    "appearance.inverse": "f",
    "appearance.components": "fa",
    "appearance.scale": "a",
    "appearance.rest": "1",
}
"""Arrays stored with the network, with a letter for each axis; axes of the same letter have the same length."""

CALIBRATION = {
    "calibration.center": "4",
    "calibration.scale": "4",
    "calibration.coefficients": "5",
    "calibration.expected_errors": "r",
    "calibration.outlier_distance": "",
    "calibration.outlier_slide": "",
    "calibration.expected_pcc": "g",
}
RETRIEVAL_PCC = {"calibration.retrieval_pcc": "g"}
"""Calibration that models of earlier versions lack."""

KERNEL_MAP = {"kernel.offset": "c", "kernel.matrix": "ck"}
PATCH_MAP = {"kernel.patch_matrix": "fk"}
KERNEL_HEAD = {"kernel.points": "pi", "kernel.scales": "s", "kernel.coefficients": "qpm", "kernel.scores": "nm"}
"""Arrays of the kernel head, if the model has one: of the network's file, that of the patch alone, which models of
earlier versions lack, and of the reference's file."""

REFERENCE = {"keys": "nd", "image_keys": "nd", "linear": "nl", "appearance": "nb"}


def check_record(record: dict[str, Any], place: Path) -> None:
    """Validate the JSON part of a model folder.

    Raises
    ------
    ModelFileError
        A field is absent or its value is invalid; the message names it.
    """
    missing = sorted(set(FIELDS) - set(record))
    if missing:
        raise ModelFileError(f"{place} has no {', '.join(missing)}: it is damaged or was edited. Copy the model again.")
    try:
        for name, kind in FIELDS.items():
            check_value(record[name], kind, name)
        check_keywords(record["settings"], ModelSettings, "settings")
        check_keywords(record["graph"], GraphSpec, "graph")
        GraphSpec(**record["graph"])
        if record["features"] is not None:
            for part in _parts(record["features"]):
                check_keywords(part, FeatureSpec, "features")
            FeatureSet.from_uns(record["features"])
        for name, values in record["history"].items():
            # Losses of a diverged training run are NaN, which Python's JSON can hold.
            if not {type(value) for value in values} <= {int, float, type(None)}:
                raise ModelFileError(f"history: {name} holds something else than numbers.")
        if "index" in record:
            for name, kind in _INDEX.items():
                check_value(check_value(record["index"], dict[str, Any], "index").get(name), kind, f"index: {name}")
        _check_registry(record["registry"])
        _check_together(record)
    except (InputError, MissingKeyError) as error:
        raise ModelFileError(f"{place} is damaged or was edited: {error} Copy the model again.") from error


def _parts(features: dict[str, Any]) -> list[dict[str, Any]]:
    """Split the record of several encoders and patch sizes into one for each; errors as :func:`check_record`."""
    if not isinstance(features.get("encoder"), list):
        return [features]
    listed = {key: check_value(features[key], list[Any], f"features: {key}") for key in OF_EACH_PART if key in features}
    lengths = {key: len(values) for key, values in listed.items()}
    if len(set(lengths.values())) > 1 or not lengths["encoder"]:
        raise ModelFileError(f"features: found {lengths} entries; expected one of each for every part.")
    return [{**features, **{key: values[i] for key, values in listed.items()}} for i in range(lengths["encoder"])]


def _check_registry(stored: dict[str, Any]) -> None:
    """Validate the parts of scvi-tools' record of the setup call that are read again."""
    try:
        registry = decode(stored)
    except ARRAY_ERRORS as error:
        raise ModelFileError(f"registry: an array in it cannot be read ({error}).") from error
    arguments = check_value(registry.get("setup_args"), dict[str, Any], "registry: setup_args")
    names = Registered.__dataclass_fields__
    missing = sorted(set(names) - set(arguments))
    if missing:
        raise ModelFileError(f"registry: setup_args has no {', '.join(missing)}.")
    check_keywords({name: arguments[name] for name in names}, Registered, "registry: setup_args")
    summaries: set[str] = set()
    fields = check_value(registry.get("field_registries"), dict[str, dict[str, Any]], "registry: field_registries")
    for name, field in fields.items():
        for part in ("data_registry", "state_registry", "summary_stats"):
            check_value(field.get(part), dict[str, Any], f"registry: {part} of {name}")
        twice = summaries & set(field["summary_stats"])
        if twice:
            raise ModelFileError(f"registry: summary_stats has {sorted(twice)} twice.")
        summaries |= set(field["summary_stats"])


def _check_together(record: dict[str, Any]) -> None:
    """Validate that fields are consistent with each other."""
    genes, features = record["genes"], record["features"]
    if not genes or len(set(genes)) < len(genes):
        raise ModelFileError(
            f"genes: found {len(genes)} names, {len(set(genes))} of them different; expected one each."
        )
    if record["tables"].get("panel") != genes or "all_genes" not in record["tables"]:
        raise ModelFileError("tables: expected 'panel' with the names in genes, and 'all_genes'.")
    if features is not None and sum(part["n_features"] for part in _parts(features)) != record["n_features"]:
        raise ModelFileError(f"n_features={record['n_features']}, but features has {features['n_features']}.")
    rings = ModelSettings(**record["settings"]).context_rings
    if rings != record["context_rings"]:
        raise ModelFileError(f"context_rings={record['context_rings']}, but settings has {rings}.")


def check_numbers(
    record: dict[str, Any],
    network: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    origin: pd.DataFrame,
    place: Path,
) -> None:
    """Validate that arrays are present, of a floating-point type, and consistent with one another and the JSON part.

    Raises
    ------
    ModelFileError
        An array is absent or does not fit; the message names it.
    """
    lengths = {"1": 1, "4": 4, "5": 5, "g": len(record["genes"]), "f": record["n_features"], "n": len(origin)}
    # Of a record that was read, which has every setting.
    settings = record["settings"]
    wide = settings["context_surroundings"] > 0
    lengths["c"] = record["n_features"] * (record["context_rings"] + 1 + wide)
    parts = [(NETWORK, network), (REFERENCE, reference)]
    if any(name in network for name in CALIBRATION):
        parts.append((CALIBRATION, network))
        parts += [(RETRIEVAL_PCC, network)] if RETRIEVAL_PCC.keys() <= network.keys() else []
    if "context.center" in network:
        parts.append(({"context.center": "f"}, network))
    if settings["kernel_weight"]:
        parts += [(KERNEL_MAP, network), (KERNEL_HEAD, reference)]
        parts += [(PATCH_MAP, network)] if PATCH_MAP.keys() <= network.keys() else []
    for shapes, arrays in parts:
        for name, axes in shapes.items():
            _check_array(name, arrays.get(name), axes, lengths, place)
    if lengths["b"] != lengths["a"] + 1:
        raise ModelFileError(f"{place}: appearance has {lengths['b']} columns; expected {lengths['a'] + 1}.")
    if "k" in lengths:
        _check_kernels(lengths, 1 + (PATCH_MAP.keys() <= network.keys()), place)
    missing = {"name", "slice", "x", "y"} - set(origin.columns)
    if missing:
        raise ModelFileError(f"{place}: origin.parquet has no columns {sorted(missing)}. Copy the model again.")


def _check_kernels(lengths: Mapping[str, int], n_kernels: int, place: Path) -> None:
    """Validate that the kernel head has as many kernels in each part, each with as many of the map's inputs."""
    inputs, kernels, parts = (lengths[axis] for axis in "isq")
    if inputs != n_kernels * lengths["k"] or kernels != n_kernels * parts or inputs % kernels:
        raise ModelFileError(
            f"{place}: the kernel head has {inputs} inputs and {kernels} kernels in {parts} parts; expected "
            f"{n_kernels * lengths['k']} inputs, {n_kernels} kernels in each part, and as many inputs for each. Copy "
            "the model again."
        )


def _check_array(name: str, array: np.ndarray | None, axes: str, lengths: dict[str, int], place: Path) -> None:
    if array is None:
        raise ModelFileError(f"{place} has no array {name!r}: it is damaged or was edited. Copy the model again.")
    # The first array with a letter sets the letter's length.
    fits = array.size == 1 if not axes else array.ndim == len(axes)
    expected = [lengths.setdefault(axis, length) for axis, length in zip(axes, array.shape, strict=False)]
    if not fits or (axes and list(array.shape) != expected) or array.dtype.kind != "f":
        raise ModelFileError(
            f"{place}: the array {name!r} is {array.dtype} of shape {array.shape}, which does not fit the model's "
            f"{lengths['g']} genes, {lengths['f']} features and {lengths['n']} reference spots. Copy the model again."
        )


def read_table(name: str, columns: list[str], reference: Mapping[str, np.ndarray], n: int, place: Path) -> Any:
    """Read a table of the reference, CSR ``(n_reference, n_columns)``.

    Raises
    ------
    ModelFileError
        An array of the table is absent, or its arrays are not consistent.
    """
    parts = {key: reference.get(f"table.{name}.{key}") for key in ("data", "indices", "indptr", "shape")}
    missing = [f"table.{name}.{key}" for key, part in parts.items() if part is None]
    if missing:
        raise ModelFileError(f"{place} has no array {missing[0]!r}: it is damaged or was edited. Copy the model again.")
    shape = (n, len(columns))
    try:
        csr = sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
        csr.check_format(full_check=True)
        fits = parts["shape"].tolist() == list(shape) and csr.dtype.kind == "f"  # type: ignore[union-attr]
    except ARRAY_ERRORS as error:
        raise ModelFileError(f"{place}: the table {name!r} cannot be read ({error}). Copy the model again.") from error
    if not fits:
        raise ModelFileError(f"{place}: the table {name!r} does not have {shape[0]} spots and {shape[1]} columns.")
    return csr
