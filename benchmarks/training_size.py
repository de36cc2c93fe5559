"""Training at one size, run in a separate process: seconds of each stage, and peak memory."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from measuring import Sample, Watch, gpu_mib, resident_kib, synchronize, timed
from slides import DLPFC_SPOTS, N_GENES, table

NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "messages": {"image_graph": "sage", "expression_graph": "gcn", "context_rings": 0},
}
"""Settings of the default network, and of one with message passing in both branches instead of means over rings."""


class EpochTimes(Callback):
    """Measure the seconds of each epoch."""

    def __init__(self, device: str) -> None:
        self.device, self.samples = device, list[Sample]()

    def on_train_epoch_start(self, *_: object) -> None:
        synchronize(self.device)
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, *_: object) -> None:
        synchronize(self.device)
        self.samples.append({"wall_s": time.perf_counter() - self.wall, "cpu_s": time.process_time() - self.cpu})


def accelerator_of(device: str) -> str:
    """Return Lightning's name of a device."""
    return "cpu" if torch.device(device).type == "cpu" else "gpu"


def one_size(
    n_spots: int, n_slices: int, n_epochs: int, network: str, device: str = "cpu", threads: int = 1
) -> dict[str, Any]:
    """Measure graph, fit, epochs, bank and, for the default network, the prediction of one slice; peak memory, MiB.

    The first epoch is excluded if there are several, because it includes one-time initialization.
    """
    import st_gchb
    from st_gchb.model import STGCHB

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("st_gchb").setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    options = {"calibrate": False, "accelerator": accelerator_of(device), "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(3)]
        warm = table(400, places[0])
        STGCHB.setup_anndata(warm, slice_key="slice")
        STGCHB(warm, n_top_genes=50, **NETWORKS[network]).train(1, **options)
        adata, query = table(n_spots, places[1], n_slices), table(DLPFC_SPOTS, places[2], seed=1)
        found: dict[str, list[Sample]] = {}
        before = resident_kib()
        with Watch(device) as watch:
            found["graph"] = [timed(lambda: st_gchb.pp.spatial_graph(adata, slice_key="slice"))]
            found["setup"] = [timed(lambda: STGCHB.setup_anndata(adata, slice_key="slice"))]
            models: list[Any] = []
            make = {"n_top_genes": N_GENES // 2} | NETWORKS[network]
            models.append(STGCHB(adata, **make))
            # Else the first line of train: apart from it, so that the bank's share is that of the bank.
            found["fit"] = [timed(models[0]._fit, device)]
            times = EpochTimes(device)
            whole = timed(lambda: models[0].train(n_epochs, callbacks=[times], **options), device)
            found["epoch"] = times.samples[1:] or times.samples
            found["bank"] = [{key: whole[key] - sum(s[key] for s in times.samples) for key in whole}]
            if network == "default":
                found["predict"] = [timed(lambda: models[0].predict(query, slice_key="slice"), device)]
    peaks = {"own_mib": (watch.own - before[0]) / 1024, "with_files_mib": (watch.with_files - before[1]) / 1024}
    peaks["imports_mib"] = before[0] / 1024
    more = {"gpu_mib": gpu_mib(device), "gpu_utilization": watch.mean_utilization}
    return {"n_spots": n_spots, "seconds": found} | peaks | more
