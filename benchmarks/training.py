"""What training costs: graph, fit and epoch by the number of spots, peak memory, and the published schedule.

    python benchmarks/training.py growth --scales 1 4 16 64     # CPU seconds, growth exponents
    python benchmarks/training.py memory --spots 1000000        # features on disk; peak memory, seconds an epoch
    python benchmarks/training.py published                     # a slice encoded again for every 16 spots, and ours

Each prints a table and, with --out FILE, writes JSON. Only ratios and exponents hold on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch import Callback
from scipy import sparse

DLPFC_SPOTS = 3600
"""Spots of a slice of the DLPFC data, about; the array's pitch is 100 µm."""

N_GENES, N_EXPRESSED = 400, 60
N_FEATURES = 2048


# ---- Synthetic slides ----


def slide(n_spots: int, folder: Path, n_slices: int = 1, seed: int = 0) -> AnnData:
    """Slides of a hexagonal array, with features of 2,048 numbers (float16) in a file and counts of 400 genes."""
    rng = np.random.default_rng(seed)
    each = -(-n_spots // n_slices)
    columns = math.ceil(math.sqrt(each))
    place = np.arange(n_spots) % each
    row, column = place // columns, place % columns
    xy = np.column_stack([column * 100.0 + row % 2 * 50.0, row * 86.6])
    features = np.memmap(folder / "features.bin", dtype=np.float16, mode="w+", shape=(n_spots, N_FEATURES))
    base = rng.standard_normal((16, N_FEATURES), dtype=np.float32)
    for start in range(0, n_spots, 4096):
        part = features[start : start + 4096]
        waves = np.sin(xy[start : start + 4096, :1] / np.arange(300, 4600, 270.0)).astype(np.float32)
        part[:] = waves @ base + rng.standard_normal(part.shape, dtype=np.float32)
    features.flush()
    indices = rng.integers(0, N_GENES, (n_spots, N_EXPRESSED), dtype=np.int32)
    counts = rng.integers(1, 5, (n_spots, N_EXPRESSED)).astype(np.float32)
    x = sparse.csr_matrix((counts.ravel(), indices.ravel(), np.arange(n_spots + 1) * N_EXPRESSED), (n_spots, N_GENES))
    x.sum_duplicates()
    adata = AnnData(x, obs=pd.DataFrame({"slice": (np.arange(n_spots) // each).astype(str)}, dtype="category"))
    adata.obs_names = [f"s{i}" for i in range(n_spots)]
    adata.obsm["spatial"] = xy
    adata.obsm["X_patch"] = np.memmap(folder / "features.bin", dtype=np.float16, mode="r", shape=features.shape)
    return adata


# ---- Measuring ----


class Memory:
    """Peak of this process's own memory, sampled; pages of mapped files, which the system drops at need, apart."""

    def __enter__(self) -> Memory:
        self.own = self.all = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}
            self.own, self.all = max(self.own, kib["RssAnon"]), max(self.all, kib["VmRSS"])


class EpochTimes(Callback):
    """CPU seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(time.process_time() - self.start)


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own: peaks of memory do not add up."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of cost against size, both as logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# ---- Growth and memory ----


def one_size(n_spots: int, n_slices: int, n_epochs: int, options: dict[str, Any]) -> dict[str, Any]:
    """Graph, fit and epochs at one size."""
    import st_gchb
    from st_gchb.model import STGCHB

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(int(options.pop("threads", 1)))
    with tempfile.TemporaryDirectory() as folder:
        adata = slide(n_spots, Path(folder), n_slices)
        warm = slide(400, Path(tempfile.mkdtemp(dir=folder)))
        st_gchb.pp.spatial_graph(warm, slice_key="slice")
        result: dict[str, Any] = {"n_spots": n_spots}
        with Memory() as memory:
            result["graph"] = cpu_seconds(lambda: st_gchb.pp.spatial_graph(adata, slice_key="slice"))
            result["setup"] = cpu_seconds(lambda: STGCHB.setup_anndata(adata, slice_key="slice"))
            start = time.process_time()
            model = STGCHB(adata, n_top_genes=N_GENES // 2, **options)
            result["fit"] = time.process_time() - start
            times = EpochTimes()
            total = cpu_seconds(
                lambda: model.train(
                    n_epochs, calibrate=False, accelerator="cpu", enable_progress_bar=False, callbacks=[times]
                )
            )
            result["epoch"] = statistics.median(times.seconds[1:] or times.seconds)
            result["bank"] = total - sum(times.seconds)
        result |= {"own_gib": memory.own / 2**20, "with_files_gib": memory.all / 2**20}
    return result


def growth(scales: list[int], n_epochs: int = 3) -> dict[str, Any]:
    """CPU seconds of each part at multiples of a DLPFC slice, for the default network and one that passes messages."""
    report: dict[str, Any] = {}
    graph = {"image_graph": "sage", "expression_graph": "gcn"}
    for name, options in (("default", {}), ("graph", graph)):
        rows = [apart(one_size, DLPFC_SPOTS * scale, 1, n_epochs, dict(options)) for scale in scales]
        report[name] = {"sizes": rows}
        if len(scales) > 1:
            sizes = [row["n_spots"] for row in rows]
            parts = ("graph", "setup", "fit", "epoch", "bank", "own_gib")
            report[name]["exponents"] = {part: exponent(sizes, [row[part] for row in rows]) for part in parts}
    return report


def memory(n_spots: int, n_epochs: int = 2) -> dict[str, Any]:
    """Peak memory and epoch of many spots in 16 slides, with their features in a file."""
    result = apart(one_size, n_spots, 16, n_epochs, {})
    return result | {"features_on_disk_gib": n_spots * N_FEATURES * 2 / 2**30}


# ---- The published schedule ----


def published(n_slices: int = 4, n_spots: int = 190, n_steps: int = 3) -> dict[str, Any]:
    """The whole of training of four her2st sections: the published schedule, a plain loop, and this package.

    Published, as the project's page on the method says: 50 epochs of infomax on images and 50 on expression, a slice
    a step; 4 epochs of the joint loss, 16 spots a step; a slice's patches are encoded again in every step. A few steps
    of each stage are measured and multiplied by their number. Both have ResNet50's trunk frozen (random numbers for
    weights cost the same), patches of 112 px, and the same trainable layers: those of ``preset="paper"``.
    """
    from torchvision.models import resnet50

    from st_gchb.model import STGCHB

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trunk = resnet50(weights=None).eval()
    trunk.fc = torch.nn.Identity()
    patches = torch.rand(n_spots, 3, 112, 112)

    def encoded() -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([trunk(part) for part in patches.split(32)]).clone()

    encoded()
    encode = statistics.median(cpu_seconds(encoded) for _ in range(n_steps))
    with tempfile.TemporaryDirectory() as folder:
        adata = slide(n_slices * n_spots, Path(folder), n_slices)
        STGCHB.setup_anndata(adata, slice_key="slice")
        model = STGCHB(adata, "paper", n_top_genes=N_GENES // 2)
        quiet = {"calibrate": False, "accelerator": "cpu", "enable_progress_bar": False}
        ours = n_slices * encode + cpu_seconds(lambda: model.train(**quiet))
        default = STGCHB(adata)
        bleep = n_slices * encode + cpu_seconds(lambda: default.train(20, early_stopping=False, **quiet))
        pretraining, joint = _steps(model, encoded, n_steps)
    n_joint = 4 * n_slices * max(1, round(n_spots / 16))
    theirs = 50 * n_slices * pretraining + n_joint * joint
    # A plain loop encodes each spot once an epoch, and trains the same layers as the default does.
    plain = (20 - 1) * n_slices * encode + bleep
    return {
        "encode_a_slice_cpu_s": encode,
        "published_joint_step_cpu_s": joint,
        "published_cpu_s": theirs,
        "ours_paper_preset_cpu_s": ours,
        "times_faster_than_published": theirs / ours,
        "plain_loop_20_epochs_cpu_s": plain,
        "ours_default_20_epochs_cpu_s": bleep,
        "times_faster_than_plain_loop": plain / bleep,
    }


def _steps(model: Any, encoded: Callable[[], torch.Tensor], n_steps: int) -> tuple[float, float]:
    """CPU seconds of a step of infomax and of the joint loss, each with a slice encoded for it."""
    from st_gchb.model._fitting import training_data

    data = training_data(model._fitted, model.adata)
    slice_rows = data.slices()[0]
    optimizer = torch.optim.AdamW(model.module.parameters())

    def step(pretraining: bool, n_rows: int) -> None:
        batch = data.batch(slice_rows, model.module.network.n_hops)
        fixed = model.module.network.image.fixed
        batch.image = fixed(encoded()).detach()
        batch.rows = batch.rows[:n_rows]
        model.module.pretraining = pretraining
        optimizer.zero_grad()
        model.module.loss(batch).loss.backward()
        optimizer.step()

    model.module.train()
    stages = ((True, len(slice_rows)), (False, 16))
    found = [statistics.median(cpu_seconds(lambda s=s: step(*s)) for _ in range(n_steps)) for s in stages]
    model.module.pretraining = False
    return found[0], found[1]


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["growth", "memory", "published"])
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--spots", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "growth":
        report = growth(given.scales, given.epochs)
    elif given.what == "memory":
        report = memory(given.spots, given.epochs)
    else:
        torch.set_num_threads(1)
        report = published()
    text = json.dumps(report, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
