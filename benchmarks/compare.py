"""Comparison of two commits: runs the benchmarks of this checkout on both sources alternately and reports ratios.

    make bench-compare BASE=main
    python benchmarks/compare.py v0.1.0 HEAD --rounds 3 --scales "1 4" -- -k query

Without HEAD, the second source is the working tree. Each round runs both sources, in alternating order, so that other
load on the machine affects both; ratios are computed within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import changes
from tables import change_table

ROOT = Path(__file__).parents[1]
STORAGE = ROOT / ".benchmarks" / "compare"


def git(*arguments: str) -> str:
    """Run a git command in the repository and return its output."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def source_of(commit: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the name and source folder of a commit, in a temporary work tree; None is the checkout itself."""
    if commit is None:
        yield "checkout", ROOT / "src"
        return
    full = git("rev-parse", "--verify", f"{commit}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / full[:12]
        git("worktree", "add", "--detach", str(tree), full)
        try:
            yield full[:12], tree / "src"
        finally:
            git("worktree", "remove", "--force", str(tree))


def run(source: Path, report: Path, arguments: list[str]) -> dict[str, Any]:
    """Run the benchmarks once on a source; a benchmark that fails is missing from the report."""
    suite = ROOT / "benchmarks"
    command = [sys.executable, "-m", "pytest", "-c", str(suite / "pytest.ini"), str(suite), "-q", "--benchmark-quiet"]
    command += [f"--benchmark-storage={STORAGE}", f"--benchmark-json={report}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr)
    # Exit status 1: some benchmarks failed, as expected for an older commit that lacks a function.
    if done.returncode not in (0, 1) or not report.exists() or not report.stat().st_size:
        raise SystemExit(f"error: the benchmarks could not be run on {source} (exit status {done.returncode}).")
    return json.loads(report.read_text())


def compare(base: str, head: str | None, rounds: int, arguments: list[str], out: Path | None) -> str:
    """Run both sources alternately and return the table of changes."""
    reports: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    with source_of(base) as first, source_of(head) as second, tempfile.TemporaryDirectory() as folder:
        sides = (first, second)
        for number in range(rounds):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                name, source = sides[side]
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                saved = [f"--benchmark-save={name}-{number + 1}", *arguments]
                reports[side].append(run(source, Path(folder) / f"{side}-{number}.json", saved))
    found, missing = changes(reports[0], reports[1])
    text = change_table(found, first[0], second[0])
    if missing:
        text += f"\n\nNot measured in all runs of both: {', '.join(missing)}."
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    return text


def main() -> None:
    """Parse the command line, run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("head", nargs="?", help="the other commit (default: the checkout as it is)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--scales", default="1 4", help="sizes, in slices of DLPFC (default: '1 4')")
    parser.add_argument("--out", type=Path, help="file for the table")
    own, rest = sys.argv[1:], []
    if "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    given = parser.parse_args(own)
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: expected 1 or more")
    print(compare(given.base, given.head, given.rounds, ["--scales", given.scales, *rest], given.out))
    print(f"\nThe runs are kept: pytest-benchmark compare --storage={STORAGE} --group-by=fullname")


if __name__ == "__main__":
    main()
