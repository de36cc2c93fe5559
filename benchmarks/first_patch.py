"""Start of a prediction: from a fresh process to the first patch that is encoded, and the memory that it holds.

    python benchmarks/first_patch.py
    python benchmarks/first_patch.py --base ../earlier --rounds 5 --docs docs/results/speed

A small model is trained once. Then fresh processes load it and encode the first patches of a slide, in turn by
``STGCHB.load`` (of another checkout too, with --base) and by ``st_gchb.load_predictor``. Each process says when its
first batch of patches was encoded, and what it held in memory after loading; the system says what CPU time it took.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from tables import write_table

N_SPOTS = 9
"""Positions on the slide: few, so that all their patches are one batch."""

WAYS = {
    "STGCHB.load": "from st_gchb.model import STGCHB; model = STGCHB.load(folder, accelerator='cpu')",
    "load_predictor": "import st_gchb; model = st_gchb.load_predictor(folder, device='cpu')",
}

PROCESS = """
import os, sys, time
folder, slide, cache = sys.argv[1:]
{load}
held = next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]
import st_gchb
from st_gchb.pp.encoders import EncoderRunner
st_gchb.settings.cache_dir = cache
encode = EncoderRunner.run_all

def first(batches, take):
    def taken(*found):
        # After the first batch: what comes later is no part of the start.
        print("first", held, time.process_time(), flush=True)
        os._exit(0)
    encode(batches, taken)

EncoderRunner.run_all = staticmethod(first)
query = st_gchb.pp.tile_tissue(slide, um_per_px=1.0, spacing_um=100)
model.predict(query[:{n_spots}].copy())
"""

Start = dict[str, float]
"""Seconds and MiB of one process: ``wall_s``, ``cpu_s``, ``mib``."""


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="another checkout, whose STGCHB.load is measured in turn, too")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not (default: 5)")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="first_patch_") as folder:
        found = measure(Path(folder), arguments.base, arguments.rounds)
    text = table(found)
    print(text)
    if arguments.docs:
        write_table(arguments.docs, "first_patch", text)


def measure(folder: Path, base: Path | None, rounds: int) -> dict[str, list[Start]]:
    """Start processes in turn, each in every round; the first round fills the system's memory of files."""
    prepare(folder)
    ways = {name: (name, None) for name in WAYS}
    if base is not None:
        ways = {"STGCHB.load, before": ("STGCHB.load", base)} | ways
    found: dict[str, list[Start]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (way, source) in ways.items():
            start = started(folder, way, source)
            if number:
                found[name].append(start)
    return found


def prepare(folder: Path) -> None:
    """Train a small model on features of a MobileNetV2 with random weights, and write a slide."""
    import numpy as np
    from PIL import Image

    import st_gchb
    from st_gchb.model import STGCHB

    sections = st_gchb.datasets.synthetic_tissue(2, n_rows=12, n_cols=12, n_genes=60)
    # Before the features are named: what a process is given is a slide without them.
    image = sections.uns["spatial"]["S1"]["images"]["hires"]
    Image.fromarray(np.asarray(image)).save(folder / "slide.png")
    made = {"encoder": ("mobilenet_v2", "texture"), "weights": (None, "default"), "patch_um": 150, "n_views": 1}
    st_gchb.pp.embed_patches(sections, **made, cache=False)
    STGCHB.setup_anndata(sections, slice_key="slice")
    model = STGCHB(sections, n_top_genes=50)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    model.save(folder / "model")


def started(folder: Path, way: str, source: Path | None) -> Start:
    """Run a fresh process to its first patch."""
    code = PROCESS.format(load=WAYS[way], n_spots=N_SPOTS)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if source is not None:
        environment["PYTHONPATH"] = str(source / "src")
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        command = [sys.executable, "-W", "ignore", "-c", code, str(folder / "model"), str(folder / "slide.png"), cache]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - begin
    said = [line.split() for line in ran.stdout.splitlines() if line.startswith("first ")]
    if not said:
        raise RuntimeError(f"No patch was encoded by {way}: {ran.stderr[-2000:]}")
    _, held, seconds = said[0]
    return {"wall_s": wall, "cpu_s": float(seconds), "mib": int(held) / 1024}


def table(found: Mapping[str, Sequence[Start]]) -> str:
    """Format medians, and the medians of the ratios to the first row, round by round."""
    import torch

    base = next(iter(found.values()))
    lines = [
        "| to the first patch, by | s | CPU s | of the first row | MiB after loading | of the first row |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, starts in found.items():
        values = {key: median(start[key] for start in starts) for key in starts[0]}
        part = {key: median(a[key] / b[key] for a, b in zip(starts, base, strict=True)) for key in values}
        lines.append(
            f"| {name} | {values['wall_s']:.1f} | {values['cpu_s']:.1f} | {part['cpu_s']:.2f} | "
            f"{values['mib']:,.0f} | {part['mib']:.2f} |"
        )
    where = f"{platform.machine()}, {os.cpu_count()} cores, one thread; Python {platform.python_version()}"
    return "\n".join([*lines, "", f"Medians of {len(base)} rounds. {where}, torch {torch.__version__}."]) + "\n"


if __name__ == "__main__":
    main()
