"""Folders as HEST publishes them, of simulated tissue: samples of HEST-1k, and tasks of HEST-Bench."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
from anndata import AnnData
from PIL import Image

PATCH_UM, PATCH_PX = 112.0, 224


def um_per_px_of(tissue: AnnData, name: str) -> float:
    return float(tissue.uns["spatial"][name]["scalefactors"]["microns_per_pixel"])


def image_of(tissue: AnnData, name: str) -> np.ndarray:
    return np.asarray(tissue.uns["spatial"][name]["images"]["hires"])


def table_of(tissue: AnnData, name: str) -> AnnData:
    """A sample's AnnData: the library is called ST whatever the technology, and in_tissue tells nothing."""
    rows = tissue[tissue.obs["slice"] == name]
    image, um = image_of(tissue, name), um_per_px_of(tissue, name)
    scale = min(1.0, 200 / max(image.shape[:2]))
    sides = [round(side * scale) for side in image.shape[1::-1]]
    small = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BOX))
    obs = pd.DataFrame({"in_tissue": np.arange(rows.n_obs) % 2}, index=[f"{i:016d}-1" for i in range(rows.n_obs)])
    table = AnnData(rows.X.copy(), obs=obs, var=pd.DataFrame(index=rows.var_names))
    table.obsm["spatial"] = np.asarray(rows.obsm["spatial"], dtype=np.float64)
    factors = {"tissue_downscaled_fullres_scalef": scale, "spot_diameter_fullres": 55.0 / um}
    table.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": small}, "scalefactors": factors}}
    return table


def write_patches(path: Path, table: AnnData, image: np.ndarray, um: float, rows: np.ndarray) -> None:
    """Patches of some spots in their order, mirrored where they leave the image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = round(PATCH_UM / um)
    corners = (table.obsm["spatial"][rows] - source // 2).astype(np.int64)
    padded = np.pad(image, ((source, source), (source, source), (0, 0)), mode="reflect")
    patches = [padded[y + source : y + 2 * source, x + source : x + 2 * source] for x, y in corners]
    resized = [np.asarray(Image.fromarray(p).resize((PATCH_PX, PATCH_PX), Image.Resampling.BICUBIC)) for p in patches]
    with h5py.File(path, "w") as file:
        file["img"] = np.stack(resized)
        file["coords"] = corners
        file["barcode"] = np.array(table.obs_names[rows], dtype="S")[:, None]
        said = {"patch_size_src": source, "patch_size_target": PATCH_PX, "downsample": 0.5 / um, "pixel_size": um}
        file["img"].attrs.update(said)


def write_slide(path: Path, image: np.ndarray, um: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dots = 1e4 / um
    tifffile.imwrite(path, image, photometric="rgb", tile=(256, 256), resolution=(dots, dots), resolutionunit=3)


def write_sample(folder: Path, tissue: AnnData, name: str, sample: str, **metadata) -> None:
    """All parts of one sample of HEST-1k: the slice ``name`` of ``tissue``, as ``sample``."""
    table, image, um = table_of(tissue, name), image_of(tissue, name), um_per_px_of(tissue, name)
    (folder / "st").mkdir(parents=True, exist_ok=True)
    table.write_h5ad(folder / f"st/{sample}.h5ad")
    write_slide(folder / f"wsis/{sample}.tif", image, um)
    write_patches(folder / f"patches/{sample}.h5", table, image, um, np.arange(0, table.n_obs - 2))
    said = {
        "id": sample,
        "species": "Homo sapiens",
        "organ": "Breast",
        "patient": "Patient 1",
        "st_technology": "Visium",
        "disease_state": "Cancer",
        "treatment_comment": None,
        "subseries": "",
        "pixel_size_um_embedded": 31.75,
        "pixel_size_um_estimated": um,
        "fullres_px_height": image.shape[0],
        "fullres_px_width": image.shape[1],
        "spot_diameter": float("nan"),
    }
    (folder / "metadata").mkdir(exist_ok=True)
    (folder / f"metadata/{sample}.json").write_text(json.dumps(said | metadata))


def write_bench_task(folder: Path, tissue: AnnData, folds: list[tuple[list[str], list[str]]], genes: list[str]) -> None:
    """A task of HEST-Bench, with the slices of ``tissue`` as samples."""
    (folder / "adata").mkdir(parents=True)
    (folder / "splits").mkdir()
    for name in dict.fromkeys(tissue.obs["slice"]):
        table = table_of(tissue, name)
        table.write_h5ad(folder / f"adata/{name}.h5ad")
        # Patches are fewer than spots, and in another order.
        rows = np.random.default_rng(0).permutation(table.n_obs)[2:]
        write_patches(folder / f"patches/{name}.h5", table, image_of(tissue, name), um_per_px_of(tissue, name), rows)
    for number, sides in enumerate(folds):
        for side, names in zip(("train", "test"), sides, strict=True):
            rows = [(name, f"patches/{name}.h5", f"adata/{name}.h5ad") for name in names]
            frame = pd.DataFrame(rows, columns=["sample_id", "patches_path", "expr_path"])
            frame.to_csv(folder / f"splits/{side}_{number}.csv", index=False)
    (folder / "var_50genes.json").write_text(json.dumps({"genes": genes}))
