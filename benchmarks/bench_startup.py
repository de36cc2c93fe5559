"""Start-up time of the package and of its command line, relative to importing scvi-tools."""

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
    "st-gchb -h": "import sys; sys.argv = ['st-gchb', '-h']; from st_gchb.cli import main; sys.exit(main())",
}
ROUNDS = 5


def started(code: str) -> Sample:
    """Measure a fresh interpreter that runs this code, wall-clock and CPU seconds."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall, "cpu_s": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


@pytest.fixture(scope="module")
def starts():
    """Measure all commands alternately in several rounds, after one round that fills the caches."""
    rounds = [{name: started(code) for name, code in COMMANDS.items()} for _ in range(ROUNDS + 1)]
    return {name: [one[name] for one in rounds[1:]] for name in COMMANDS}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != SCVI])
@pytest.mark.benchmark(group="start-up", timer=CLOCK)
def bench_startup(measure, starts, command):
    """Report a command relative to importing scvi-tools."""
    measure.replay(starts[command], spots=0, case=command, limits={SCVI: starts[SCVI]})
