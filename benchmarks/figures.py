"""Analysis of measurements: growth exponents, ratios to limits, verdicts on targets, and changes between commits.

Its input is the JSON report of pytest-benchmark; nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Spread = tuple[float, float, float]
"""Median, smallest, largest."""


@dataclass(frozen=True)
class Row:
    """One benchmark at one size.

    Parameters
    ----------
    group, name
        Group and name of the benchmark.
    case
        Its parameters other than the size.
    spots
        Size, number of spots.
    cost, unit
        Cost and its unit: CPU seconds on a CPU, seconds on a GPU, MiB for memory.
    wall
        Wall-clock seconds, independent of ``unit``.
    ratios
        Wall-clock time divided by that of each limit, measured alternately.
    cpu_ratios
        CPU time divided by that of each limit.
    facts
        Further measurements.
    """

    group: str
    name: str
    case: str
    spots: int
    cost: Spread
    unit: str
    wall: Spread
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    cpu_ratios: Mapping[str, Spread] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.name.replace('_', ' ')} ({self.case})" if self.case else self.name.replace("_", " ")


@dataclass(frozen=True)
class Verdict:
    """A target, the measured value, and whether the target is met."""

    what: str
    target: str
    found: float
    met: bool


def spread(values: Sequence[float]) -> Spread:
    """Compute median, smallest and largest value."""
    return median(values), min(values), max(values)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit the slope of log cost against log size by least squares: 1 is linear, 2 is quadratic growth.

    Raises
    ------
    ValueError
        There are fewer than two sizes, or a size or cost is not positive.
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2 or min(*sizes, *costs) <= 0:
        raise ValueError(f"sizes={list(sizes)}, costs={list(costs)}; expected as many of both, two sizes, all above 0.")
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


# ---- Reading the report of pytest-benchmark ----


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """Read the benchmarks of a report, in order."""
    return [_row(entry) for entry in report["benchmarks"]]


def _row(entry: Mapping[str, Any]) -> Row:
    info = entry["extra_info"]
    unit = cost_unit(info)
    ratios, cpu_ratios = (
        {name: spread(_ratios(info["samples"], limit, key)) for name, limit in info["limits"].items()}
        for key in ("wall_s", "cpu_s")
    )
    cost, wall = spread(costs(info)), spread([sample["wall_s"] for sample in info["samples"]])
    name = entry["name"].split("[")[0].removeprefix("bench_")
    return Row(entry["group"], name, info["case"], info["spots"], cost, unit, wall, ratios, cpu_ratios, info["facts"])


def cost_unit(info: Mapping[str, Any]) -> str:
    """Choose the unit of a benchmark's cost.

    CPU seconds are preferred because other load hardly affects them; for a GPU only wall-clock seconds exist.
    """
    if info["mib"]:
        return "MiB"
    return "CPU s" if info["device"] == "cpu" else "s"


def costs(info: Mapping[str, Any]) -> list[float]:
    """Read the cost of each round."""
    key = {"MiB": None, "CPU s": "cpu_s", "s": "wall_s"}[cost_unit(info)]
    return list(info["mib"]) if key is None else [sample[key] for sample in info["samples"]]


def _ratios(own: Iterable[Mapping[str, float]], limit: Iterable[Mapping[str, float]], key: str) -> list[float]:
    return [mine[key] / max(bound[key], 1e-9) for mine, bound in zip(own, limit, strict=True)]


# ---- Growth and verdicts ----

GROWTH = {"encoding", "graph", "epoch", "query"}
"""Benchmarks whose growth exponent has a target."""
GROWTH_AT_MOST = 1.1
RATE_AT_LEAST = {("encoding_rate", "raw forward"): 0.9}
"""Target of the fraction of a limit that is reached, wall clock."""
STARTUP_AT_MOST = {"import st_gchb": 0.1, "st-gchb -h": 0.2}
"""Target of the time relative to ``import scvi``, wall clock."""


def series(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Group the rows of each benchmark that was run at several sizes, in order of size."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.group, row.name, row.case), []).append(row)
    return {
        key: sorted(some, key=lambda row: row.spots) for key, some in found.items() if len({r.spots for r in some}) > 1
    }


def growth(some: Sequence[Row]) -> tuple[float, float]:
    """Compute the growth exponent over all sizes, and over the two largest, where constant costs matter least."""
    sizes, found = [row.spots for row in some], [row.cost[0] for row in some]
    return exponent(sizes, found), exponent(sizes[-2:], found[-2:])


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Evaluate every target for which the run has measurements."""
    found = []
    for (_, name, _), some in series(rows).items():
        if name in GROWTH:
            slope = growth(some)[0]
            what = f"growth exponent of {some[0].title}"
            found.append(Verdict(what, f"at most {GROWTH_AT_MOST}", slope, slope <= GROWTH_AT_MOST))
    for row in rows:
        for limit, ratio in row.ratios.items():
            least, most = RATE_AT_LEAST.get((row.name, limit)), STARTUP_AT_MOST.get(row.case)
            if least is not None:
                share = 1 / ratio[0]
                found.append(Verdict(f"{row.title}: share of {limit}", f"at least {least}", share, share >= least))
            elif row.group == "start-up" and most is not None:
                found.append(Verdict(f"{row.case} / {limit}", f"at most {most}", ratio[0], ratio[0] <= most))
    return found


# ---- Two commits ----

CHANGE = 1.1
"""Ratio that all rounds must exceed for a benchmark to count as changed."""


@dataclass(frozen=True)
class Change:
    """Cost of a benchmark at two commits, and the ratio of the second to the first over the rounds."""

    name: str
    unit: str
    base: float
    head: float
    ratio: Spread

    @property
    def says(self) -> str:
        """``"more"`` or ``"less"`` if the head costs over a tenth more or less than the base in all rounds."""
        _, low, high = self.ratio
        if low > CHANGE:
            return "more"
        return "less" if high < 1 / CHANGE else "same"


def changes(base: Sequence[Mapping[str, Any]], head: Sequence[Mapping[str, Any]]) -> tuple[list[Change], list[str]]:
    """Compare alternating runs of two commits, pair by pair.

    Parameters
    ----------
    base, head
        Reports of pytest-benchmark, equally many of each commit.

    Returns
    -------
    changes
        Benchmarks that are in all reports.
    missing
        Names of benchmarks that are missing from some reports.
    """
    if not base or len(base) != len(head):
        raise ValueError(f"{len(base)} runs of the base and {len(head)} of the head; expected as many of both.")
    runs = [[{e["fullname"]: e["extra_info"] for e in run["benchmarks"]} for run in side] for side in (base, head)]
    names = list(dict.fromkeys(name for side in runs for run in side for name in run))
    everywhere = [name for name in names if all(name in run for side in runs for run in side)]
    found = []
    for name in everywhere:
        a, b = ([median(costs(run[name])) for run in side] for side in runs)
        ratio = spread([late / max(early, 1e-9) for early, late in zip(a, b, strict=True)])
        found.append(Change(name, cost_unit(runs[0][0][name]), median(a), median(b), ratio))
    return found, [name for name in names if name not in everywhere]
