"""Data sets of several tissues in a folder of published sections: their sections, splits and patch features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anndata
from anndata import AnnData
from spatialdata import SpatialData

import st_gchb
from st_gchb.errors import MissingFileError
from studies._command import default_encoders

PATCHES_UM = (80.0, 150.0, 300.0)
"""Sides of the patches, µm."""


def _her2st(data: Path, sections: Sequence[str]) -> list[Any]:
    adata = st_gchb.datasets.her2st(sections, path=data / "her2st")
    adata.obs["patient"] = "C"
    return [adata]


def _folders(data: Path, places: Sequence[str], patient: str = "", **options: Any) -> list[Any]:
    """Read sections by folder, or by folder and name as in ``"mob_st2k:MOB1"``."""
    parts = []
    for place in places:
        folder, _, name = place.partition(":")
        read = st_gchb.io.read_section(data / folder, name=name or None, **options)
        table = read if isinstance(read, AnnData) else read.tables["table"]
        (table.obs["slice"],) = table.uns["spatial"]  # an image's name is its slice's
        table.obs["patient"] = patient
        parts.append(read)
    return parts


def _patients(data: Path) -> list[Any]:
    return [*_her2st(data, _C), *_folders(data, ["her2st_a"], patient="A")]


_C = ("C2", "C3", "C4", "C5")


@dataclass(frozen=True)
class Tissue:
    """A data set, and the split by which it is evaluated.

    Parameters
    ----------
    title
        Tissue and technology, for tables.
    split
        What is held out: ``"slice"``, ``"patient"`` or ``"blocks"``.
    read
        Function that reads the sections from the folder of data sets: AnnData or SpatialData, with ``slice`` and
        ``patient`` in ``obs``.
    note
        What readers of the table must know.
    """

    title: str
    split: str
    read: Callable[[Path], list[Any]]
    note: str = ""

    @property
    def folds(self) -> dict[str, Any]:
        """Arguments of :func:`~st_gchb.evaluate.evaluate` for the split."""
        return {"split": "blocks"} if self.split == "blocks" else {"by": self.split}


TISSUES: dict[str, Tissue] = {
    "her2st": Tissue("breast tumor, patient C, legacy ST", "slice", partial(_her2st, sections=_C)),
    "her2st_a": Tissue("breast tumor, patient A, legacy ST", "blocks", partial(_folders, places=["her2st_a"])),
    "her2st_patients": Tissue(
        "breast tumor, from patient to patient, legacy ST",
        "patient",
        _patients,
        "The image of patient A is 3.2 µm per px, those of patient C are 0.7.",
    ),
    "mob_st": Tissue("mouse olfactory bulb, legacy ST", "blocks", partial(_folders, places=["mob_st"])),
    "mob_st2k": Tissue(
        "mouse olfactory bulb, legacy ST 2k",
        "slice",
        partial(_folders, places=[f"mob_st2k:MOB{number}" for number in (1, 2, 3)]),
        "Published with 1,000 genes.",
    ),
    "visium_mousebrain": Tissue(
        "mouse brain, Visium FFPE",
        "slice",
        partial(_folders, places=[f"visium_mousebrain/V10F24-078_{area}" for area in ("A1", "B1")]),
    ),
    "visium_lung": Tissue(
        "lung with COVID-19, Visium FFPE",
        "slice",
        partial(_folders, places=[f"visium_lung/V10F24-110_{area}" for area in ("C1", "D1")], genome="GRCh38"),
        "Genes of the virus are left out.",
    ),
    "visium_colon": Tissue(
        "mouse colon, Visium",
        "blocks",
        partial(_folders, places=["visium_colon"]),
        "Counts were corrected for depth (sctransform) before publication and are whole numbers, of variable genes "
        "alone: correlations can be compared between methods, but a ceiling from the noise of counts does not hold.",
    ),
}
"""Data sets by name."""


def embedded(tissue: Tissue, data: Path, weights: str | Path, device: str = "auto") -> AnnData:
    """Read the sections of a data set, embed their patches, and join them with the genes that all of them have.

    Parameters
    ----------
    tissue
        The data set.
    data
        Folder of the data sets.
    weights
        Weights of the image encoder, MobileNetV2.
    device
        Device of the encoders.

    Returns
    -------
    AnnData
        Counts in ``X``, patch features in ``obsm["X_patch"]``, ``slice`` and ``patient`` in ``obs``, the H&E in
        ``uns["spatial"]``.

    Raises
    ------
    MissingFileError
        There is no such folder.
    """
    if not data.is_dir():
        raise MissingFileError(f"--data {data}: there is no such folder.")
    options = default_encoders(weights)
    options |= {"patch_um": PATCHES_UM, "n_views": 4, "device": {"gpu": "cuda"}.get(device, device)}
    tables = []
    for section in tissue.read(data):
        # The copy of a SpatialData is its table, with positions in px of the image that was read.
        table = st_gchb.pp.embed_patches(section, copy=True, **options)
        if isinstance(section, SpatialData):
            _carry_image(table, section)
        tables.append(table)
    return join(tables)


def join(tables: Sequence[AnnData]) -> AnnData:
    """Concatenate sections with the genes that all of them have; images and features are those of the sections."""
    if len(tables) == 1:
        return tables[0]
    joined = anndata.concat(tables, join="inner", index_unique="-", keys=[str(number) for number in range(len(tables))])
    joined.uns["spatial"] = {name: library for table in tables for name, library in table.uns["spatial"].items()}
    joined.uns["X_patch"] = tables[0].uns["X_patch"]
    return joined


def _carry_image(table: AnnData, section: SpatialData) -> None:
    """Store the H&E of a SpatialData and the size of its pixels with its table, for figures and methods on pixels."""
    spots = st_gchb.pp.resolve(section)
    features = table.uns["X_patch"]
    sizes = dict(zip(map(str, features["slices"]), features["um_per_px"], strict=True))
    for slide in spots.slices():
        height, width = slide.image.shape_px
        factors = dict(spots.adata.uns["spatial"][slide.name]["scalefactors"])
        # The spot diameter of Space Ranger is no measure of a pixel: the spots' distance, by which patches are cut, is.
        factors |= {"tissue_hires_scalef": 1.0, "microns_per_pixel": float(sizes[slide.name])}
        image = slide.image.read(0, 0, height, 0, width)
        table.uns["spatial"][slide.name] = {"images": {"hires": image}, "scalefactors": factors}
