"""The codec of the stores: files whole or not at all, what was written comes back, and damage is told."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from st_gchb import _artifacts
from st_gchb._artifacts import (
    ChangedFileError,
    DamagedFileError,
    decode,
    digest,
    encode,
    has_own_digest,
    is_there,
    map_tensor,
    parse_json,
    read_hashed_tensors,
    read_json,
    read_tensors,
    sha256,
    sha256_of,
    tensor_header,
    with_digest,
    write_folder_whole,
    write_hashed_tensors,
    write_json,
    write_tensors,
    write_whole,
)
from st_gchb._errors import StoreError

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)
DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint64"])
ARRAYS = hnp.arrays(DTYPES, SHAPES)
BOOLEANS = hnp.arrays(bool, SHAPES)
TEXTS = hnp.arrays("U4", SHAPES, elements=st.text("abä", max_size=4))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.text(max_size=5).filter(lambda key: key != "__array__")

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def nested(leaves, keys=KEYS):
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=10,
    )


def same(found, expected):
    """Compare to the bit, NaN and types of numbers included; text returns as objects."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == (object if expected.dtype.kind == "U" else expected.dtype)
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert [type(key) for key in found] == [type(key) for key in expected]
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected or (math.isnan(found) and math.isnan(expected))


# ---- JSON ----


@quick
@given(value=nested(SCALARS | ARRAYS | BOOLEANS | TEXTS))
def test_nested_json_with_arrays_comes_back(tmp_path, value):
    write_json(tmp_path / "a.json", encode(value))
    same(decode(read_json(tmp_path / "a.json")), value)


def test_what_json_does_not_tell_apart_becomes_one():
    assert encode({1: (np.int64(2), np.float32(0.5)), "t": np.True_}) == {"1": [2, 0.5], "t": True}


@quick
@given(value=nested(SCALARS | ARRAYS | BOOLEANS))
def test_the_strict_form_is_read_by_any_program(value):
    def finite(item):
        if isinstance(item, np.ndarray):
            return finite(item.tolist())
        if isinstance(item, dict):
            return {key: finite(value) for key, value in item.items()}
        if isinstance(item, list):
            return [finite(value) for value in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    text = json.dumps(encode(value, strict=True), allow_nan=False)
    assert json.loads(text) == finite(value)


TENSORS = hnp.arrays(st.sampled_from(["float32", "int64", "bool"]), hnp.array_shapes(min_dims=0, max_side=3)).map(
    lambda array: torch.from_numpy(np.asarray(np.nan_to_num(array)))
)
EXACT = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS | st.integers() | st.tuples(st.integers(), KEYS), inner, max_size=3)
    ),
    max_leaves=10,
)


@quick
@given(value=EXACT)
def test_with_tensors_all_comes_back_as_it_was(value):
    tensors = {}
    text = json.dumps(encode(value, tensors=tensors))
    same(decode(json.loads(text), tensors), value)


def test_tensors_are_put_aside_as_copies():
    tensor = torch.arange(6.0).reshape(2, 3)
    tensors = {}
    encode([tensor, tensor.T], tensors=tensors)
    tensor.zero_()
    assert tensors["0"].sum() == tensors["1"].sum() == 15
    assert all(one.is_contiguous() for one in tensors.values())


@pytest.mark.parametrize("value", [object(), np.zeros(2), b"bytes", {1, 2}, 1j])
def test_with_tensors_other_types_are_refused(value):
    with pytest.raises(TypeError, match=f"cannot hold a {type(value).__name__}"):
        encode({"a": [value]}, tensors={})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000, b"{}{}"])
def test_what_is_no_json_is_told(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedFileError):
        read_json(tmp_path / "a.json")


def test_a_missing_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")


# ---- Records ----


@quick
@given(record=st.dictionaries(KEYS, nested(SCALARS), max_size=4), data=st.data())
def test_a_record_vouches_for_itself(record, data):
    record.pop("record_sha256", None)
    signed = with_digest(record)
    assert list(signed) == [*record, "record_sha256"]
    content = json.dumps(signed).encode()
    assert has_own_digest(parse_json(content))
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
    try:
        found = parse_json(damaged)
    except DamagedFileError:
        return
    # Spellings of the same number, and white space, are no damage.
    assert not has_own_digest(found) or json.dumps(found) == json.dumps(parse_json(content))


@pytest.mark.parametrize("record", [[], "text", None, 3, {}, {"record_sha256": None}, {"record_sha256": "0" * 64}])
def test_other_json_vouches_for_nothing(record):
    assert not has_own_digest(record)


def test_the_order_of_a_record_is_no_part_of_its_hash():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1, "record_sha256": "x"}) != digest({"a": 2, "b": 1})


def test_hashes_are_those_of_sha256sum(tmp_path):
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == sha256("abc") == sha256(b"a", "bc") == known
    assert sha256(np.frombuffer(b"abc", dtype=np.uint8)) == known


@quick
@given(array=ARRAYS | BOOLEANS)
def test_arrays_and_tensors_are_hashed_by_their_numbers_in_order(array):
    expected = sha256(array.tobytes())
    assert sha256(array) == sha256(np.asfortranarray(array)) == expected
    if array.dtype != np.uint64:
        assert sha256(torch.from_numpy(array)) == sha256(torch.from_numpy(np.asfortranarray(array))) == expected


# ---- Tensor files ----

NAMED = st.dictionaries(st.text("abc.", min_size=1, max_size=4), ARRAYS | BOOLEANS, min_size=1, max_size=4)


@quick
@given(arrays=NAMED, metadata=st.none() | st.dictionaries(KEYS, st.text(max_size=9), min_size=1, max_size=2))
def test_arrays_come_back_and_the_file_is_that_of_safetensors(tmp_path, arrays, metadata):
    write_tensors(tmp_path / "a", arrays, metadata)
    found, stored = read_tensors(tmp_path / "a")
    assert stored == (metadata or {})
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        same(found[name], array)
    if metadata is None:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arrays_in_another_order_of_memory_and_numbers_keep_their_shape(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    write_hashed_tensors(tmp_path / "a", {"t": array.T, "s": array[:, ::2], "n": np.array(2.5)})
    found, record = read_hashed_tensors(tmp_path / "a")
    assert record is None
    same(found["t"], array.T)
    same(found["s"], array[:, ::2])
    same(found["n"], np.array(2.5))


def test_torch_tensors_come_back_as_such(tmp_path):
    tensors = {"a": torch.arange(3).to(torch.bfloat16), "b": torch.zeros(0, 4), "c": torch.tensor(True)}
    write_hashed_tensors(tmp_path / "a", tensors, "epoch 3")
    found, record = read_hashed_tensors(tmp_path / "a", framework="pt")
    assert record == "epoch 3"
    same(found, {name: tensors[name] for name in found})
    # numpy has no bfloat16.
    with pytest.raises(DamagedFileError):
        read_tensors(tmp_path / "a")


@quick
@given(arrays=NAMED, record=st.none() | st.text(max_size=9), data=st.data())
def test_damaged_numbers_are_told(tmp_path, arrays, record, data):
    write_hashed_tensors(tmp_path / "a", arrays, record)
    content = (tmp_path / "a").read_bytes()
    n_bytes = sum(array.nbytes for array in arrays.values())
    at = data.draw(st.integers(len(content) - n_bytes, len(content) - 1))
    damaged = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(ChangedFileError, match="its hash is not that of what it holds"):
        read_hashed_tensors(tmp_path / "a")


@quick
@given(arrays=NAMED, record=st.none() | st.text(max_size=9), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_told(tmp_path, arrays, record, share):
    write_hashed_tensors(tmp_path / "a", arrays, record)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFileError):
        read_hashed_tensors(tmp_path / "a")


@pytest.mark.parametrize("edit", [{"record": "other"}, {"sha256": "0" * 64}, {"record": None}, {"sha256": None}])
def test_edited_metadata_are_told(tmp_path, edit):
    write_hashed_tensors(tmp_path / "a", {"x": np.arange(3)}, "text")
    tensors, metadata = read_tensors(tmp_path / "a")
    edited = {key: value for key, value in (metadata | edit).items() if value is not None}
    write_tensors(tmp_path / "a", tensors, edited)
    with pytest.raises(ChangedFileError):
        read_hashed_tensors(tmp_path / "a")


def test_with_a_record_names_of_tensors_are_hashed_too(tmp_path):
    write_hashed_tensors(tmp_path / "a", {"x": np.arange(3), "y": np.arange(4)}, "text")
    tensors, metadata = read_tensors(tmp_path / "a")
    write_tensors(tmp_path / "a", {"z": tensors["x"], "y": tensors["y"]}, metadata)
    with pytest.raises(ChangedFileError):
        read_hashed_tensors(tmp_path / "a")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None], ids=["a folder", "nothing"])
def test_what_is_no_file_is_told(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(DamagedFileError):
        read_tensors(tmp_path / "a")


@quick
@given(
    layout=st.dictionaries(st.text("abcé", min_size=1, max_size=3), SHAPES, min_size=1, max_size=3),
    dtype=DTYPES,
)
def test_a_file_may_be_written_piece_by_piece(tmp_path, layout, dtype):
    arrays = {name: np.arange(np.prod(shape)).reshape(shape).astype(dtype) for name, shape in layout.items()}
    header = tensor_header({name: (dtype, shape) for name, shape in layout.items()})
    assert len(header) % 8 == 0
    (tmp_path / "a").write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))
    found = load_file(tmp_path / "a")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        same(found[name], array)
        mapped = map_tensor(tmp_path / "a", name, array.dtype.type)
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, array)


def test_only_the_array_that_is_expected_is_mapped(tmp_path):
    write_tensors(tmp_path / "a", {"x": np.zeros(4, np.float16)})
    with pytest.raises(DamagedFileError, match="x is of type F16, not F32"):
        map_tensor(tmp_path / "a", "x", np.float32)
    with pytest.raises(DamagedFileError, match="y"):
        map_tensor(tmp_path / "a", "y", np.float16)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-1])
    with pytest.raises(DamagedFileError):
        map_tensor(tmp_path / "a", "x", np.float16)


# ---- Whole or not at all ----


class DiskError(OSError):
    """Raised by the tests in place of a full disk."""


def full_disk(*_, **__):
    raise DiskError(28, "No space left on device")


def safetensors_full_disk(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


WRITERS = {
    "json": lambda path: write_json(path, {"a": 1}),
    "arrays": lambda path: write_tensors(path, {"x": np.zeros(3)}),
    "tensors": lambda path: write_hashed_tensors(path, {"x": torch.zeros(3)}, "text"),
}
FAILURES = {
    "text": (Path, "write_text", full_disk),
    "arrays": (_artifacts, "save_file", safetensors_full_disk),
    "tensors": ("safetensors.torch.save_file", safetensors_full_disk),
    "temporary": (_artifacts.tempfile, "mkstemp", full_disk),
    "rights": (Path, "chmod", full_disk),
    "rename": (_artifacts.os, "replace", full_disk),
}
OWN = {"json": "text", "arrays": "arrays", "tensors": "tensors"}
FAILING = [(writer, step) for writer, own in OWN.items() for step in (own, "temporary", "rights", "rename")]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("writer", "step"), FAILING)
def test_a_write_that_fails_anywhere_leaves_the_old_file_or_nothing(tmp_path, monkeypatch, writer, step, there):
    target = tmp_path / "folder" / "a.file"
    target.parent.mkdir()
    if there:
        target.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(*FAILURES[step])
        with pytest.raises(OSError, match="No space left on device"):
            WRITERS[writer](target)
    assert [path.name for path in target.parent.iterdir()] == ["a.file"] * there
    assert not there or target.read_bytes() == b"old"
    WRITERS[writer](target)
    assert [path.name for path in target.parent.iterdir()] == ["a.file"]
    assert target.read_bytes() != b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_ends_with_an_error_leaves_nothing(tmp_path, error):
    def write_half():
        with write_whole(tmp_path / "a") as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_places_where_no_file_can_be_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(StoreError, match=r"no file can be written there \(.*Name another place") as caught:
            write_json(target, 1)
        assert str(target) in str(caught.value)
        assert caught.value.errno
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_files_have_the_permissions_of_plain_files(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "a", 1)
    with write_folder_whole(tmp_path / "folder") as part:
        write_json(part / "a", 1)
    rights = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "a", "folder/a")}
    assert len(rights) == 1
    assert stat.S_IMODE(os.stat(tmp_path / "folder").st_mode) == 0o755


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(target):
    with write_folder_whole(target) as part:
        (part / "new").write_bytes(b"new")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "parent" / "folder"
    put(target)
    (target / "old").write_bytes(b"old")
    put(target)
    assert content(tmp_path) == {"parent/folder/new": b"new"}
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("nth", range(7))
@pytest.mark.parametrize("error", [DiskError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "stop"])
def test_a_folder_that_fails_at_any_step_leaves_the_old_one_or_nothing(tmp_path, monkeypatch, there, nth, error):
    target = tmp_path / "folder"
    if there:
        target.mkdir()
        (target / "old").write_bytes(b"old")
    before, steps = content(tmp_path), []

    def failing(function):
        def step(*arguments, **options):
            steps.append(function)
            if len(steps) == nth + 1:
                raise error
            return function(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(_artifacts.tempfile, "mkdtemp", failing(_artifacts.tempfile.mkdtemp))
        patch.setattr(Path, "chmod", failing(Path.chmod))
        patch.setattr(Path, "replace", failing(Path.replace))
        try:
            put(target)
            failed = False
        except (OSError, KeyboardInterrupt):
            failed = True
    assert failed == (nth < len(steps))
    assert content(tmp_path) == (before if failed else {"folder/new": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] * (there or not failed)


def test_an_old_folder_that_cannot_be_restored_is_not_deleted(tmp_path, monkeypatch):
    put(tmp_path / "folder")
    (tmp_path / "folder" / "old").write_bytes(b"old")
    replace, calls = Path.replace, []

    def failing(self, target):
        calls.append(self)
        return replace(self, target) if len(calls) == 1 else full_disk()

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(DiskError):
        put(tmp_path / "folder")
    assert b"old" in content(tmp_path).values()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/below", "nothing"])
def test_nothing_is_at_paths_that_no_file_has(tmp_path, name):
    (tmp_path / "file").touch()
    assert not is_there(tmp_path / name)
    assert not is_there(tmp_path / "file", Path.is_dir)
    assert is_there(tmp_path / "file")
