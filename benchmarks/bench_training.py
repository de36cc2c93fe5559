"""Training: spot graph, fit, epoch, reference bank, prediction and peak memory, each size in a separate process."""

from __future__ import annotations

import functools

import pytest
from measuring import CLOCK, apart
from slides import DLPFC_SPOTS
from training_size import NETWORKS, one_size

FEW = 16
"""Size, in slices, from which on one epoch is timed instead of three."""


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request):
    return request.param


@functools.cache
def trained(scale, network, device, threads):
    """Train once for each combination of arguments, in a separate process."""
    # All spots are on one slice: with 64 slices, growth with the size of a slice would not be visible.
    return apart(one_size, DLPFC_SPOTS * scale, 1, 4 if scale < FEW else 2, network, device, threads)


@pytest.fixture
def run(scale, network, device, threads):
    """Train a network at one size; all benchmarks of that size and network report parts of this run."""
    return trained(scale, network, device, threads)


once = pytest.mark.parametrize("network", ["default"], indirect=True)
"""Marks benchmarks that do not depend on the network, which run once per size."""


def replay(measure, run, network, stage):
    measure.replay(run["seconds"][stage], spots=run["n_spots"], case=network)


@once
@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_graph(measure, run):
    """Report the construction of the spot graph of one slice."""
    replay(measure, run, "", "graph")


@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_fit(measure, run, network):
    """Report the fit of gene panel, principal components and neighborhood features."""
    replay(measure, run, network, "fit")


@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_epoch(measure, run, network):
    """Report the epochs after the first."""
    replay(measure, run, network, "epoch")


@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_bank(measure, run, network):
    """Report the time of training outside its epochs, mainly the embedding of the reference."""
    replay(measure, run, network, "bank")


@once
@pytest.mark.benchmark(group="query", timer=CLOCK)
def bench_predict(measure, run):
    """Report the prediction of one slice with existing features, as a function of the size of the reference."""
    replay(measure, run, "", "predict")


@pytest.mark.benchmark(group="memory", timer=CLOCK)
def bench_training_memory(measure, run, network):
    """Report the peak of the process's own memory beyond that after imports; features are in a file."""
    whole = {key: sum(s[key] for some in run["seconds"].values() for s in some) for key in ("wall_s", "cpu_s")}
    facts = {key: run[key] for key in ("with_files_mib", "gpu_mib", "gpu_utilization")}
    measure.replay([whole], spots=run["n_spots"], case=network, mib=[run["own_mib"]], **facts)
