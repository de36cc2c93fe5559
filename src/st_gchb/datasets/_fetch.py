"""Find the files of public data sets in a local folder, or download them into the cache and verify their checksums."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from st_gchb._artifacts import sha256_of, write_whole
from st_gchb._errors import DownloadError, MissingFileError
from st_gchb._logging import logger
from st_gchb._settings import bars_disabled, settings

DATA_VARIABLE = "ST_GCHB_DATA"

_TIMEOUT_S = (5, 30)
"""Timeouts for connecting, and between two parts of the response, s."""


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Parameters
    ----------
    name
        File name in the cache and in a flat local folder.
    url
        Public address; None if the file can only be read from a local folder.
    sha256
        Checksum; None if none is published.
    patterns
        Glob patterns of alternative paths inside a local folder.
    """

    name: str
    url: str | None
    sha256: str | None = None
    patterns: tuple[str, ...] = ()


def local_folder(dataset: str, path: str | Path | None) -> Path | None:
    """Find the local folder of a data set that the caller or the environment specifies.

    Parameters
    ----------
    dataset
        Name of the data set. A subfolder of that name takes precedence over the folder itself.
    path
        Folder that the caller passed. Takes precedence over the environment variable ``ST_GCHB_DATA``.

    Returns
    -------
    pathlib.Path or None
        The folder; None if neither specifies one.

    Raises
    ------
    MissingFileError
        The specified folder does not exist.
    """
    named = path if path is not None else os.environ.get(DATA_VARIABLE) or None
    if named is None:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "path=" if path is not None else f"the environment variable {DATA_VARIABLE}="
        raise MissingFileError(f"{dataset}: {source}{str(named)!r} is no folder (now in {Path.cwd()}). Check the name.")
    return folder / dataset if (folder / dataset).is_dir() else folder


def cache_folder(dataset: str, cache_dir: str | Path | None) -> Path:
    """Return the folder for downloads of a data set, in ``cache_dir`` or by default in ``settings.cache_dir``."""
    root = settings.cache_dir if cache_dir is None else Path(cache_dir).expanduser()
    return root / "datasets" / dataset


def find_local(folder: Path, file: DataFile) -> Path | None:
    """Find a file inside a local folder; None if it is not there."""
    for pattern in (file.name, *file.patterns):
        matches = sorted(path for path in folder.glob(pattern) if path.is_file())
        if matches:
            return matches[0].resolve()
    return None


def fetch(
    files: Sequence[DataFile],
    dataset: str,
    *,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> list[Path]:
    """Find files in a local folder, or download those that are not yet in the cache.

    Parameters
    ----------
    files
        The requested files.
    dataset
        Name of the data set.
    path
        Local folder with the files. If one is specified, here or by ``ST_GCHB_DATA``, nothing is downloaded.
    cache_dir
        Folder for downloads.

    Returns
    -------
    list of pathlib.Path
        Absolute paths, in the order of ``files``.

    Raises
    ------
    MissingFileError
        The local folder does not exist, or lacks some of the files.
    DownloadError
        A file cannot be downloaded, or its checksum is wrong.
    """
    folder = local_folder(dataset, path)
    if folder is None:
        target = cache_folder(dataset, cache_dir)
        return [_download(file, target, dataset, files) for file in files]
    found = [find_local(folder, file) for file in files]
    missing = [file for file, where in zip(files, found, strict=True) if where is None]
    if missing:
        raise MissingFileError(
            f"{dataset}: the folder {folder} lacks {len(missing)} of the {len(files)} files wanted:\n"
            f"{_listing(missing)}\n"
            f"Put them there, or name another folder by path= or {DATA_VARIABLE}; with neither they are downloaded."
        )
    return [where for where in found if where is not None]


def _download(file: DataFile, folder: Path, dataset: str, wanted: Sequence[DataFile]) -> Path:
    """Download a file into the cache unless a complete copy is there, and return its path."""
    target = folder / file.name
    note = target.with_name(f"{target.name}.sha256")
    expected = file.sha256 or (note.read_text().strip() if note.is_file() else None)
    if file.url is None:
        if target.is_file():
            return target
        raise DownloadError(_advice(f"no address is known for {file.name}", folder, dataset, wanted))
    folder.mkdir(parents=True, exist_ok=True)
    if not target.is_file():
        logger.info("%s: downloading %s from %s", dataset, file.name, file.url)
    try:
        pooch.retrieve(
            file.url,
            known_hash=None if expected is None else f"sha256:{expected}",
            fname=file.name,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=not bars_disabled(), timeout=_TIMEOUT_S),
        )
    except (requests.exceptions.RequestException, OSError) as error:
        reason = f"{file.name} could not be downloaded from {file.url} ({type(error).__name__}: {_short(error)})"
        raise DownloadError(_advice(reason, folder, dataset, wanted)) from error
    except ValueError as error:  # raised by pooch for a wrong checksum
        reason = f"{file.name} from {file.url} is not the file that was published: {_short(error)}"
        raise DownloadError(_advice(reason, folder, dataset, wanted)) from error
    if expected is None:
        # Without a published checksum, later loads are verified against the first download.
        found = sha256_of(target)
        with write_whole(note) as part:
            part.write_text(f"{found}\n")
        logger.info("%s: no checksum is published for %s; noted sha256 %s", dataset, file.name, found)
    return target.resolve()


def _short(error: Exception, width: int = 200) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= width else f"{text[:width]}..."


def _listing(files: Sequence[DataFile]) -> str:
    lines = (f"  {file.name}  from  {file.url or 'no known address'}" for file in files)
    return "\n".join(dict.fromkeys(lines))


def _advice(reason: str, folder: Path, dataset: str, wanted: Sequence[DataFile]) -> str:
    return (
        f"{dataset}: {reason}. Without network, make the folder {folder} and put these files there under these names:\n"
        f"{_listing(wanted)}\n"
        f"Or put them in any folder and pass it as path=, or set {DATA_VARIABLE} to it "
        f"(the folder itself, or one that has a sub-folder {dataset}/)."
    )
