"""Seconds, memory and processes: what the benchmarks measure with."""

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
    """Wait for what a GPU was given to do; a CPU is never behind."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: str = "cpu") -> Sample:
    """Seconds of a call, with what it left for the device to do."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


class Clock:
    """A clock that moves by what it is told: rounds that were timed elsewhere are replayed to pytest-benchmark.

    An epoch is timed inside a training, and an import in an interpreter of its own; neither is a call that could be
    timed from outside.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


CLOCK = Clock()


class Watch:
    """Peak of this process's own memory, sampled, and mean utilization of a GPU where torch can tell it.

    Pages of mapped files, which the system drops at need, count in ``with_files`` alone. All in KiB.
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
        """Percent of the time in which the GPU was at work; None where that cannot be told."""
        return sum(self.utilization) / len(self.utilization) if self.utilization else None


def resident_kib() -> tuple[int, int]:
    """Memory of this process: its own (anonymous), and with the pages of mapped files, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return kib["RssAnon"], kib["VmRSS"]


def gpu_utilization(device: str) -> int | None:
    """Percent of the last sampling interval in which the GPU was at work; None where torch cannot tell."""
    if torch.device(device).type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device)
    except (ModuleNotFoundError, RuntimeError):  # NVIDIA's management library is not installed, or not allowed
        return None


def gpu_mib(device: str) -> float | None:
    """Largest memory that tensors took on a GPU since the process began, MiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if torch.device(device).type == "cuda" else None


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own: peaks of memory do not add up."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
