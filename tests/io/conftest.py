"""Folders as Space Ranger and the legacy pipeline write them, tiny."""

from __future__ import annotations

import functools
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy.sparse import csc_matrix

SIDE = 480
PITCH = 40.0
"""px between neighboring spots: 100 µm on a Visium slide."""
DIAMETER = 22.0
GENES = [f"GENE{i}" for i in range(6)]


def written_once(write: Callable[..., Any]) -> Callable[..., Any]:
    """Let a folder be made once of the same arguments, and be copied from then on, which takes a tenth of the time."""
    made: dict[bytes, tuple[dict[Path, bytes], Any]] = {}

    @functools.wraps(write)
    def copy(folder: Path, *arguments: Any, **options: Any) -> Any:
        key = pickle.dumps((arguments, sorted(options.items())))
        if key not in made:
            with tempfile.TemporaryDirectory() as empty:
                answer = write(Path(empty), *arguments, **options)
                files = [path for path in Path(empty).rglob("*") if path.is_file()]
                made[key] = {path.relative_to(empty): path.read_bytes() for path in files}, answer
        contents, answer = made[key]
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return None if answer is None else answer.copy()

    return copy


def he_image(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Smooth and pink, so that it looks alike at every resolution."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(150, 250, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def shrunk(pixels: np.ndarray, scale: float) -> np.ndarray:
    height, width = (round(side * scale) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def hex_spots() -> pd.DataFrame:
    """All spots of a small array, some outside the tissue, as tissue_positions.csv lists them."""
    rows, halves = np.mgrid[0:10, 0:9]
    columns = 2 * halves + rows % 2
    frame = pd.DataFrame({"array_row": rows.ravel(), "array_col": columns.ravel()})
    frame["pxl_row_in_fullres"] = (60 + frame["array_row"] * PITCH * 3**0.5 / 2).round().astype(int)
    frame["pxl_col_in_fullres"] = (60 + frame["array_col"] * PITCH / 2).round().astype(int)
    frame.insert(0, "in_tissue", (frame["array_col"] > 1).astype(int))
    frame.index = pd.Index([f"{i:04d}ACGT-1" for i in range(len(frame))], name="barcode")
    return frame


def counts_of(n_spots: int, n_genes: int = len(GENES), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3.0, (n_spots, n_genes)).astype(np.int32)


def write_10x(path: Path, barcodes, counts, genes=GENES) -> None:
    """A matrix as Space Ranger 2 writes it."""
    matrix = csc_matrix(np.asarray(counts).T)
    with h5py.File(path, "w") as file:
        file.attrs["software_version"] = "spaceranger-2.0.0"
        file.attrs["library_ids"] = np.array([b"library"])
        group = file.create_group("matrix")
        group["barcodes"] = np.array(list(barcodes), dtype="S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:05d}" for i in range(len(genes))], dtype="S")
        features["name"] = np.array(list(genes), dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(genes), dtype="S")


def write_downscaled(spatial: Path, pixels: np.ndarray, scales=(0.25, 0.125)) -> dict[str, float]:
    spatial.mkdir(parents=True, exist_ok=True)
    for kind, scale in zip(("hires", "lowres"), scales, strict=True):
        Image.fromarray(shrunk(pixels, scale)).save(spatial / f"tissue_{kind}_image.png")
    return {"tissue_hires_scalef": scales[0], "tissue_lowres_scalef": scales[1]}


@written_once
def write_visium(outs: Path, version: int = 2, prefix: str = "", cytassist: bool = False, spots=None, counts=None):
    """An output folder of Visium; returns the positions of the spots under tissue."""
    spots = hex_spots() if spots is None else spots
    under = spots[spots["in_tissue"] == 1]
    outs.mkdir(parents=True, exist_ok=True)
    write_10x(
        outs / f"{prefix}filtered_feature_bc_matrix.h5",
        under.index,
        counts_of(len(under)) if counts is None else counts,
    )
    factors = write_downscaled(outs / "spatial", he_image())
    factors |= {"spot_diameter_fullres": DIAMETER, "fiducial_diameter_fullres": 1.6 * DIAMETER}
    (outs / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    if version == 1:
        spots.to_csv(outs / "spatial/tissue_positions_list.csv", header=False)
    else:
        spots.to_csv(outs / "spatial/tissue_positions.csv")
    if cytassist:
        tifffile.imwrite(outs / "spatial/cytassist_image.tiff", he_image(300, seed=1), photometric="rgb")
        Image.fromarray(shrunk(he_image(), 0.25)).save(outs / "spatial/aligned_tissue_image.jpg")
    return under


@written_once
def write_visium_hd(outs: Path, bins=(8, 16), um_per_px: float = 2.0, prefix: str = "") -> None:
    """An output folder of Visium HD, as far as spatialdata-io looks at it."""
    scales = write_downscaled(outs / "spatial", he_image())
    with h5py.File(outs / f"{prefix}feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps({"file_format": "1.0"})})
    for side in bins:
        folder = outs / f"binned_outputs/square_{side:03d}um"
        write_downscaled(folder / "spatial", he_image())
        side_px = side / um_per_px
        n = int((SIDE - 80) / side_px / 4)
        rows, columns = (axis.ravel() for axis in np.mgrid[0:n, 0:n])
        barcodes = [f"s_{side:03d}um_{row:05d}_{column:05d}-1" for row, column in zip(rows, columns, strict=True)]
        frame = pd.DataFrame(
            {
                "barcode": barcodes,
                "in_tissue": 1,
                "array_row": rows,
                "array_col": columns,
                "pxl_row_in_fullres": 40 + (rows + 0.5) * side_px,
                "pxl_col_in_fullres": 40 + (columns + 0.5) * side_px,
            }
        )
        frame.to_parquet(folder / "spatial/tissue_positions.parquet")
        factors = {"bin_size_um": float(side), "microns_per_pixel": um_per_px, "spot_diameter_fullres": side_px}
        (folder / "spatial/scalefactors_json.json").write_text(json.dumps({**scales, **factors}))
        write_10x(folder / "filtered_feature_bc_matrix.h5", barcodes, counts_of(len(barcodes)))
    (outs / "spatial/scalefactors_json.json").write_text(json.dumps({**scales, "microns_per_pixel": um_per_px}))


@written_once
def write_legacy(folder: Path, section: str = "A1") -> pd.DataFrame:
    """A section of legacy ST under the names of her2st; returns its spots."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = (axis.ravel() for axis in np.mgrid[3:10, 5:11])
    frame = pd.DataFrame(
        {"x": columns, "y": rows, "pixel_x": 50.0 + (columns - 5) * 60, "pixel_y": 40.0 + (rows - 3) * 60}
    )
    frame["selected"] = 1
    frame.to_csv(folder / f"{section}_selection.tsv", sep="\t", index=False)
    counts = pd.DataFrame(
        counts_of(len(frame)), columns=GENES, index=[f"{x}x{y}" for x, y in zip(columns, rows, strict=True)]
    )
    counts.to_csv(folder / f"{section}.tsv.gz", sep="\t")
    Image.fromarray(he_image()).save(folder / f"{section}.jpg", quality=95)
    return frame
