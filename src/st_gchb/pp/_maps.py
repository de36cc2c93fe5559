"""Feature maps of spots, in files of the cache folder, found again by the spots' features.

Maps are 10 to 200 times larger than features, so they are never a part of an AnnData: a copy would read all of them
into memory, a cut would copy them, and ``write_h5ad`` would store them once more. ``uns`` holds the files' names, and a
spot's maps are found by its features, which they were pooled to: each file has the hash of every spot's features. So
spots may be copied, cut out, put in another order and stored, and maps can never be taken for those of other features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from st_gchb._errors import MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.pp._cache import cache_folder
from st_gchb.pp._maps_file import Ids, Maps, let_go, read_maps

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
    again = "Run st_gchb.pp.embed_patches(..., tail='last_stage') again; features are found in the cache."
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
