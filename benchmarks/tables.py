"""Tables of measurements in Markdown, for the terminal and the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Change, Row, Spread, growth, series, verdicts


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns, so that it is readable in a terminal too."""
    widths = [max(len(str(line[i])) for line in [header, *lines]) for i in range(len(header))]
    rows = [header, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def write_table(folder: Path, name: str, text: str) -> None:
    """Write a table as ``name.md`` to a folder, which is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def write_figures(path: Path, figures: Any) -> None:
    """Write all figures as JSON, to a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def number(value: float) -> str:
    """Format a number with three significant digits, or as an integer from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def between(values: Spread, turn: bool = False) -> str:
    """Format the median with the range of the rounds; ``turn`` inverts the ratio."""
    middle, low, high = (1 / values[0], 1 / values[2], 1 / values[1]) if turn else values
    return f"{number(middle)} ({number(low)} to {number(high)})"


def growth_table(rows: Sequence[Row]) -> str:
    """Format cost by size and growth exponents, one line per benchmark."""
    found = series(rows)
    sizes = sorted({row.spots for some in found.values() for row in some})
    lines = []
    for some in found.values():
        at = {row.spots: number(row.cost[0]) for row in some}
        slopes = [f"{slope:.2f}" for slope in growth(some)]
        lines.append([some[0].title, some[0].unit, *(at.get(size, "") for size in sizes), *slopes])
    return markdown(["", "", *(f"{size:,} spots" for size in sizes), "exponent", "of the last two"], lines)


def limit_table(rows: Sequence[Row]) -> str:
    """Format the fraction of each limit that is reached, one line per benchmark and limit."""
    lines = []
    for row in rows:
        for limit, ratio in row.ratios.items():
            if row.group == "start-up":
                continue
            cpu = between(row.cpu_ratios[limit], turn=True)
            lines.append([row.title, f"{row.spots:,}", limit, between(ratio, turn=True), cpu, rate(row)])
    return markdown(["", "spots", "limit", "share, wall clock", "share, CPU time", "spots a second"], lines)


def rate(row: Row) -> str:
    """Format the number of spots per second of wall-clock time."""
    return number(row.spots / row.wall[0])


def startup_table(rows: Sequence[Row]) -> str:
    """Format start-up times, and their ratio to the time of importing scvi-tools."""
    lines = [
        [row.case, between(row.wall), between(ratio), between(row.cpu_ratios[limit])]
        for row in rows
        if row.group == "start-up"
        for limit, ratio in row.ratios.items()
    ]
    return markdown(["", "s", "part of import scvi", "the same, CPU time"], lines)


def verdict_table(rows: Sequence[Row]) -> str:
    """Format the targets, and whether they are met."""
    lines = [[v.what, v.target, number(v.found), "met" if v.met else "NOT met"] for v in verdicts(rows)]
    return markdown(["", "target", "found", ""], lines)


def change_table(changes: Sequence[Change], base: str, head: str) -> str:
    """Format the comparison of two commits, one line per benchmark."""
    lines = [
        [c.name.removeprefix("bench_"), c.unit, number(c.base), number(c.head), between(c.ratio), c.says]
        for c in changes
    ]
    return markdown(["", "", base, head, "ratio", f"{head} takes"], lines)


def machine_line(report: Mapping[str, Any]) -> str:
    """Describe the machine, the commit and the package versions of a run."""
    machine, commit = report["machine_info"], report["commit_info"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    dirty = ", with changes that are not committed" if commit["dirty"] else ""
    return (
        f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cpu'].get('count', '?')} cores, "
        f"{machine['threads']} thread(s), device {machine['device']}; load of the machine {machine['load']}; "
        f"commit {commit['id'][:12]}{dirty}; seed {machine['seed']}; {versions}."
    )


def all_tables(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """Format all tables that are not empty, by name."""
    tables = {
        "growth": growth_table(rows),
        "limits": limit_table(rows),
        "startup": startup_table(rows),
        "targets": verdict_table(rows),
    }
    return {name: text for name, text in tables.items() if text.count("\n") > 1} | {"machine": machine_line(report)}
