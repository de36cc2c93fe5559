"""Feature maps of spots, in files of the cache folder, found again by the spots' features.

Maps are 10 to 200 times larger than features, so they are never a part of an AnnData: a copy would read all of them
into memory, a cut would copy them, and ``write_h5ad`` would store them once more. ``uns`` holds the files' names, and a
spot's maps are found by its features, which they were pooled to: each file has the hash of every spot's features. So
spots may be copied, cut out, put in another order and stored, and maps can never be taken for those of other features.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from st_gchb._advice import Fix, advise
from st_gchb._artifacts import write_whole
from st_gchb._errors import CacheError, EncoderError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.pp.patches._cache import Features, cache_folder

Maps = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]

_LARGEST = np.finfo(np.float16).max


def ids_of(features: Features) -> Ids:
    """Hash of each row of features, ``(n_spots,)``."""
    rows = np.ascontiguousarray(features, dtype=np.float32)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def maps_path(folder: Path, key: str) -> Path:
    """File of a slice's maps, beside that of its features."""
    return folder / f"{key}.maps.safetensors"


class MapsWriter:
    """A file of maps while it is being written, some spots at a time, in any order.

    It is a safetensors file, laid out by hand since its numbers are never in memory together: first the hashes of the
    spots' features, then check sums of their maps, then the maps.
    """

    def __init__(self, file: BinaryIO, n_spots: int, shape: tuple[int, ...], room: _Room) -> None:
        self._file, self._shape, self._room = file, shape, room
        self._header = _header(n_spots, shape)
        self._row = 2 * int(np.prod(shape))
        self._sums = np.zeros(n_spots, dtype=np.int64)

    def put(self, rows: npt.NDArray[np.int64], maps: Maps) -> None:
        """Write the maps of some spots, ``(b, n_views, c, h, w)``.

        Raises
        ------
        EncoderError
            A value is beyond what float16 can hold.
        CacheError
            The disk refuses.
        """
        if not np.isfinite(maps).all():
            raise EncoderError(
                f"The maps before the encoder's last stage hold NaN, or values beyond {_LARGEST:g}, the largest that "
                "float16 knows: they cannot be kept. Use another encoder, or features alone (leave save_feature_maps= "
                "out)."
            )
        start = len(self._header) + 16 * len(self._sums)
        with self._room:
            for row, own in zip(rows, maps, strict=True):
                content = np.ascontiguousarray(own).tobytes()
                self._sums[row] = zlib.crc32(content)
                self._file.seek(start + int(row) * self._row)
                self._file.write(content)

    def finish(self, features: Features) -> None:
        """Write to which features the maps belong; spots without maps (their features are NaN) keep zeros."""
        with self._room:
            self._file.seek(0)
            self._file.write(self._header + ids_of(features).tobytes() + self._sums.tobytes())
            self._file.truncate(len(self._header) + len(self._sums) * (16 + self._row))
            self._file.flush()


class _Room:
    """Turns what the disk refuses into an error that says how much is needed and where."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.folder, self.n_bytes = path.parent, n_bytes

    def check(self) -> None:
        """Refuse before hours of encoding what cannot fit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < self.n_bytes:
            raise OSError(f"{free / 1e9:.3g} GB are free")

    def __enter__(self) -> _Room:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise CacheError(
                f"The feature maps of one slice need {self.n_bytes / 1e9:.3g} GB in {self.folder}, which could not be "
                f"written ({error}). Nothing is left there of them. Set ST_GCHB_CACHE to a "
                "folder with that much room for each slice, or take an encoder with smaller maps. "
                + advise(Fix("cache_dir", why="with another folder"), Fix("save_feature_maps", "False"))
            ) from error


@contextmanager
def writing(path: Path, n_spots: int, shape: tuple[int, ...]) -> Iterator[MapsWriter]:
    """A file of maps, ``(n_spots, *shape)``: whole when the block ends after ``finish``, else not there at all.

    Raises
    ------
    CacheError
        The folder has too little room, or cannot be written to.
    """
    room = _room_for(path, n_spots, shape)
    with ExitStack() as stack:
        with room:
            room.check()
            part = stack.enter_context(write_whole(path))
            file = stack.enter_context(open(part, "r+b"))
        yield MapsWriter(cast("BinaryIO", file), n_spots, shape, room)


def check_room(path: Path, n_spots: int, shape: tuple[int, ...]) -> None:
    """Refuse what cannot fit; errors as :func:`writing`."""
    with _room_for(path, n_spots, shape) as room:
        room.check()


def _room_for(path: Path, n_spots: int, shape: tuple[int, ...]) -> _Room:
    return _Room(path, len(_header(n_spots, shape)) + n_spots * (16 + 2 * int(np.prod(shape))))


def _header(n_spots: int, shape: tuple[int, ...]) -> bytes:
    layout, start = {}, 0
    parts = (("ids", "I64", (n_spots,), 8), ("sums", "I64", (n_spots,), 8), ("maps", "F16", (n_spots, *shape), 2))
    for name, kind, size, width in parts:
        end = start + width * int(np.prod(size))
        layout[name] = {"dtype": kind, "shape": list(size), "data_offsets": [start, end]}
        start = end
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def is_stored(path: Path, features: Features, shape: tuple[int, ...]) -> bool:
    """Whether a file holds the maps of just these features, whole and as they were written."""
    if not path.is_file():
        return False
    try:
        ids, sums, maps = read_maps(path)
    except (SafetensorError, OSError, KeyError) as error:
        logger.warning("The cached feature maps in %s are damaged (%s): they are made again.", path, error)
        return False
    same = maps.shape == (len(features), *shape) and np.array_equal(ids, ids_of(features))
    if same and all(zlib.crc32(own.tobytes()) == total for own, total in zip(maps, sums, strict=True)):
        let_go(maps)
        return True
    logger.warning("The cached feature maps in %s are not what was stored: they are made again.", path)
    return False


def read_maps(path: Path) -> tuple[Ids, Ids, Maps]:
    """Hashes, check sums, and the maps still on disk; safetensors sees that the file has its length."""
    with safe_open(path, framework="numpy") as file:
        ids, sums = file.get_tensor("ids"), file.get_tensor("sums")
        shape = tuple(file.get_slice("maps").get_shape())
    start = path.stat().st_size - 2 * int(np.prod(shape))
    return ids, sums, np.memmap(path, dtype=np.float16, mode="r", offset=start, shape=shape)


def let_go(array: Any) -> None:
    """Give pages of a mapped file that were read back to the system, which would else count as this process's."""
    file = getattr(array, "base", None)
    # Pages that were written to a private copy ("c") are nowhere else.
    if isinstance(array, np.memmap) and array.mode in ("r", "r+") and isinstance(file, mmap.mmap):
        file.madvise(mmap.MADV_DONTNEED)


MEMORY_BYTES = 2**30
"""Maps up to this size are held in memory; of more, those of a step are read from their files."""

FILES_KEY = "maps"
"""Key in ``uns[features_key]`` of the files' names."""


class PatchMaps:
    """Feature maps of spots, read when they are asked for.

    Parameters
    ----------
    sources
        Arrays of maps, ``(n, n_views, c, h, w)`` each, in memory or mapped from files.
    source, row
        Where each spot's maps are, ``(n_spots,)`` both.
    """

    def __init__(self, sources: list[Maps], source: Ids, row: Ids) -> None:
        self._sources, self._source, self._row = sources, source, row

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_spots, n_views, c, h, w)``."""
        return len(self._row), *self._sources[0].shape[1:]

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Maps:
        """Maps of some spots, in any order, ``(n, n_views, c, h, w)``."""
        result = np.empty((len(index), *self.shape[1:]), dtype=np.float16)
        source, row = self._source[index], self._row[index]
        for number in np.unique(source):
            # Files are read from their beginning to their end.
            places = np.flatnonzero(source == number)
            places = places[np.argsort(row[places], kind="stable")]
            result[places] = self._sources[number][row[places]]
            let_go(self._sources[number])
        return result

    def subset(self, rows: npt.NDArray[np.int64]) -> PatchMaps:
        """Those of some spots, not yet read."""
        return PatchMaps(self._sources, self._source[rows], self._row[rows])

    def held(self) -> PatchMaps:
        """The same, in memory where they are no more than :data:`MEMORY_BYTES`."""
        n_bytes = 2 * int(np.prod(self.shape))
        if n_bytes > MEMORY_BYTES:
            logger.info("Feature maps take %.3g GB: each step reads those of its spots from disk.", n_bytes / 1e9)
            return self
        everything = np.arange(len(self))
        return PatchMaps([self[everything]], np.zeros(len(self), dtype=np.int64), everything)


def find_maps(stored: Mapping[str, Any], ids: Ids, key: str) -> PatchMaps:
    """The maps of spots, by the hashes of their features.

    Parameters
    ----------
    stored
        ``uns[key]``, as :func:`~st_gchb.pp.embed_patches` writes it.
    ids
        As :func:`ids_of` gives them.
    key
        Key of the features.

    Raises
    ------
    MissingKeyError
        No maps were made, or not of all spots.
    MissingFileError
        A file is no longer there, or cut short.
    """
    again = "Run st_gchb.pp.embed_patches(..., save_feature_maps=True) again; features are found in the cache."
    if FILES_KEY not in stored:
        raise MissingKeyError(f"uns[{key!r}] names no feature maps of the trunk's last stage. {again}")
    sources, found = [], []
    for path in (_where(str(name), again) for name in np.atleast_1d(stored[FILES_KEY])):
        try:
            own, _, maps = read_maps(path)
        except (SafetensorError, OSError, KeyError) as error:
            raise MissingFileError(f"The feature maps in {path} are damaged ({error}). {again}") from error
        sources.append(maps)
        found.append(own)
    known = np.concatenate(found)
    source = np.repeat(np.arange(len(found)), list(map(len, found)))
    row = np.concatenate([np.arange(len(own)) for own in found])
    order = np.argsort(known, kind="stable")
    place = order[np.searchsorted(known[order], ids).clip(max=len(known) - 1)]
    missing = int((known[place] != ids).sum())
    if missing:
        raise MissingKeyError(
            f"{missing} of {len(ids)} spots have no feature maps: obsm[{key!r}] is not what they were made with. "
            + again
        )
    return PatchMaps(sources, source[place], row[place]).held()


def _where(name: str, again: str) -> Path:
    """A file where it was, or in today's cache folder."""
    path = Path(name)
    for candidate in (path, cache_folder() / path.name):
        if candidate.is_file():
            return candidate
    raise MissingFileError(f"The feature maps in {path} are no longer there. {again}")
