"""Load the her2st data set: HER2-positive breast tumors, legacy Spatial Transcriptomics (Andersson et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import anndata as ad

from st_gchb._arguments import Few, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import track
from st_gchb.datasets._fetch import DataFile, fetch, find_local, local_folder
from st_gchb.datasets._tables import join_slices
from st_gchb.io import Library
from st_gchb.io.images import read_thumbnail
from st_gchb.io.sections import read_legacy_spots

_ROOT = "https://raw.githubusercontent.com/almaan/her2st/master/data"

_IMAGES = {
    "B4": "BT10737_D2_HE.jpg",
    "C2": "5714_HE_BT_C2.jpg",
    "C3": "5714_HE_BT_D1.jpg",
    "C4": "5714_HE_BT_D2.jpg",
    "C5": "5714_HE_BT_E1.jpg",
    "C6": "5714_HE_BT_E2.jpg",
}
"""Published image of each section. Image names refer to arrays, not sections, so other sections need a local folder."""

_SHA256 = {
    "C2.jpg": "26e2f73ae840cdd46c5bba405aae181f13a56a376b9848dff23f7a9c5de7f19e",
    "C2.tsv.gz": "c1c59ea6cffae36b9ecb561b8e2a97e3aa5f4085f748e991a0e330ed9d09773d",
    "C2_selection.tsv": "235b5f4306b3b57c628ffc82c98c7109602474fbcc79a917b9c50517f99b6b1c",
    "C3.jpg": "0005a92674014d473040a28f0afca89ce5fa5c44019b479b638ceb3272ceb568",
    "C3.tsv.gz": "e00c55a3eb9caac5d9c71b8906aae8be8b38f93e23938f4a0ebee17683ef6a2a",
    "C3_selection.tsv": "7fd76c13370b7804ac3bb377b846d22485cf9223f9dd8dfc25be06e5aaf65755",
    "C4.jpg": "f40607eb1d5f0d125decd71c48b0c5d29cf6776ad92297fd185631208c82d6f2",
    "C4.tsv.gz": "33201f76d41d7131dc600a0f87d9a70383af3503e81698b4d11e6f2e8d73e9da",
    "C4_selection.tsv": "47e79f3b9dbfa3a8c18af9e948ba7ba4bf0a75ea1b4c292bc714ced7d0917d4c",
    "C5.jpg": "34028ea41e376396b50c42b0a11a7e689c85be4a8022e668d0a09cc128c04c65",
    "C5.tsv.gz": "c0f310315ca6110d74dbdf7011e5b42432ba0b8eb5f001824764911988f39338",
    "C5_selection.tsv": "2114cc3b4da759772112897f1e247d5443c9f8c808e6a9a952eb4fda379a194c",
}

_UM_PER_PX = 200 / 287
"""Pixel size of the published images, µm: spots are 200 µm and 287 px apart."""

_SPOT_DIAMETER_UM = 100.0


def section_files(section: str) -> tuple[DataFile, DataFile, DataFile]:
    """List the files of one section: counts, spot positions and image."""
    counts, spots, image = f"{section}.tsv.gz", f"{section}_selection.tsv", f"{section}.jpg"
    folder = f"ST-imgs/{section[0]}/{section}"
    image_url = f"{_ROOT}/{folder}/{_IMAGES[section]}" if section in _IMAGES else None
    return (
        # The patterns match the files in a clone of the repository.
        _file(counts, f"{_ROOT}/ST-cnts/{counts}", (f"ST-cnts/{counts}",)),
        _file(spots, f"{_ROOT}/ST-spotfiles/{spots}", (f"ST-spotfiles/{spots}",)),
        _file(image, image_url, (f"{folder}/*.jpg",)),
    )


def _file(name: str, url: str | None, patterns: tuple[str, ...]) -> DataFile:
    return DataFile(name, url, _SHA256.get(name), (*patterns, *(f"data/{pattern}" for pattern in patterns)))


@checked
def her2st(
    sections: str | Sequence[str] = ("C2", "C3", "C4", "C5"),
    *,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    hires_side_px: Few = 1500,
) -> ad.AnnData:
    """Load sections of HER2-positive breast tumors with counts and full-resolution H&E images.

    Parameters
    ----------
    sections
        Names of sections, such as ``"C2"``; the letter denotes the patient. B4 and C2 to C6 can be downloaded, all
        others are read from a local folder.
    path
        Folder with the published files (``C2.jpg``, ``C2.tsv.gz``, ``C2_selection.tsv``), or with a clone of the
        repository ``almaan/her2st``. By default the folder in the environment variable ``ST_GCHB_DATA``, if it is set.
    cache_dir
        Folder for downloads; by default ``st_gchb.settings.cache_dir``.
    hires_side_px
        Length of the longer side of the down-scaled image that is kept in memory for plots, px.

    Returns
    -------
    AnnData
        One row per spot under tissue. ``X``: raw UMI counts, CSR float32, ``(n_spots, n_genes)``, with count 0 for
        genes that a section's table does not list. ``obs``: ``slice``, ``patient``, ``array_row``, ``array_col``.
        ``obsm["spatial"]``: spot centers as x, y in full-resolution px, ``(n_spots, 2)``. ``uns["spatial"][section]``:
        down-scaled image, scale factors, µm per px, path of the full-resolution image.

    Raises
    ------
    InputError
        A section is unknown or listed twice.
    MissingFileError
        A local folder is given and lacks files.
    DownloadError
        Files cannot be downloaded; the message explains where to put them manually.

    Notes
    -----
    Andersson et al., *Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions*, Nature Communications 2021. Spots are 100 µm wide and 200 µm apart; a pixel is about 0.70 µm.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.her2st(["C2", "C3"])  # doctest: +SKIP
    """
    names = _check_sections(sections, path)
    files = [file for name in names for file in section_files(name)]
    found = fetch(files, "her2st", path=path, cache_dir=cache_dir)
    parts, libraries = [], []
    for i, name in enumerate(track(names, "reading sections")):
        counts, spots, image = found[3 * i : 3 * i + 3]
        parts.append(_read_section(name, counts, spots))
        libraries.append(_library(name, image, hires_side_px))
    return join_slices(parts, libraries)


def _check_sections(sections: Sequence[str], path: str | Path | None) -> list[str]:
    names = [sections] if isinstance(sections, str) else list(sections)
    folder = local_folder("her2st", path)
    if not names:
        raise InputError("sections: found none; name at least one, such as ['C2'].")
    if len(set(names)) < len(names):
        raise InputError(f"sections: {names} names a section twice; each may be there once.")
    for name in names:
        is_name = isinstance(name, str) and re.fullmatch(r"[A-H][1-6]", name) is not None
        # With a local folder, fetch() reports missing files by name.
        if not is_name or (name not in _IMAGES and folder is None):
            local = "" if folder is None else f"; {folder} has {_sections_in(folder) or 'none'}"
            raise InputError(
                f"her2st: unknown section {name!r}. Sections that can be downloaded: {', '.join(_IMAGES)}{local}. "
                "Others (A1 to H3) are read from a local folder with their files: path= or ST_GCHB_DATA."
            )
    return names


def _sections_in(folder: Path) -> str:
    names = [f"{letter}{number}" for letter in "ABCDEFGH" for number in range(1, 7)]
    return ", ".join(name for name in names if all(find_local(folder, file) for file in section_files(name)))


def _read_section(name: str, counts_path: Path, spots_path: Path) -> ad.AnnData:
    """Read the spots of one section that are under tissue and have counts."""
    adata, _ = read_legacy_spots(name, counts_path, spots_path)
    adata.obs.insert(1, Keys.PATIENT, name[0])
    return adata


def _library(name: str, image: Path, side_px: int) -> Library:
    hires, scale = read_thumbnail(image, side_px)
    factors = {
        "tissue_hires_scalef": scale,
        Keys.SPOT_DIAMETER: _SPOT_DIAMETER_UM / _UM_PER_PX,
        Keys.UM_PER_PX: _UM_PER_PX,
    }
    return Library(name, {"hires": hires}, factors, {Keys.SOURCE_IMAGE: str(image.resolve())})
