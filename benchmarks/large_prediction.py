"""Memory of a prediction for many positions: returned as a whole, and written to a file as it is made.

    python benchmarks/large_prediction.py --positions 40000 50625 --docs docs/results/speed
    python benchmarks/large_prediction.py --base ../earlier

A small model is trained once. Each prediction runs in a fresh process, for positions on a square grid whose patch
features are given, drawn around those of the reference: patches are measured by large_slide.py. Peaks are those of the
resident memory beyond the imports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tables import write_table

WAYS = {"returned": "", "written": ", out=folder / 'prediction.h5ad'"}

PROCESS = """
import json, sys, time
from pathlib import Path
import anndata, numpy as np, pandas as pd, st_gchb, torch

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6

torch.set_num_threads(1)
imports = status("VmRSS")
folder, side = Path(sys.argv[1]), int(sys.argv[2])
predictor = st_gchb.load_predictor(folder / "model", device="cpu")
reference = anndata.read_h5ad(folder / "reference.h5ad")
n, rng = side * side, np.random.default_rng(0)
drawn = reference.obsm["X_patch"][rng.integers(0, reference.n_obs, n)]
features = drawn + rng.normal(scale=0.05, size=(n, 1)).astype(np.float32)
steps = np.arange(side) * 200.0
obs = pd.DataFrame({{"slice": pd.Categorical(["slide"] * n)}}, index=[f"t{{i}}" for i in range(n)])
places = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
query = anndata.AnnData(obs=obs, obsm={{"spatial": places, "X_patch": features}})
made = {{"slices": np.array(["slide"]), "um_per_px": np.array([0.5])}}
query.uns["X_patch"] = dict(reference.uns["X_patch"]) | made
Path("/proc/self/clear_refs").write_text("5")
start = time.process_time()
result = predictor.predict(query, slice_key="slice"{arguments})
cpu = time.process_time() - start
print(json.dumps({{"imports": imports, "peak": status("VmHWM") - imports, "cpu_s": cpu, "source": st_gchb.__file__}}))
"""


def prepare(folder: Path, n_genes: int) -> None:
    """Train the model on synthetic slices, and keep both."""
    import st_gchb
    from st_gchb.model import STGCHB

    reference = st_gchb.datasets.synthetic_tissue(2, n_rows=16, n_cols=16, n_genes=n_genes)
    st_gchb.pp.embed_patches(reference, encoder="texture", patch_um=150, n_views=1, cache=False)
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=n_genes)
    model.train(max_epochs=5, enable_progress_bar=False, accelerator="cpu")
    model.save(folder / "model")
    reference.write_h5ad(folder / "reference.h5ad")


def predicted(folder: Path, side: int, way: str, source: Path) -> dict[str, Any]:
    """Predict in a fresh process, by the package of a checkout, and return what was measured."""
    code = PROCESS.format(arguments=WAYS[way])
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), str(side)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"error: the prediction failed: {ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    if Path(found["source"]).parents[2].resolve() != source.resolve():
        raise SystemExit(f"error: {found['source']} was imported, not the package below {source}")
    return found


def line_of(name: str, positions: int, found: dict[str, Any]) -> str:
    """Format a row: MB of imports, peak beyond them, the sum in GiB, and CPU seconds."""
    whole = (found["imports"] + found["peak"]) * 1e6 / 2**30
    return (
        f"| {name} | {positions:,} | {found['imports']:,.0f} | {found['peak']:,.0f} | {whole:.2f} | "
        f"{found['cpu_s']:.0f} |"
    )


def main() -> None:
    """Measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, nargs="+", default=[40_000], help="rounded to squares")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--base", type=Path, help="checkout of an earlier version, for rows before")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    here = Path(__file__).parents[1]
    lines = [
        "| result | positions | imports, MB | peak beyond, MB | in all, GiB | CPU s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.genes)
        for positions in given.positions:
            side = math.isqrt(positions)
            if given.base:
                lines.append(line_of("returned, before", side**2, predicted(folder, side, "returned", given.base)))
            lines += [line_of(way, side**2, predicted(folder, side, way, here)) for way in WAYS]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread; Python {platform.python_version()}"
    text = "\n".join([*lines, "", f"{given.genes:,} genes. {machine}."]) + "\n"
    print(f"{text}\n{time.perf_counter() - begin:.0f} s")
    if given.docs:
        write_table(given.docs, "large_prediction", text)


if __name__ == "__main__":
    main()
