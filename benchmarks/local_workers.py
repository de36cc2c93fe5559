"""Start and memory of worker processes on one machine: each one started by itself, and forked of one that has imported.

    python benchmarks/local_workers.py
    python benchmarks/local_workers.py --base ../earlier --workers 4 --rounds 5 --docs docs/results/speed

A small model is trained once. Then fresh processes start workers, in turn in each of the ways, and every worker loads
the model: with ``STGCHB.load`` (of another checkout, with --base) or ``st_gchb.load_predictor``. Resident memory counts
pages that several processes share once for each; memory of its own is what one worker more takes; that of all, with the
process of which they are forked, counts shared pages once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from first_patch import prepare
from tables import write_table

STARTED = "started = LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None)"
LOAD = "import st_gchb; model = st_gchb.load_predictor(folder, device='cpu')"
WAYS = {
    "started, STGCHB.load, before": (
        STARTED,
        "from st_gchb.model import STGCHB; model = STGCHB.load(folder, accelerator='cpu')",
    ),
    "started, load_predictor": (STARTED, LOAD),
    "forked, load_predictor": ("from st_gchb.cohort import local_workers; started = local_workers(n_workers)", LOAD),
}
"""Of each way, how workers are started, and how a worker loads the model."""

PROCESS = """
import json, sys, time
start = time.perf_counter()
from contextlib import ExitStack
from distributed import Client, LocalCluster

folder, n_workers = sys.argv[1], int(sys.argv[2])

def load(folder, dask_worker):
    {load}
    # Held as long as the worker.
    dask_worker.model = model

def held(pid="self"):
    import re
    with open(f"/proc/{{pid}}/smaps_rollup") as file:
        kib = {{name: int(size) for name, size in re.findall(r"(\\w+): +(\\d+) kB", file.read())}}
    return {{
        "rss": kib["Rss"] / 1024, "own": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, "pss": kib["Pss"] / 1024
    }}

with ExitStack() as stack:
    {start}
    found = stack.enter_context(started)
    client = found if isinstance(found, Client) else stack.enter_context(Client(found))
    client.wait_for_workers(n_workers)
    client.run(load, folder)
    seconds = time.perf_counter() - start
    workers = list(client.run(held).values())
    from multiprocessing import forkserver
    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    everything = sum(one["pss"] for one in workers) + (held(server)["pss"] if server else 0)
    median = lambda key: sorted(one[key] for one in workers)[len(workers) // 2]
    print(json.dumps({{"wall_s": seconds, "mib": median("rss"), "own": median("own"), "all": everything}}), flush=True)
"""

Workers = dict[str, float]
"""Seconds and MiB of the workers of one process: ``wall_s``, ``mib``, ``own``, ``all``."""


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="another checkout, whose STGCHB.load is measured in turn, too")
    parser.add_argument("--workers", type=int, default=4, help="number of workers (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that does not (default: 3)")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="local_workers_") as folder:
        prepare(Path(folder))
        found = measure(Path(folder) / "model", arguments)
    text = table(found, arguments.workers)
    print(text)
    if arguments.docs:
        write_table(arguments.docs, "local_workers", text)


def measure(model: Path, arguments: argparse.Namespace) -> dict[str, list[Workers]]:
    """Start workers in turn in each way, in every round; the first round fills the system's memory of files."""
    ways = {name: None for name in WAYS if not name.endswith("before")}
    if arguments.base is not None:
        ways = {next(iter(WAYS)): arguments.base} | ways
    found: dict[str, list[Workers]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, source in ways.items():
            one = started(model, name, source, arguments.workers)
            if number:
                found[name].append(one)
    return found


def started(model: Path, way: str, source: Path | None, n_workers: int) -> Workers:
    """Start workers in a fresh process and let each load the model."""
    start, load = WAYS[way]
    code = PROCESS.format(start=start, load=load)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if source is not None:
        environment["PYTHONPATH"] = str(source / "src")
    command = [sys.executable, "-W", "ignore", "-c", code, str(model), str(n_workers)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"No worker loaded the model, {way}: {ran.stderr[-2000:]}")
    found: Workers = json.loads(lines[0])
    return found


def table(found: Mapping[str, Sequence[Workers]], n_workers: int) -> str:
    """Format medians, and the medians of the ratios to the first row, round by round."""
    import torch

    base = next(iter(found.values()))
    lines = [
        f"| {n_workers} workers | s until all have the model | MiB of one | of the first row | its own | of all |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rounds in found.items():
        values = {key: median(one[key] for one in rounds) for key in rounds[0]}
        part = median(a["mib"] / b["mib"] for a, b in zip(rounds, base, strict=True))
        lines.append(
            f"| {name} | {values['wall_s']:.1f} | {values['mib']:,.0f} | {part:.2f} | {values['own']:,.0f} | "
            f"{values['all']:,.0f} |"
        )
    where = f"{platform.machine()}, {os.cpu_count()} cores, one thread a worker; Python {platform.python_version()}"
    return "\n".join([*lines, "", f"Medians of {len(base)} rounds. {where}, torch {torch.__version__}."]) + "\n"


if __name__ == "__main__":
    main()
