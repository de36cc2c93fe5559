"""Codec of the package's stores: atomic writing, SHA-256, JSON with arrays, and tensor files.

Cached features, feature maps, model folders, checkpoints, kept runs and receipts are written and read by these
functions. A store adds its file names, its messages, and its answer to damage: readers raise
:class:`DamagedFileError`, which each store turns into a warning or into an error of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from st_gchb._errors import STGCHBError, StoreError

if TYPE_CHECKING:
    import torch

_Scalar = TypeVar("_Scalar", bound=np.generic)


class DamagedFileError(STGCHBError):
    """A file cannot be decoded: it was cut short, edited, or written by something else."""


class ChangedFileError(DamagedFileError):
    """A file can be decoded, and its content does not have the hash that is stored in it."""


# ---- Atomic writing ----


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Write a file as a whole or not at all.

    The block writes to a temporary file in the same folder, which is renamed to ``path`` when the block ends without
    an error and is deleted otherwise.

    Parameters
    ----------
    path
        File to write; its folder is created if absent, and an existing file is replaced.

    Yields
    ------
    pathlib.Path
        Temporary file.

    Raises
    ------
    StoreError
        The folder cannot be created or written to, or a folder is in the file's place. Errors of the block pass
        through.

    Examples
    --------
    >>> from st_gchb._artifacts import write_whole
    >>> with write_whole("/tmp/st_gchb_doc.txt") as part:
    ...     _ = part.write_text("all of it")
    """
    target = Path(path)
    with _name_target(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
        os.close(handle)
    part = Path(name)
    try:
        yield part
        make_readable(part)
        with _name_target(target):
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _name_target(target: Path) -> Iterator[None]:
    """Name the file that cannot be created, and the reason, in errors of the operating system."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        named = StoreError(f"{target}: no file can be written there ({reason}). Name another place.")
        named.errno = error.errno
        raise named from error


@contextmanager
def write_folder_whole(folder: Path) -> Iterator[Path]:
    """Write a folder of files as a whole or not at all.

    Parameters
    ----------
    folder
        Folder to write. An existing folder is replaced, and restored if the new one cannot take its place.

    Yields
    ------
    pathlib.Path
        Temporary folder beside it, which is renamed when the block ends without an error.

    Raises
    ------
    StoreError
        No folder can be created there. Errors of the block pass through.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise StoreError(f"{folder}: nothing can be written there ({error}). Name another folder.") from error
    try:
        yield part
        part.chmod(0o755)
        for file in part.iterdir():
            # Folders within it were made with the permissions of any new folder.
            if file.is_file():
                make_readable(file)
        if folder.exists():
            _swap(part, folder)
        else:
            try:
                part.replace(folder)
            except OSError as error:
                raise StoreError(
                    f"{folder}: no folder can be put there ({error.strerror}). Name another one."
                ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, folder: Path) -> None:
    """Replace a folder by another one, and delete the old one last."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    old = aside / folder.name
    try:
        folder.replace(old)
        part.replace(folder)
    except BaseException:
        # If the old folder cannot be restored either, it stays aside.
        if not folder.exists():
            old.replace(folder)
        shutil.rmtree(aside)
        raise
    shutil.rmtree(aside)


def is_there(path: Path, kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Return whether something is at a path; a path that no file can have holds nothing.

    Parameters
    ----------
    path
        Path to look at.
    kind
        Test of what is there, such as ``Path.is_dir``.
    """
    try:
        return kind(path)
    except (OSError, ValueError):
        # The name is too long, lies below a folder without access, or holds a null character.
        return False


def make_readable(path: Path) -> None:
    """Set the permissions that ``open`` gives a new file: those of temporary files are limited to their owner."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


# ---- SHA-256 ----


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(*parts: str | bytes | npt.NDArray[Any] | torch.Tensor) -> str:
    """Compute the SHA-256 of texts, bytes and the memory of arrays, concatenated, as hexadecimal text.

    Shapes and data types of arrays are not part of the hash: pass them as text where they matter.

    Examples
    --------
    >>> from st_gchb._artifacts import sha256
    >>> sha256("spot", "s") == sha256("spots")
    True
    """
    total = hashlib.sha256()
    for part in parts:
        total.update(_memory(part))
    return total.hexdigest()


def _memory(part: str | bytes | npt.NDArray[Any] | torch.Tensor) -> bytes | memoryview:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, bytes):
        return part
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).data
    import torch

    # As bytes: numpy has no bfloat16.
    content: npt.NDArray[np.uint8] = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return content.data


def digest(record: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a JSON record without its own entry ``record_sha256``."""
    own = {key: value for key, value in record.items() if key != "record_sha256"}
    return sha256(json.dumps(own, sort_keys=True))


def with_digest(record: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON record with its :func:`digest` added as ``record_sha256``."""
    return record | {"record_sha256": digest(record)}


def has_own_digest(record: Any) -> bool:
    """Return whether a decoded JSON record is as :func:`with_digest` returned it."""
    try:
        return isinstance(record, dict) and record.get("record_sha256") == digest(record)
    except RecursionError:
        # The decoder of JSON follows deeper nesting than the encoder.
        return False


# ---- JSON ----


def encode(value: Any, *, strict: bool = False, tensors: dict[str, torch.Tensor] | None = None) -> Any:
    """Convert nested containers with arrays to what JSON holds.

    Keys become text, tuples lists and numpy scalars numbers. Arrays are marked, so that :func:`decode` returns arrays;
    arrays of text return with ``dtype=object``.

    Parameters
    ----------
    value
        Dictionaries, lists, tuples, arrays, numbers, text, booleans and None.
    strict
        Write plain JSON for other programs: arrays as nested lists, and null for NaN and infinity. This form is not
        decoded.
    tensors
        Dictionary that torch tensors are moved to, as contiguous copies on the CPU. In this form keys of any type and
        tuples are kept, and numpy arrays are refused.

    Returns
    -------
    Any
        Argument of ``json.dumps``.

    Raises
    ------
    TypeError
        ``tensors`` is given, and a value is of another type than those above.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb._artifacts import encode
    >>> encode({"panel": np.array([1.5, 2.0])})
    {'panel': {'__array__': [1.5, 2.0], 'dtype': 'float64'}}
    >>> encode({"pcc": np.float64("nan"), "rings": (1, 2)}, strict=True)
    {'pcc': None, 'rings': [1, 2]}
    """

    def inner(item: Any) -> Any:
        return encode(item, strict=strict, tensors=tensors)

    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        if tensors is None:
            return {str(key): inner(item) for key, item in value.items()}
        # As pairs: keys may be numbers, and the order of an optimizer's parameters matters.
        return {"pairs": [[inner(key), inner(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [inner(item) for item in value]
        return {"tuple": items} if tensors is not None and isinstance(value, tuple) else items
    if tensors is not None:
        return _scalar_or_reference(value, tensors)
    if isinstance(value, np.ndarray):
        if strict:
            return inner(value.tolist())
        return {"__array__": value.tolist(), "dtype": "object" if value.dtype.kind in "OUS" else str(value.dtype)}
    return None if strict and isinstance(value, float) and not math.isfinite(value) else value


def _scalar_or_reference(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a scalar as it is, and move a tensor to ``tensors`` in exchange for its name there."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"A file of tensors cannot hold a {type(value).__name__}.")
    name = str(len(tensors))
    # A copy each: safetensors refuses tensors that share memory.
    tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {"tensor": name}


def decode(value: Any, tensors: Mapping[str, Any] | None = None) -> Any:
    """Restore what :func:`encode` was given.

    Parameters
    ----------
    value
        Decoded JSON.
    tensors
        Tensors by name, if ``encode`` was given a dictionary for them.
    """
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if tensors is not None:
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "tuple" in value:
            return tuple(decode(value["tuple"], tensors))
        return {decode(key, tensors): decode(item, tensors) for key, item in value["pairs"]}
    if "__array__" in value:
        return np.array(value["__array__"], dtype=value["dtype"])
    return {key: decode(item) for key, item in value.items()}


def write_json(path: str | Path, value: Any, *, indent: int | None = None, allow_nan: bool = True) -> None:
    """Write JSON as UTF-8, as a whole or not at all; errors as :func:`write_whole`."""
    with write_whole(path) as part:
        part.write_text(json.dumps(value, indent=indent, allow_nan=allow_nan), encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    DamagedFileError
        The content is no JSON. Errors of the operating system pass through.
    """
    return parse_json(Path(path).read_bytes())


def parse_json(content: bytes) -> Any:
    """Decode the content of a JSON file; errors as :func:`read_json`."""
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(str(error)) from error


# ---- Tensor files ----


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, npt.NDArray[Any]] | Mapping[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write arrays, or torch tensors, to a safetensors file as a whole or not at all.

    Raises
    ------
    OSError
        The disk is full or refuses; a :class:`~st_gchb.errors.StoreError` where no file can be created.
    """
    with write_whole(path) as part:
        try:
            if all(isinstance(value, np.ndarray) for value in tensors.values()):
                save_file({key: np.asarray(value, order="C") for key, value in tensors.items()}, part, metadata)
            else:
                from safetensors.torch import save_file as save_torch_file

                save_torch_file(dict(tensors), part, metadata)  # type: ignore[arg-type]
        except SafetensorError as error:
            # safetensors raises this when the disk is full.
            raise OSError(f"{path} could not be written: {error}") from error


def read_tensors(path: str | Path, framework: str = "numpy") -> tuple[dict[str, Any], dict[str, str]]:
    """Read a safetensors file.

    Parameters
    ----------
    path
        File to read.
    framework
        ``"numpy"`` for arrays, ``"pt"`` for torch tensors.

    Returns
    -------
    tuple
        Tensors by name, and the file's metadata.

    Raises
    ------
    DamagedFileError
        The file cannot be read.
    """
    with _open_tensors(path, framework) as file:
        # The handle of a safetensors file is no dictionary: it cannot be iterated.
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


@contextmanager
def _open_tensors(path: str | Path, framework: str = "numpy") -> Iterator[Any]:
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        # numpy knows not all data types of safetensors, of which a TypeError or a KeyError tells.
        raise DamagedFileError(str(error)) from error


def write_hashed_tensors(
    path: str | Path,
    tensors: Mapping[str, npt.NDArray[Any]] | Mapping[str, torch.Tensor],
    record: str | None = None,
) -> None:
    """Write a safetensors file that holds the SHA-256 of its content; errors as :func:`write_tensors`.

    Parameters
    ----------
    path
        File to write.
    tensors
        Arrays, or torch tensors, by name.
    record
        Text that is stored and hashed with the tensors. The names of tensors are a part of the hash if there is one.
    """
    metadata = {"sha256": _tensors_sha256(tensors, record)}
    write_tensors(path, tensors, metadata if record is None else {"record": record} | metadata)


def read_hashed_tensors(path: str | Path, framework: str = "numpy") -> tuple[dict[str, Any], str | None]:
    """Read a file of :func:`write_hashed_tensors`.

    Returns
    -------
    tuple
        Tensors by name, and the record, if the file has one.

    Raises
    ------
    DamagedFileError
        The file cannot be read.
    ChangedFileError
        The file can be read, and its hash is that of other content.
    """
    tensors, metadata = read_tensors(path, framework)
    record = metadata.get("record")
    if metadata.get("sha256") != _tensors_sha256(tensors, record):
        raise ChangedFileError("its hash is not that of what it holds")
    return tensors, record


def _tensors_sha256(tensors: Mapping[str, Any], record: str | None) -> str:
    if record is None:
        return sha256(*(tensors[name] for name in sorted(tensors)))
    return sha256(record, *(part for name in sorted(tensors) for part in (name, tensors[name])))


def tensor_header(layout: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]) -> bytes:
    """Return the header of a safetensors file that is written piece by piece, without its tensors in memory.

    Parameters
    ----------
    layout
        Data type and shape of each tensor, in the order in which their little-endian numbers follow the header. Types
        of larger numbers come first, so that all are aligned.

    Examples
    --------
    >>> from st_gchb._artifacts import tensor_header
    >>> len(tensor_header({"maps": ("float16", (3, 2))})) % 8
    0
    """
    entries, start = {}, 0
    for name, (kind, shape) in layout.items():
        end = start + np.dtype(kind).itemsize * math.prod(shape)
        entries[name] = {"dtype": _type_code(kind), "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def map_tensor(path: str | Path, name: str, dtype: type[_Scalar]) -> np.memmap[Any, np.dtype[_Scalar]]:
    """Map an array of a safetensors file to memory, to be read where it is used.

    Raises
    ------
    DamagedFileError
        The file cannot be read, or holds no array of that name and data type.
    """
    with _open_tensors(path) as file:
        # Validates the header and the length of the file.
        file.get_slice(name)
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(length))[name]
    if entry["dtype"] != _type_code(dtype):
        raise DamagedFileError(f"{name} is of type {entry['dtype']}, not {_type_code(dtype)}")
    start = 8 + length + entry["data_offsets"][0]
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=tuple(entry["shape"]))


def _type_code(dtype: npt.DTypeLike) -> str:
    """Return safetensors' name of a numpy type of integers or floating-point numbers, such as ``"F16"``."""
    kind = np.dtype(dtype)
    return f"{kind.kind.upper()}{8 * kind.itemsize}"
