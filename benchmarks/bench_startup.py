"""What it takes to start, beside the time of importing scvi-tools."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import pytest
from measuring import CLOCK, Sample

SCVI = "import scvi"
COMMANDS = {
    SCVI: "import scvi",
    "import st_gchb": "import st_gchb",
    "st-gchb --help": "import sys; sys.argv = ['st-gchb', '--help']; from st_gchb.cli import main; sys.exit(main())",
}
ROUNDS = 5


def started(code: str) -> Sample:
    """Seconds of a fresh interpreter."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall, "cpu_s": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


@pytest.fixture(scope="module")
def starts():
    """All commands, one after the other, in each of some rounds; a first round fills the caches."""
    rounds = [{name: started(code) for name, code in COMMANDS.items()} for _ in range(ROUNDS + 1)]
    return {name: [one[name] for one in rounds[1:]] for name in COMMANDS}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != SCVI])
@pytest.mark.benchmark(group="start-up", timer=CLOCK)
def bench_startup(measure, starts, command):
    """A fresh interpreter."""
    measure.replay(starts[command], spots=0, case=command, limits={SCVI: starts[SCVI]})
