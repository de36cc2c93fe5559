"""What the benchmarks make of the seconds that they measure, and that the suite itself runs; nothing is timed here."""

from __future__ import annotations

import importlib
import json
import os
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

ROOT = Path(__file__).parents[1]
NAMES = (
    "figures",
    "tables",
    "schedules",
    "measuring",
    "raw_forward",
    "slides",
    "compare",
    "small_training",
    "large_encoders",
)


@pytest.fixture(scope="module")
def bench():
    """The modules of the benchmarks, which import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
        for name in NAMES:
            sys.modules.pop(name, None)


def entry(name="query", scale=1, seconds=(1.0,), **info):
    """A benchmark as pytest-benchmark writes it; CPU seconds are twice the wall clock's."""
    kept = {"spots": 100 * scale, "case": "", "device": "cpu", "limits": {}, "mib": [], "facts": {}}
    kept["samples"] = [{"wall_s": s, "cpu_s": 2 * s} for s in seconds]
    full = f"bench_{name}[{scale}x]"
    return {"group": "g", "name": full, "fullname": f"bench_x.py::{full}", "extra_info": kept | info}


def rows(bench, *entries):
    return bench.figures.rows_of({"benchmarks": list(entries)})


# ---- Exponents ----


@given(
    slope=st.floats(-1, 3, allow_subnormal=False),
    factor=st.floats(0.01, 100),
    sizes=st.sets(st.integers(1, 10**6), min_size=2),
)
def test_exponent_of_a_power_is_the_power(bench, slope, factor, sizes):
    sizes = sorted(sizes)
    costs = [factor * (size / sizes[0]) ** slope for size in sizes]
    assert bench.figures.exponent(sizes, costs) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "costs"), [([4], [1.0]), ([4, 4], [1.0, 2.0]), ([1, 4], [0.0, 1.0]), ([1, 4], [1.0])]
)
def test_exponent_needs_two_sizes_and_costs_above_zero(bench, sizes, costs):
    with pytest.raises(ValueError, match="expected as many of both"):
        bench.figures.exponent(sizes, costs)


def test_growth_also_tells_the_two_largest_sizes(bench):
    some = rows(bench, *(entry(scale=scale, seconds=[1 + scale**2 / 100]) for scale in (1, 4, 16, 64)))
    whole, last = bench.figures.growth(some)
    assert whole < 1 < last < 2


def test_sizes_are_put_in_order_and_single_ones_left_out(bench):
    some = rows(bench, entry(scale=16), entry(scale=4), entry("alone", 4), entry(scale=1, case="other"))
    found = bench.figures.series(some)
    assert [[row.spots for row in of_one] for of_one in found.values()] == [[400, 1600]]


# ---- Rows ----


def test_cost_is_cpu_time_on_a_cpu_seconds_on_a_gpu_and_memory_where_that_is_measured(bench):
    cpu, gpu, memory = rows(
        bench, entry(seconds=[3, 1, 2]), entry(seconds=[3, 1, 2], device="cuda"), entry(seconds=[9], mib=[70.0])
    )
    assert (cpu.cost, cpu.unit) == ((4, 2, 6), "CPU s")
    assert (gpu.cost, gpu.unit) == ((2, 1, 3), "s")
    assert (memory.cost, memory.unit, memory.wall) == ((70, 70, 70), "MiB", (9, 9, 9))


def test_ratios_are_those_of_the_same_round(bench):
    # The machine was busy in the second round: both took ten times as long.
    limits = {"torch.mm": [{"wall_s": 1.0, "cpu_s": 1.0}, {"wall_s": 10.0, "cpu_s": 1.0}]}
    (row,) = rows(bench, entry(seconds=[2, 20], limits=limits))
    assert row.ratios["torch.mm"] == (2, 2, 2)
    assert row.cpu_ratios["torch.mm"] == (22, 4, 40)


def test_rounds_without_their_limit_are_refused(bench):
    with pytest.raises(ValueError, match="zip"):
        rows(bench, entry(seconds=[2, 2], limits={"torch.mm": [{"wall_s": 1.0, "cpu_s": 1.0}]}))


# ---- Targets ----


@pytest.mark.parametrize(("name", "power", "met"), [("query", 1.0, True), ("epoch", 1.2, False), ("graph", 1.09, True)])
def test_growth_has_a_target(bench, name, power, met):
    (found,) = bench.figures.verdicts(rows(bench, *(entry(name, scale, [scale**power]) for scale in (1, 4, 16))))
    assert found.met is met
    assert found.found == pytest.approx(power)


def test_what_has_no_target_gets_no_verdict(bench):
    assert bench.figures.verdicts(rows(bench, entry("reading", 1, [1]), entry("reading", 4, [99]))) == []


@pytest.mark.parametrize(("seconds", "share", "met"), [(1.0, 1.0, True), (1.1, 0.909, True), (1.12, 0.893, False)])
def test_encoding_is_to_reach_nine_tenths_of_the_forward_rate(bench, seconds, share, met):
    limits = {"raw forward": [{"wall_s": 1.0, "cpu_s": 1.0}]}
    (found,) = bench.figures.verdicts(rows(bench, entry("encoding_rate", seconds=[seconds], limits=limits)))
    assert (round(found.found, 3), found.met) == (share, met)


@pytest.mark.parametrize(
    ("case", "seconds", "met"),
    [("import st_gchb", 0.9, True), ("import st_gchb", 1.1, False), ("st-gchb -h", 1.9, True)],
)
def test_starting_is_a_part_of_importing_scvi(bench, case, seconds, met):
    limits = {"import scvi": [{"wall_s": 10.0, "cpu_s": 10.0}]}
    start = entry("startup", seconds=[seconds], limits=limits, case=case) | {"group": "start-up"}
    (found,) = bench.figures.verdicts(rows(bench, start))
    assert found.met is met


# ---- Two commits ----


def report(*entries):
    return {"benchmarks": list(entries)}


def test_commits_are_compared_round_by_round(bench):
    base = [report(entry(seconds=[1])), report(entry(seconds=[10])), report(entry(seconds=[2]))]
    head = [report(entry(seconds=[1.2])), report(entry(seconds=[12])), report(entry(seconds=[3]))]
    (change,), missing = bench.figures.changes(base, head)
    assert change.ratio == pytest.approx((1.2, 1.2, 1.5))
    assert (change.says, change.unit, missing) == ("more", "CPU s", [])
    (back,), _ = bench.figures.changes(head, base)
    assert back.says == "less"


def test_a_change_is_one_in_all_rounds_or_none(bench):
    base = [report(entry(seconds=[1]))] * 3
    head = [report(entry(seconds=[s])) for s in (1.3, 1.4, 1.0)]
    (change,), _ = bench.figures.changes(base, head)
    assert change.says == "same"


def test_what_a_commit_cannot_run_is_named(bench):
    base, head = [report(entry()), report(entry())], [report(entry(), entry("new")), report(entry(), entry("new"))]
    found, missing = bench.figures.changes(base, head)
    assert [change.name for change in found] == ["bench_x.py::bench_query[1x]"]
    assert missing == ["bench_x.py::bench_new[1x]"]


@pytest.mark.parametrize(("n_base", "n_head"), [(0, 0), (2, 1)])
def test_runs_come_in_pairs(bench, n_base, n_head):
    with pytest.raises(ValueError, match="expected as many of both"):
        bench.figures.changes([report(entry())] * n_base, [report(entry())] * n_head)


def test_both_commits_run_in_turn_and_the_first_is_not_always_first(bench, monkeypatch, tmp_path):
    from contextlib import nullcontext

    order = []

    def run(source, path, arguments):
        order.append((str(source), arguments))
        return report(entry(seconds=[2.0 if source == Path("old") else 1.0]))

    monkeypatch.setattr(bench.compare, "run", run)
    monkeypatch.setattr(bench.compare, "source_of", lambda name: nullcontext((name, Path(name))))
    text = bench.compare.compare("old", "new", 3, ["--scales", "1"], tmp_path / "table.md")
    assert [source for source, _ in order] == ["old", "new", "new", "old", "old", "new"]
    assert all(arguments[1:] == ["--scales", "1"] for _, arguments in order)
    assert "0.5 (0.5 to 0.5)" in text
    assert "less" in text
    assert (tmp_path / "table.md").read_text() == text + "\n"


def test_stages_of_small_trainings_are_compared_within_a_round(bench):
    def side(seconds):
        return {stage: seconds * (1 + number) for number, stage in enumerate(bench.small_training.STAGES)}

    rounds = [[side(2.0), side(1.0)], [side(8.0), side(2.0)], [side(3.0), side(1.5)]]
    lines = bench.small_training.lines_of(rounds)
    assert [line[0] for line in lines] == list(bench.small_training.STAGES)
    # The median of the ratios of each round, whatever load there was in one of them.
    assert [line[-1].split()[0] for line in lines] == ["0.5"] * len(lines)
    assert [len(line) for line in bench.small_training.lines_of([one[:1] for one in rounds])] == [2] * len(lines)


def test_starts_of_encoders_are_compared_within_a_round_and_their_weights_in_all(bench):
    def side(made, weights="a"):
        return {"read": 0.5, "made": made, "weights": weights}

    rounds = [[side(4.0), side(2.0)], [side(8.0), side(4.0)], [side(4.0), side(1.0)]]
    line = bench.large_encoders.line_of("vit_l_16", 2**21, rounds)
    assert line == ["vit_l_16", "2", "0.5", "4 (4 to 8)", "2 (1 to 4)", "0.5 (0.25 to 0.5)", "yes"]
    rounds[1][1]["weights"] = "b"
    assert bench.large_encoders.line_of("vit_l_16", 2**21, rounds)[-1] == "NO"


def test_a_commit_that_is_not_there_is_told(bench):
    with pytest.raises(SystemExit, match="no-such-commit"), bench.compare.source_of("no-such-commit"):
        pass


def test_rounds_are_at_least_one(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "main", "--rounds", "0"])
    with pytest.raises(SystemExit):
        bench.compare.main()
    assert "expected 1 or more" in capsys.readouterr().err


# ---- Tables ----


def test_tables_hold_what_was_measured_and_no_more(bench):
    limits = {"torch.mm": [{"wall_s": 1.0, "cpu_s": 1.0}]}
    some = rows(bench, entry(seconds=[2], limits=limits), entry(scale=4, seconds=[8]), entry("reading", 16))
    machine = {"machine": "x86_64", "cpu": {"count": 2}, "threads": 1, "device": "cpu", "load": "0.1", "seed": 0}
    info = {"machine_info": machine | {"versions": {"torch": "2.9"}}, "commit_info": {"id": "a" * 40, "dirty": True}}
    tables = bench.tables.all_tables(info, some)
    assert list(tables) == ["growth", "limits", "targets", "machine"]
    assert "| query | CPU s | 4         | 16        | 1.00" in tables["growth"]
    assert "reading" not in tables["growth"]
    assert "| query | 100   | torch.mm | 0.5 (0.5 to 0.5)" in tables["limits"]
    assert "changes that are not committed" in tables["machine"]


# ---- Schedules ----

DLPFC = (4226, 4384, 4789, 4634, 3661, 3498, 4110, 4015, 3639, 3673)
"""Spots of the slices of DLPFC but 151675 and 151676."""


def test_published_schedule_encodes_42_million_patches_of_dlpfc(bench):
    found = bench.schedules.encodings(DLPFC)
    assert found.needed == 40_629
    assert round(found.joint / 1e6) == 42
    assert round((found.joint + found.infomax) / 1e6) == 44


def test_encodings_of_a_small_slice(bench):
    found = bench.schedules.encodings([17, 16], n_epochs=20)
    assert vars(found) == {"needed": 33, "joint": 4 * (17 * 2 + 16), "infomax": 50 * 33, "every_epoch": 660}


def test_seconds_of_a_schedule_are_its_parts_as_often_as_it_has_them(bench):
    parts = bench.schedules.Parts(forward=[10, 100], infomax=[1, 2], joint=[3, 4], plain=5)
    found = bench.schedules.seconds([17, 16], parts, n_epochs=20, plain_batch=11)
    steps = 50 * (1 + 2) + 8 * 3 + 4 * 4
    joint = 8 * 10 + 4 * 100
    assert found["published, encoding in joint epochs"] == joint + steps
    assert found["published, encoding in infomax too"] == joint + 50 * 110 + steps
    assert found["plain loop"] == 20 * 110 + 20 * 3 * 5


# ---- The network by itself ----


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU())

    def forward(self, images):
        if images.shape[0] == 5:
            raise ValueError("five")
        return self.inner(images).mean((2, 3))


def test_network_is_caught_as_it_was_called(bench):
    net, other = Nested(), nn.Linear(4, 2)
    batches = [torch.rand(2, 3, 6, 6).contiguous(memory_format=torch.channels_last), torch.rand(1, 3, 6, 6)]

    def call():
        for batch in batches:
            other(net(batch))
            batch.zero_()

    caught = bench.raw_forward.network_of(call)
    assert caught.module is net
    assert caught.n_patches == 3
    assert caught.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert caught.inputs[0].max() > 0
    assert [len(found) for found in caught.forward()] == [2, 1]
    assert caught.autocast is None


def test_precision_of_the_call_is_that_of_the_forward_pass(bench):
    def call():
        with torch.autocast("cpu", torch.bfloat16):
            Nested()(torch.rand(1, 3, 6, 6))

    assert bench.raw_forward.network_of(call).forward()[0].dtype == torch.bfloat16


def test_a_network_that_fails_is_not_taken_for_the_outermost_for_ever(bench):
    net = Nested()

    def call():
        with pytest.raises(ValueError, match="five"):
            net(torch.rand(5, 3, 6, 6))
        net(torch.rand(2, 3, 6, 6))

    assert [len(batch) for batch in bench.raw_forward.network_of(call).inputs] == [5, 2]


def test_without_a_network_there_is_no_rate(bench):
    caught = bench.raw_forward.network_of(lambda: nn.Linear(2, 2)(torch.zeros(1, 2)))
    Nested()(torch.rand(1, 3, 6, 6))
    with pytest.raises(RuntimeError, match="No network was called"):
        caught.forward()


# ---- Measuring ----


def test_clock_moves_by_what_it_is_told(bench):
    clock = bench.measuring.Clock()
    clock.advance(2.5)
    assert clock() == 2.5


def test_peak_of_memory_is_seen_and_files_are_kept_apart(programs, tmp_path):
    """In a process of its own: in this one, others' memory may be given back in the middle."""
    code = """
        import sys
        sys.path.insert(0, sys.argv[2])
        import numpy as np
        from measuring import Watch, resident_kib
        np.full(2**23, 1.0).tofile(sys.argv[1])
        mapped = np.memmap(sys.argv[1], dtype=np.float64, mode="r")
        before = resident_kib()
        with Watch() as watch:
            mapped.sum()
            filled = np.full(2**23, 1.0)
            watch._stop.wait(0.2)
        print(watch.own - before[0], watch.with_files - before[1], filled.nbytes)
    """
    done = programs.run(textwrap.dedent(code), str(tmp_path / "64_mib"), str(ROOT / "benchmarks"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    own, with_files, filled = map(int, done.stdout.split())
    assert filled == 2**26
    assert 50_000 < own < 100_000
    assert with_files > own + 50_000


def test_a_gpu_is_waited_for_and_asked(bench, monkeypatch):
    waited, measuring = [], bench.measuring
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    measuring.timed(lambda: waited.append("call"), "cuda:0")
    assert waited == ["cuda:0", "call", "cuda:0"]
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 37)
    with measuring.Watch("cuda") as watch:
        watch._stop.wait(0.2)
    assert watch.mean_utilization == 37


@pytest.mark.parametrize("error", [ModuleNotFoundError, RuntimeError])
def test_utilization_that_cannot_be_told_is_none(bench, monkeypatch, error):
    def fail(device):
        raise error("no management library")

    monkeypatch.setattr(torch.cuda, "utilization", fail)
    assert bench.measuring.gpu_utilization("cuda") is None
    assert bench.measuring.Watch("cuda").mean_utilization is None


# ---- Slides ----


def test_slide_of_encoded_tiles_shows_the_texture_under_its_spots(bench, tmp_path, monkeypatch):
    from st_gchb.io import open_image

    # Drawing the texture itself takes seconds.
    colors = np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    drawn = np.kron(colors, np.ones((32, 32, 1), dtype=np.uint8))
    monkeypatch.setattr(bench.slides, "texture", lambda: drawn)
    bench.slides.encoded_tiles.cache_clear()
    adata = bench.slides.tiff_slide(tmp_path / "slide.tif", 30, 2.0)
    image = open_image(tmp_path / "slide.tif")
    height, width = image.levels[0].shape[:2]
    assert (adata.obsm["spatial"] >= 75).all()
    assert (adata.obsm["spatial"].max(axis=0) <= [width - 75, height - 75]).all()
    assert image.um_per_px == pytest.approx(2.0, rel=1e-3)
    assert image.downsamples == pytest.approx([1, 2, 4], rel=0.05)
    shown = image.levels[0][256:300, 0:256]
    assert np.abs(shown.astype(int) - drawn[256:300, :256]).mean() < 6
    bench.slides.encoded_tiles.cache_clear()


def test_spots_lie_on_a_hexagonal_array(bench):
    from scipy.spatial import KDTree

    distances = KDTree(bench.slides.hexagonal(100)).query(bench.slides.hexagonal(100), k=2)[0][:, 1]
    assert np.allclose(distances, 100, rtol=1e-3)


# ---- The suite ----


def test_a_table_goes_into_a_folder_that_is_not_there_yet(bench, tmp_path):
    for text in ("µm\n", "px\n"):
        bench.tables.write_table(tmp_path / "a" / "b", "sizes", text)
        assert (tmp_path / "a" / "b" / "sizes.md").read_text(encoding="utf-8") == text
    bench.tables.write_figures(tmp_path / "c" / "sizes.json", [{"px": 1}])
    assert json.loads((tmp_path / "c" / "sizes.json").read_text()) == [{"px": 1}]


@pytest.mark.slow
def test_suite_writes_json_and_tables(programs, tmp_path):
    pytest.importorskip("pytest_benchmark", reason="the extra 'bench' is not installed")
    options = ["benchmarks/bench_query.py", "-q", "--scales", "1", "-p", "no:xdist"]
    options += [f"--benchmark-storage={tmp_path}", "--docs", str(tmp_path / "docs")]
    # Within a worker of pytest-xdist, nothing would be timed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = programs.run(code, *options, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.rglob("0001_*.json")
    report = json.loads(path.read_text())
    assert report["machine_info"]["threads"] == 1
    assert report["machine_info"]["versions"]["torch"] in torch.__version__
    assert [len(one["extra_info"]["samples"]) for one in report["benchmarks"]] == [3]
    assert {file.name for file in (tmp_path / "docs").iterdir()} == {"limits.md", "machine.md"}
    assert (tmp_path / "docs" / "limits.md").read_text().strip() == report["tables"]["limits"]
