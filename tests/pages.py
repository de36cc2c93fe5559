"""Pages of predictions for tests: a prediction on a drawn slide, and what a page holds, read as a browser reads it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image

GENES = ["ERBB2", "COL1A1", "CD74", "<script>alert(1)</script>", "../up/HLA-A&\"'", "NKX2–1 µ"]
TILE, OVERLAP = 254, 1


def slide_pixels(height: int = 600, width: int = 800) -> np.ndarray:
    """Red rises to the right and green downwards, so that each place has a color of its own, which JPEG keeps."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (255 * x / 800, 255 * y / 800, np.full(x.shape, 120.0))
    return np.stack(channels, axis=2).astype(np.uint8)


def prediction(n_side: int = 6, um_per_px: float | None = 0.5) -> AnnData:
    """A result as ``model.predict`` gives it: spots 80 px apart, the names of some genes with a bite."""
    n = n_side**2
    x, y = (grid.ravel() * 80.0 + 120.0 for grid in np.meshgrid(np.arange(n_side), np.arange(n_side)))
    values = np.random.default_rng(1).random((n, len(GENES)), dtype=np.float32) * 3
    obs = pd.DataFrame(index=[f"spot<{i}>" for i in range(n)])
    obs["st_gchb_confidence"] = np.linspace(0, 1, n)
    obs["st_gchb_outlier"] = np.arange(n) % 7 == 0
    var = pd.DataFrame({"st_gchb_expected_pcc": [0.4, 0.7, np.nan, 0.1, -0.2, 0.5]}, index=GENES)
    pred = AnnData(values * 0, obs=obs, var=var, obsm={"spatial": np.column_stack([x, y])})
    pred.layers["st_gchb"] = values
    factors = {"tissue_fullres_scalef": 1.0, "spot_diameter_fullres": 50.0}
    if um_per_px is not None:
        factors["microns_per_pixel"] = um_per_px
    pred.uns["spatial"] = {"S1": {"images": {"fullres": slide_pixels()}, "scalefactors": factors, "metadata": {}}}
    stain = {"distance": [1.0], "limit": [2.0], "n_spots": [n], "in_range": [True], "verdict": ["looks <well>"]}
    pred.uns["st_gchb"] = {
        "version": "0.1.0",
        "model_id": "abc123",
        "preset": "default",
        "encoder": np.array(["resnet50", "texture"]),
        "weights": np.array(["/home/me/weights/resnet50.safetensors", "default"]),
        "weights_sha256": np.array(["0123456789abcdef0123456789abcdef", ""]),
        "reference_slices": np.array([f"R{i}" for i in range(20)]),
        "stain": pd.DataFrame(stain, index=["S1"]),
    }
    return pred


def record_of(folder: Path) -> dict[str, Any]:
    """What the page opens with."""
    text = (folder / "data" / "report.js").read_text(encoding="ascii")
    assert text.startswith("stGchb.open({")
    assert "<" not in text
    return json.loads(text.removeprefix("stGchb.open(").removesuffix(");\n"))


def numbers_in(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def values_of(folder: Path, number: int) -> np.ndarray:
    """Values of a gene, from its script."""
    text = (folder / "data" / "genes" / f"{number}.js").read_text(encoding="ascii")
    start, end = f'stGchb.gene({number},"', '");\n'
    assert text.startswith(start)
    assert text.endswith(end)
    return numbers_in(text.removeprefix(start).removesuffix(end))


def put_together(folder: Path, level: int, height: int, width: int) -> np.ndarray:
    """One scale of the slide, put together of its tiles; each has the size that Deep Zoom asks for."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    expected = set()
    for row in range(-(-height // TILE)):
        for column in range(-(-width // TILE)):
            expected.add(f"{column}_{row}.jpeg")
            tile = np.asarray(Image.open(folder / "slide_files" / str(level) / f"{column}_{row}.jpeg"))
            top, left = max(row * TILE - OVERLAP, 0), max(column * TILE - OVERLAP, 0)
            bottom, right = min((row + 1) * TILE + OVERLAP, height), min((column + 1) * TILE + OVERLAP, width)
            assert tile.shape == (bottom - top, right - left, 3)
            pixels[top:bottom, left:right] = tile
    assert {file.name for file in (folder / "slide_files" / str(level)).iterdir()} == expected
    return pixels
