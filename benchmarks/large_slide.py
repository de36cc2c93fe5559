"""Prediction of a whole slide of 40,000 x 40,000 px, from the file: memory, throughput and decoded chunks.

    python benchmarks/large_slide.py --out large_slide.json
    python benchmarks/large_slide.py --encoder mobilenet_v2 --weights mobilenet_v2_imagenet.safetensors

The slide is generated first (a pyramid of JPEG tiles, about 220 MB) and kept in --folder, and a small model is trained
on synthetic slices. Each step runs in a separate process, so that the figures are those of the prediction alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from slides import GLASS, PERIOD, TILE, texture

UM_PER_PX = 0.5
LEVELS = 6
STAGES = ("load", "tissue", "patches", "predict")
"""Stages of a prediction, from the model's folder to the result's file."""
BLOBS = [(0.30, 0.36, 0.22, 0.30), (0.62, 0.58, 0.26, 0.24), (0.35, 0.76, 0.16, 0.14)]
"""Ellipses of tissue: center (x, y) and semi-axes, as fractions of the side of the slide."""


def tiles(size: int, factor: int, tissue: np.ndarray) -> Iterator[np.ndarray]:
    """Generate the tiles of a level row by row, one at a time."""
    period = len(tissue)
    side = -(-size // factor)
    for top in range(0, side, TILE):
        for left in range(0, side, TILE):
            y, x = np.arange(top, top + TILE), np.arange(left, left + TILE)
            inside = np.zeros((TILE, TILE), dtype=bool)
            for cx, cy, rx, ry in BLOBS:
                inside |= ((x[None] / side - cx) / rx) ** 2 + ((y[:, None] / side - cy) / ry) ** 2 < 1
            yield np.where(inside[..., None], tissue[np.ix_(y % period, x % period)], GLASS)


def make_slide(path: Path, size: int, levels: int = LEVELS) -> None:
    """Write a synthetic slide as a pyramid, tile by tile."""
    import tifffile

    tissue = texture()
    part = path.with_suffix(".part")
    with tifffile.TiffWriter(part, bigtiff=True) as writer:
        for level in range(levels):
            factor = 2**level
            small = tissue.reshape(PERIOD // factor, factor, PERIOD // factor, factor, 3).mean((1, 3)).astype(np.uint8)
            side = -(-size // factor)
            per_cm = 1e4 / (UM_PER_PX * factor)
            writer.write(
                tiles(size, factor, small),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                subifds=levels - 1 if level == 0 and levels > 1 else None,
                subfiletype=1 if level else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    part.rename(path)


class Counted:
    """A level that counts how often each of its chunks is decoded."""

    def __init__(self, level: Any, edges: tuple[np.ndarray, np.ndarray]) -> None:
        self._level, self._edges = level, edges
        self.times = np.zeros([len(axis) - 1 for axis in edges], dtype=np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._level, name)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        touched = [
            (edges[:-1] < part.stop) & (edges[1:] > part.start) for edges, part in zip(self._edges, window, strict=True)
        ]
        self.times[np.ix_(*touched)] += 1
        return self._level[window]


def status(key: str) -> float:
    """Read an entry of ``/proc/self/status`` of this process, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


@contextmanager
def stage(name: str, figures: dict[str, Any]) -> Iterator[None]:
    """Measure the time of a stage and its peak resident memory beyond that after the imports."""
    # Resets Linux's record of the peak (VmHWM) to the current resident memory.
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    yield
    figures[name] = {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_mb": round(status("VmHWM") - figures["imports_mb"]),
    }
    print(
        f"{name:8s} {figures[name]['seconds']:8.1f} s {figures[name]['peak_mb']:6.0f} MB beyond the imports", flush=True
    )


def train(arguments: argparse.Namespace) -> None:
    """Train a small model on synthetic slices and save it."""
    import st_gchb
    from st_gchb.model import STGCHB

    reference = st_gchb.datasets.synthetic_tissue(2, n_rows=16, n_cols=16, n_genes=arguments.genes)
    weights = arguments.weights or "default"
    options = {"encoder": arguments.encoder, "weights": weights, "patch_um": 150, "n_views": arguments.n_views}
    st_gchb.pp.embed_patches(reference, **options)
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=arguments.genes)
    model.train(max_epochs=5, enable_progress_bar=False, accelerator="cpu")
    model.save(arguments.folder / "model", overwrite=True)


def predict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the stages of a prediction (tissue, positions, patches, prediction) and collect their figures."""
    from dataclasses import fields

    import torch
    import torchvision

    import st_gchb
    from st_gchb.io import open_image
    from st_gchb.pp import Encoder, embed_patches, get_encoder, read_patches, slices_of, tile_tissue

    in_encoder = [0.0]

    class Timed(Encoder):
        def __call__(self, patches: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            found = super().__call__(patches)
            in_encoder[0] += time.perf_counter() - start
            return found

    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {"imports_mb": round(status("VmRSS"))}
    slide = open_image(arguments.slide)
    levels = [Counted(level, slide.chunks(i)) for i, level in enumerate(slide.levels)]
    slide.levels = levels
    with stage("load", figures):
        predictor = st_gchb.load_predictor(arguments.folder / "model", device="cpu")
        rule = predictor.parts.rules.features.first
        plain = get_encoder(rule.encoder, None if rule.weights == "none" else rule.weights)
        encoder = Timed(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    with stage("tissue", figures):
        query = tile_tissue(slide, spacing_um=arguments.spacing, name="slide")
    for level in levels:
        level.times[:] = 0
    options = {"patch_um": rule.patch_um, "n_views": rule.n_views, "image": slide, "memory_mb": arguments.memory_mb}
    with stage("patches", figures):
        embed_patches(query, encoder=encoder, device="cpu", cache=arguments.cache, **options)
    decoded = max((level.times.copy() for level in levels), key=np.sum)
    with stage("reading", figures):
        # Reading once more without an encoder: the time that would be added if reading and encoding did not overlap.
        (only,) = slices_of(query, image=slide)
        for _ in read_patches(only, rule.patch_um / only.um_per_px, encoder.input_px, memory_mb=arguments.memory_mb):
            pass
    with stage("predict", figures):
        result = predictor.predict(query, out=arguments.folder / "prediction.h5ad")
    with stage("in_memory", figures):
        predictor.predict(query)
    slowest = figures["patches"]["seconds"]
    total = sum(figures[name]["seconds"] for name in STAGES)
    return figures | {
        "slide_px": list(slide.shape_px),
        "levels": len(levels),
        "positions": query.n_obs,
        "excluded": len(result.uns["st_gchb"].get("excluded", [])),
        "genes": result.n_vars,
        "encoder": rule.encoder,
        "n_views": rule.n_views,
        "memory_mb": arguments.memory_mb,
        "peak_mb": max(figures[name]["peak_mb"] for name in STAGES),
        "whole_peak_mb": max(figures[name]["peak_mb"] for name in STAGES) + figures["imports_mb"],
        "patches_per_s": round(query.n_obs / slowest, 1),
        "outside_encoder_patches": round(1 - in_encoder[0] / slowest, 4),
        "outside_encoder_all": round(1 - in_encoder[0] / total, 4),
        "decoded_per_chunk": round(float(decoded[decoded > 0].mean()), 4),
        "chunks_decoded": int((decoded > 0).sum()),
        "chunks": int(decoded.size),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"torchvision": torchvision.__version__, "st_gchb": st_gchb.__version__},
    }


def main() -> None:
    """Generate the slide and the model if they do not exist, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=40_000, help="side of the slide, px (default: 40000)")
    parser.add_argument("--levels", type=int, default=LEVELS, help="levels of the pyramid (default: 6)")
    parser.add_argument("--spacing", type=float, default=100.0, help="distance of positions, µm (default: 100)")
    parser.add_argument("--encoder", default="texture")
    parser.add_argument("--weights", help="weights file of the encoder")
    parser.add_argument("--views", dest="n_views", type=int, default=1, help="rotations of a patch (default: 1)")
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--memory-mb", type=float, default=512.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", action="store_true", help="hash the slide and keep its features")
    parser.add_argument("--folder", type=Path, default=Path("large_slide"), help="for the slide and the model")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--stage", choices=("make", "train", "predict"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.slide = arguments.folder / f"slide_{arguments.size}_{arguments.levels}.tif"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage is None:
        for name in ("make", "train", "predict"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--stage", name], check=True)
    elif arguments.stage == "make" and not arguments.slide.exists():
        make_slide(arguments.slide, arguments.size, arguments.levels)
    elif arguments.stage == "train":
        train(arguments)
    elif arguments.stage == "predict":
        text = json.dumps(predict(arguments), indent=2)
        print(text)
        if arguments.out:
            arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
