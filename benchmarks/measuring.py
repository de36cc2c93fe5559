"""Measurement of time and memory, and separate processes for benchmarks."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Sample = dict[str, float]
"""``wall_s`` and ``cpu_s`` (of all threads of the process) of one call."""


def synchronize(device: str) -> None:
    """Wait until a GPU has completed its queued work; a CPU computes synchronously."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: str = "cpu") -> Sample:
    """Measure wall-clock and CPU seconds of a call, including work that it queued on the device."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


class Clock:
    """A manually advanced clock, by which rounds that were timed elsewhere are replayed to pytest-benchmark.

    For example, an epoch is timed within training and an import within a fresh interpreter; neither can be timed as a
    call from outside.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


CLOCK = Clock()


class Watch:
    """Sampled peak of this process's own memory, KiB, and mean utilization of a GPU if torch reports it.

    Pages of memory-mapped files, which the system can drop when memory is short, count only in ``with_files``.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.own = self.with_files = 0
        self.utilization: list[int] = []
        self._asked = gpu_utilization(device) is not None

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            own, with_files = resident_kib()
            self.own, self.with_files = max(self.own, own), max(self.with_files, with_files)
            if self._asked:
                self.utilization.append(gpu_utilization(self.device) or 0)

    @property
    def mean_utilization(self) -> float | None:
        """Mean percentage of time in which the GPU was busy; None if torch does not report it."""
        return sum(self.utilization) / len(self.utilization) if self.utilization else None


def resident_kib() -> tuple[int, int]:
    """Read the resident memory of this process, KiB: anonymous, and including pages of memory-mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return kib["RssAnon"], kib["VmRSS"]


def gpu_utilization(device: str) -> int | None:
    """Read the percentage of the last sampling interval in which the GPU was busy; None if torch does not report it."""
    if torch.device(device).type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device)
    except (ModuleNotFoundError, RuntimeError):  # NVIDIA's management library is not installed, or not allowed
        return None


def gpu_mib(device: str) -> float | None:
    """Read the peak memory of tensors on a GPU since the process started, MiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if torch.device(device).type == "cuda" else None


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a function in a separate process, so that its peak memory is not affected by other benchmarks."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
