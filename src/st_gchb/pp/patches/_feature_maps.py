"""Feature maps of spots in files of the cache folder, addressed by the features of the spots.

Maps are 10 to 200 times larger than features, so they are no part of an AnnData: a copy would read all of them into
memory, a subset would copy them, and ``write_h5ad`` would store them once more. ``uns`` holds the names of their files.
A spot's maps are found by its features, which were pooled from them: each file holds the hash of every spot's features.
So spots may be copied, subset, reordered and stored, and maps are never mistaken for those of other features.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from st_gchb._advice import Fix, advise
from st_gchb._artifacts import DamagedFileError, map_tensor, tensor_header, write_whole
from st_gchb._errors import CacheError, EncoderError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.pp.patches._cache import Features, cache_folder

Maps = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]

_LARGEST = np.finfo(np.float16).max


def ids_of(features: Features) -> Ids:
    """Compute a hash of each spot's features, ``(n_spots,)``."""
    rows = np.ascontiguousarray(features, dtype=np.float32)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def maps_path(folder: Path, key: str) -> Path:
    """Return the path of a slice's maps, beside the file of its features."""
    return folder / f"{key}.maps.safetensors"


class MapsWriter:
    """Write the maps of a slice to a file, some spots at a time, in any order.

    The file is a safetensors file that is written piece by piece, since its maps are never in memory together: first
    the hashes of the spots' features, then the CRC-32 of their maps, then the maps.

    Parameters
    ----------
    file
        Open file.
    n_spots
        Number of spots of the slice.
    shape
        Shape of a spot's maps, ``(n_views, c, h, w)``.
    room
        Translates errors of the disk.
    """

    def __init__(self, file: BinaryIO, n_spots: int, shape: tuple[int, ...], room: _Room) -> None:
        self._file, self._shape, self._room = file, shape, room
        self._header = _header(n_spots, shape)
        self._row = 2 * int(np.prod(shape))
        self._sums = np.zeros(n_spots, dtype=np.int64)

    def put(self, rows: npt.NDArray[np.int64], maps: Maps) -> None:
        """Write the maps of some spots.

        Parameters
        ----------
        rows
            Rows of the spots among those of the slice, ``(n,)``.
        maps
            ``(n, n_views, c, h, w)``.

        Raises
        ------
        EncoderError
            A value exceeds the range of float16.
        CacheError
            The disk is full or refuses.
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
        """Write the header and the hashes of the features; spots without maps, whose features are NaN, keep zeros.

        Parameters
        ----------
        features
            Features that were pooled from the maps, ``(n_spots, n_features)``.

        Raises
        ------
        CacheError
            The disk is full or refuses.
        """
        with self._room:
            self._file.seek(0)
            self._file.write(self._header + ids_of(features).tobytes() + self._sums.tobytes())
            self._file.truncate(len(self._header) + len(self._sums) * (16 + self._row))
            self._file.flush()


class _Room:
    """Context that raises errors of the disk as an error that names the bytes needed and the folder."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.folder, self.n_bytes = path.parent, n_bytes

    def check(self) -> None:
        """Check that the disk has enough free space, before hours of encoding."""
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
    """Open a file of maps for writing; it is kept as a whole if the block ends without an error, else not at all.

    Parameters
    ----------
    path
        File to write.
    n_spots
        Number of spots of the slice.
    shape
        Shape of a spot's maps, ``(n_views, c, h, w)``.

    Yields
    ------
    MapsWriter
        Its ``finish`` has to be called before the block ends.

    Raises
    ------
    CacheError
        The disk has too little free space, or the folder cannot be written to.
    """
    room = _room_for(path, n_spots, shape)
    with ExitStack() as stack:
        with room:
            room.check()
            part = stack.enter_context(write_whole(path))
            file = stack.enter_context(open(part, "r+b"))
        yield MapsWriter(cast("BinaryIO", file), n_spots, shape, room)


def check_room(path: Path, n_spots: int, shape: tuple[int, ...]) -> None:
    """Check that a file of maps fits on the disk; parameters and errors as :func:`writing`."""
    with _room_for(path, n_spots, shape) as room:
        room.check()


def _room_for(path: Path, n_spots: int, shape: tuple[int, ...]) -> _Room:
    return _Room(path, len(_header(n_spots, shape)) + n_spots * (16 + 2 * int(np.prod(shape))))


def _header(n_spots: int, shape: tuple[int, ...]) -> bytes:
    return tensor_header(
        {"ids": (np.int64, (n_spots,)), "sums": (np.int64, (n_spots,)), "maps": (np.float16, (n_spots, *shape))}
    )


def is_stored(path: Path, features: Features, shape: tuple[int, ...]) -> bool:
    """Check that a file holds the maps of given features, as they were written; log a warning if it is damaged.

    Parameters
    ----------
    path
        File of maps, which need not exist.
    features
        ``(n_spots, n_features)``.
    shape
        Expected shape of a spot's maps, ``(n_views, c, h, w)``.
    """
    if not path.is_file():
        return False
    try:
        ids, sums, maps = read_maps(path)
    except DamagedFileError as error:
        logger.warning("The cached feature maps in %s are damaged (%s): they are made again.", path, error)
        return False
    same = maps.shape == (len(features), *shape) and np.array_equal(ids, ids_of(features))
    if same and all(zlib.crc32(own.tobytes()) == total for own, total in zip(maps, sums, strict=True)):
        let_go(maps)
        return True
    logger.warning("The cached feature maps in %s are not what was stored: they are made again.", path)
    return False


def read_maps(path: Path) -> tuple[Ids, Ids, Maps]:
    """Open a file of maps.

    Returns
    -------
    tuple
        Hashes of the spots' features ``(n_spots,)``, CRC-32 of their maps ``(n_spots,)``, and the maps
        ``(n_spots, n_views, c, h, w)``, mapped to memory.

    Raises
    ------
    DamagedFileError
        The file is cut short, or is no file of maps.
    """
    ids, sums = (np.array(map_tensor(path, name, np.int64)) for name in ("ids", "sums"))
    return ids, sums, map_tensor(path, "maps", np.float16)


def let_go(array: Any) -> None:
    """Release the pages of a mapped file that were read, which count as memory of this process until then."""
    file = getattr(array, "base", None)
    # Pages that were written to a private copy ("c") are nowhere else.
    if isinstance(array, np.memmap) and array.mode in ("r", "r+") and isinstance(file, mmap.mmap):
        file.madvise(mmap.MADV_DONTNEED)


MEMORY_BYTES = 2**30
"""Largest size of maps that are kept in memory; larger maps are read from their files at each step."""

FILES_KEY = "maps"
"""Key of the names of the files in ``uns[features_key]``."""


class PatchMaps:
    """Feature maps of spots, read from disk by indexing.

    Parameters
    ----------
    sources
        Arrays of maps, ``(n, n_views, c, h, w)`` each, in memory or mapped from files.
    source, row
        Number of the array that holds each spot's maps, and row in it, ``(n_spots,)`` both.
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
        """Read the maps of some spots, in any order, ``(n, n_views, c, h, w)``."""
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
        """Return the maps of some spots without reading them."""
        return PatchMaps(self._sources, self._source[rows], self._row[rows])

    def held(self) -> PatchMaps:
        """Return the maps in memory if they are no larger than :data:`MEMORY_BYTES`, else as they are."""
        n_bytes = 2 * int(np.prod(self.shape))
        if n_bytes > MEMORY_BYTES:
            logger.info("Feature maps take %.3g GB: each step reads those of its spots from disk.", n_bytes / 1e9)
            return self
        everything = np.arange(len(self))
        return PatchMaps([self[everything]], np.zeros(len(self), dtype=np.int64), everything)


def find_maps(stored: Mapping[str, Any], ids: Ids, key: str) -> PatchMaps:
    """Find the maps of spots by the hashes of their features.

    Parameters
    ----------
    stored
        ``uns[key]``, as :func:`~st_gchb.pp.embed_patches` writes it.
    ids
        Hashes of the spots' features from :func:`ids_of`, ``(n_spots,)``.
    key
        Key of the features.

    Returns
    -------
    PatchMaps
        Maps in the order of the spots.

    Raises
    ------
    MissingKeyError
        No maps were stored, or not those of all spots.
    MissingFileError
        A file is missing or damaged.
    """
    again = "Run st_gchb.pp.embed_patches(..., save_feature_maps=True) again; features are found in the cache."
    if FILES_KEY not in stored:
        raise MissingKeyError(f"uns[{key!r}] names no feature maps of the image encoder's last stage. {again}")
    sources, found = [], []
    for path in (_where(str(name), again) for name in np.atleast_1d(stored[FILES_KEY])):
        try:
            own, _, maps = read_maps(path)
        except DamagedFileError as error:
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
    """Return the path of a file where it was written, or in the present cache folder."""
    path = Path(name)
    for candidate in (path, cache_folder() / path.name):
        if candidate.is_file():
            return candidate
    raise MissingFileError(f"The feature maps in {path} are no longer there. {again}")
