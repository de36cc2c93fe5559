"""Graph, fit, epoch, bank, prediction and peak memory of a training, at each size in a process of its own."""

from __future__ import annotations

import functools

import pytest
from measuring import CLOCK, apart
from slides import DLPFC_SPOTS
from training_size import NETWORKS, one_size

FEW = 16
"""From this size on, one epoch is timed instead of three."""


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request):
    return request.param


@functools.cache
def trained(scale, network, device, threads):
    """One training, in whatever order it is asked for."""
    # The spots of 64 slices lie on one slide: 64 slides would say little of what grows with a slide.
    return apart(one_size, DLPFC_SPOTS * scale, 1, 4 if scale < FEW else 2, network, device, threads)


@pytest.fixture
def run(scale, network, device, threads):
    """One training; all benchmarks of its size and network read from it."""
    return trained(scale, network, device, threads)


once = pytest.mark.parametrize("network", ["default"], indirect=True)
"""For what does not depend on the network."""


def replay(measure, run, network, stage):
    measure.replay(run["seconds"][stage], spots=run["n_spots"], case=network)


@once
@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_graph(measure, run):
    """The spot graph of one slide."""
    replay(measure, run, "", "graph")


@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_fit(measure, run, network):
    """Panel, principal components, context features."""
    replay(measure, run, network, "fit")


@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_epoch(measure, run, network):
    """An epoch, without the first."""
    replay(measure, run, network, "epoch")


@pytest.mark.benchmark(group="training", timer=CLOCK)
def bench_bank(measure, run, network):
    """What training does beside its epochs: it embeds the reference."""
    replay(measure, run, network, "bank")


@once
@pytest.mark.benchmark(group="query", timer=CLOCK)
def bench_predict(measure, run):
    """The whole prediction of one slice whose features are there, by the size of the reference."""
    replay(measure, run, "", "predict")


@pytest.mark.benchmark(group="memory", timer=CLOCK)
def bench_training_memory(measure, run, network):
    """Peak of the process's own memory beyond imports; features are in a file."""
    whole = {key: sum(s[key] for some in run["seconds"].values() for s in some) for key in ("wall_s", "cpu_s")}
    facts = {key: run[key] for key in ("with_files_mib", "gpu_mib", "gpu_utilization")}
    measure.replay([whole], spots=run["n_spots"], case=network, mib=[run["own_mib"]], **facts)
