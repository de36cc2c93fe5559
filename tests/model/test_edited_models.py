"""Model folders that were edited and hashed anew: each field of the record, each array, set to what it is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from safetensors.numpy import load_file, save_file

from st_gchb._artifacts import digest, sha256_of
from st_gchb._errors import ModelFileError, STGCHBError
from st_gchb.model import STGCHB

ODD: list[list[Any]] = [
    [None],
    [0, -1, 3, 2**70],
    ["", "x"],
    [0.5, -1e300, float("nan"), float("inf")],
    [True],
    [[], [[]]],
    [{}, {"a": 1}],
]
"""Values of every type that JSON has."""
ABSENT = object()
PARTS = ["settings", "features", "graph", "registry", "tables", "history", "sha256"]
"""Fields of the record that have fields of their own."""
FIRST_READ = {"kind", "format", "record_sha256"}
"""Fields that tell how the others are read."""


@pytest.fixture(scope="module")
def folder(tissue: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of few weights with all that a model has: it is written, hashed and read a thousand times."""
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=10, k=30, n_hidden=16, n_embedding=8)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    path = tmp_path_factory.mktemp("edited") / "model"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def write(folder: Path, record: dict[str, Any], known: dict[str, str] | None = None) -> None:
    """As the package would have written it: with the right hash, which is known of files that have not changed."""
    hashes = record.get("sha256")
    if isinstance(hashes, dict):
        there = {name for name, value in hashes.items() if isinstance(value, str) and (folder / name).is_file()}
        right = {name: (known or {}).get(name) or sha256_of(folder / name) for name in there}
        record = record | {"sha256": hashes | right}
    (folder / "model.json").write_text(json.dumps(record | {"record_sha256": digest(record)}))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a record; of a list its first entry stands for all."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_value(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of what leads to the place, the rest being the record's own: a whole copy takes as long as a load."""
    edited = copy.copy(record)
    inner: Any = edited
    for key in path[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    if value is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return edited


def answers(folder: Path, query: AnnData | None) -> STGCHBError | None:
    """The package's own error; or none, where the model predicts finite values."""
    try:
        model = STGCHB.load(folder, accelerator="cpu")
        pred = None if query is None else model.predict(query)
    except STGCHBError as error:
        return error
    assert pred is None or np.isfinite(pred.layers["st_gchb"]).all()
    return None


@pytest.mark.parametrize("part", [*PARTS, "others"])
def test_every_field_that_was_edited_is_told_or_used(
    part: str, record: dict[str, Any], folder: Path, held_out: AnnData
):
    """Each field is given a value of each type; values of the same type are given in turn, field by field."""
    query, asked = held_out[:12].copy(), part not in ("registry", "history")
    wanted = {part} if part != "others" else set(record) - FIRST_READ - set(PARTS)
    told = 0
    try:
        for nth, path in enumerate(path for path in places(record) if path[0] in wanted):
            # scvi-tools' registry is deep; no prediction asks for it.
            types = ODD if asked else [one for i, one in enumerate(ODD) if i % 2 == nth % 2]
            for value in [*(one[nth // 2 % len(one)] for one in types), ABSENT]:
                write(folder, with_value(record, path, value), record["sha256"])
                try:
                    told += answers(folder, query if asked else None) is not None
                except Exception as error:
                    raise AssertionError(f"{path} = {value!r}: {type(error).__name__}: {error}") from error
    finally:
        write(folder, record)
    assert told


def test_a_field_that_is_gone_is_named(record: dict[str, Any], folder: Path):
    try:
        for name in set(record) - {"record_sha256"}:
            write(folder, with_value(record, (name,), ABSENT))
            with pytest.raises(ModelFileError, match=name):
                STGCHB.load(folder)
    finally:
        write(folder, record)


@pytest.mark.parametrize("content", ["", "[]", "7", "null", "{", "[" * 100_000, '{"kind": "STGCHB", "format": 1e999}'])
def test_what_is_no_record_is_told(content: str, record: dict[str, Any], folder: Path):
    try:
        (folder / "model.json").write_text(content)
        with pytest.raises(ModelFileError, match=r"model\.json"):
            STGCHB.load(folder)
    finally:
        write(folder, record)


@pytest.mark.parametrize("file", ["network.safetensors", "reference.safetensors"])
def test_every_array_that_was_edited_is_told(file: str, record: dict[str, Any], folder: Path, held_out: AnnData):
    """Each array is left out and made not finite; two of the other changes are made of it, in turn."""
    query, arrays = held_out[:12].copy(), load_file(folder / file)
    others = {name: known for name, known in record["sha256"].items() if name != file}
    try:
        for nth, (name, array) in enumerate(arrays.items()):
            in_turn = [
                ("one row less", array[:-1] if array.ndim else None),
                ("one axis more", array[None]),
                ("text of numbers", np.zeros(array.shape, np.uint8)),
                ("empty", np.zeros((0,) * max(array.ndim, 1), array.dtype)),
            ]
            odd = array * np.float32(np.nan) if array.dtype.kind == "f" else -array.astype(np.int64) - 5
            changed = [("absent", None), ("not finite", odd), *in_turn[nth % 2 :: 2]]
            for what, values in changed:
                edited = {key: value for key, value in arrays.items() if key != name}
                if values is not None:
                    edited[name] = np.ascontiguousarray(values)
                save_file(edited, folder / file)
                write(folder, record, others)
                try:
                    answers(folder, query)
                except Exception as error:
                    raise AssertionError(f"{name} {what}: {type(error).__name__}: {error}") from error
    finally:
        save_file(arrays, folder / file)
        write(folder, record)


@pytest.mark.parametrize("column", ["name", "slice", "x", "y"])
def test_an_origin_that_was_edited_is_told(column: str, record: dict[str, Any], folder: Path):
    origin = pd.read_parquet(folder / "origin.parquet")
    try:
        origin.drop(columns=column).to_parquet(folder / "origin.parquet")
        write(folder, record)
        with pytest.raises(ModelFileError, match=column):
            STGCHB.load(folder)
        origin[:-1].to_parquet(folder / "origin.parquet")
        write(folder, record)
        with pytest.raises(ModelFileError, match="reference spots"):
            STGCHB.load(folder)
    finally:
        origin.to_parquet(folder / "origin.parquet")
        write(folder, record)


@pytest.mark.parametrize("path", ["", "x" * 5000, "no/such\0folder", "model.json/below", 7, None, [], b"x"])
def test_what_is_no_path_of_a_folder_is_told(path: Any):
    with pytest.raises(STGCHBError):
        STGCHB.load(path)
