"""What folding, half precision and compilation are worth: time per patch, what changes in features and scores.

    python -m studies.encoding --data ../shared/data/her2st \
        --weights ../shared/weights/mobilenet_v2_imagenet.safetensors --out docs/results/speed/encoding.md

Ways are timed in turn, so that other work on the machine meets all of them; medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision

import st_gchb
from st_gchb.evaluate import METHODS, evaluate
from st_gchb.pp import Encoder, embed_patches, get_encoder
from st_gchb.pp.encoders import EncoderRunner, EncodingOptions

N_PATCHES = 64
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, compiled": {"compiled": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compiled": True},
}


def plain(encoder: Encoder, patches: np.ndarray) -> Callable[[], None]:
    """The image encoder as its library gives it, on patches that are standardized already."""
    values = encoder._prepare(torch.from_numpy(patches).permute(0, 3, 1, 2)).contiguous()
    module = encoder.module.to(memory_format=torch.contiguous_format)

    def run() -> None:
        with torch.inference_mode():
            for part in values.split(8):
                module(part)

    return run


def milliseconds(encoder: Encoder, n_rounds: int) -> dict[str, float]:
    """Median time of a patch by each way, ms."""
    patches = np.random.default_rng(0).integers(0, 256, (N_PATCHES, *2 * (encoder.input_px,), 3), dtype=np.uint8)
    calls = {"as torchvision gives it": plain(get_encoder(encoder.name, None), patches)}
    for name, options in WAYS.items():
        runner = EncoderRunner(encoder, 1, EncodingOptions(N_PATCHES, torch.device("cpu"), 1000.0, **options))
        calls[name] = partial(runner.run, [(0, patches, [])], lambda *_: None)
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n_rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start) / N_PATCHES)
    return {name: statistics.median(found) for name, found in times.items()}


def scores(data: Path, weights: Path) -> tuple[pd.DataFrame, float]:
    """Scores with features of each precision, and how far half precision is from float32, as a share of its norm."""
    rows, features = {}, {}
    for precision in ("float32", "bfloat16"):
        reference = st_gchb.datasets.her2st(path=data)
        embed_patches(
            reference,
            encoder="mobilenet_v2",
            weights=weights,
            patch_um=150,
            precision=precision,
            device="cpu",
            cache=False,
        )
        features[precision] = reference.obsm["X_patch"]
        found = evaluate(reference, methods={"default": METHODS["default"]}, n_top_genes=1000, seeds=(0, 1, 2))
        rows[precision] = found.table().loc["default"].unstack()["mean"][["AG", "HVG", "HEG"]]
    exact = features["float32"]
    return pd.DataFrame(rows).T, float(np.linalg.norm(features["bfloat16"] - exact) / np.linalg.norm(exact))


def page(times: dict[str, dict[str, float]], scored: pd.DataFrame, error: float, threads: int) -> str:
    """The tables as Markdown."""
    names = list(times)
    lines = ["| " + " | ".join(["encoder computes in", *(f"{name}, times as fast" for name in names)]) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    base = {name: times[name]["as torchvision gives it"] for name in names}
    for way in times[names[0]]:
        cells = [f"{base[name] / times[name][way]:.2f}" for name in names]
        lines.append("| " + " | ".join([way, *cells]) + " |")
    lines += ["", "| features of MobileNetV2 in | AG | HVG | HEG |", "| --- | --- | --- | --- |"]
    for precision, row in scored.iterrows():
        lines.append(f"| {precision} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    lines += [
        "",
        f"Features in bfloat16 differ from those in float32 by {error:.1%} of their norm (MobileNetV2, her2st, mean of "
        f"4 views). {platform.machine()}, {os.cpu_count()} cores, {threads} thread(s) for the times; Python "
        f"{platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}; seeds 0 to 2.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the her2st sections C2 to C5")
    parser.add_argument("--weights", type=Path, required=True, help="weights of MobileNetV2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    times = {}
    for name, weights in (("mobilenet_v2", given.weights), ("resnet50", None)):
        times[name] = milliseconds(get_encoder(name, weights), given.rounds)
        print(name, {way: round(value, 2) for way, value in times[name].items()}, flush=True)
    text = page(times, *scores(given.data, given.weights), given.threads)
    given.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
