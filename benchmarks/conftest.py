"""Options, fixtures and reports of the benchmarks: sizes, devices, stored measurements, and tables after a run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import rows_of
from measuring import CLOCK, Sample, timed
from tables import all_tables

SEED = 0
REPORT = pytest.StashKey[dict[str, Any]]()
PACKAGES = ("torch", "torchvision", "torch-geometric", "scvi-tools", "anndata", "numpy", "tifffile", "imagecodecs")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("st-gchb")
    group.addoption("--scales", default="1 4 16 64", help="sizes, in slices of DLPFC (default: '1 4 16 64')")
    group.addoption("--device", default="cpu", help="where encoder, training and search run: cpu, cuda")
    group.addoption("--threads", type=int, default=1, help="torch's threads (default: 1)")
    group.addoption("--docs", type=Path, help="folder for the tables, such as docs/results/speed")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    # For processes that benchmarks start; the libraries of this process have already read it.
    os.environ["OMP_NUM_THREADS"] = str(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scale" in metafunc.fixturenames:
        scales = [int(scale) for scale in metafunc.config.getoption("--scales").replace(",", " ").split()]
        # Module scope, so that all benchmarks of one size run consecutively and share its fixtures.
        metafunc.parametrize("scale", scales, ids=[f"{scale}x" for scale in scales], scope="module")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--threads")


class Measure:
    """Interface to pytest-benchmark that also stores CPU time, limits, memory and further facts.

    Times calls, or replays rounds that were timed elsewhere.
    """

    def __init__(self, benchmark: Any, device: str) -> None:
        self.benchmark, self.device = benchmark, device

    def __call__(
        self,
        call: Callable[[], Any],
        *,
        spots: int,
        rounds: int = 3,
        case: str = "",
        limits: Mapping[str, Callable[[], Any]] | None = None,
        before: Callable[[], Any] | None = None,
        **facts: Any,
    ) -> None:
        """Time rounds of a call, each preceded by one call of every limit; ``before`` runs untimed before each call."""
        own: list[Sample] = []
        bounds: dict[str, list[Sample]] = {name: [] for name in limits or {}}

        def prepare() -> None:
            for name, limit in (limits or {}).items():
                if before is not None:
                    before()
                bounds[name].append(timed(limit, self.device))
            if before is not None:
                before()

        self.benchmark.pedantic(lambda: own.append(timed(call, self.device)), setup=prepare, rounds=rounds)
        self._keep(own, spots, case, bounds, [], facts)

    def replay(
        self,
        samples: Sequence[Sample],
        *,
        spots: int,
        case: str = "",
        limits: Mapping[str, Sequence[Sample]] | None = None,
        mib: Sequence[float] = (),
        **facts: Any,
    ) -> None:
        """Report rounds that were timed elsewhere; the benchmark must be marked with ``timer=CLOCK``."""
        left = iter(samples)
        self.benchmark.pedantic(lambda: CLOCK.advance(next(left)["wall_s"]), rounds=len(samples))
        self._keep(samples, spots, case, limits or {}, mib, facts)

    def note(self, **facts: Any) -> None:
        """Add facts that are known only after the rounds."""
        self.benchmark.extra_info["facts"].update(facts)

    def _keep(self, samples: Any, spots: int, case: str, limits: Any, mib: Any, facts: Any) -> None:
        kept = {"spots": spots, "case": case, "device": self.device, "samples": list(samples)}
        self.benchmark.extra_info.update(kept, limits={k: list(v) for k, v in limits.items()}, mib=list(mib))
        self.benchmark.extra_info["facts"] = facts


@pytest.fixture
def measure(benchmark: Any, device: str) -> Measure:
    return Measure(benchmark, device)


# ---- Report of a run ----


def source_folder() -> Path:
    """Return the folder of the measured package, which is another checkout when commits are compared."""
    import st_gchb

    return Path(st_gchb.__file__).parent


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    device = config.getoption("--device")
    machine_info["device"] = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    machine_info["threads"], machine_info["seed"] = config.getoption("--threads"), SEED
    machine_info["load"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    machine_info["versions"] = {"python": machine_info["python_version"]} | {p: metadata.version(p) for p in PACKAGES}


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """Record the commit of the measured source, not that of the benchmarks."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source_folder()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    commit_info["id"] = git("rev-parse", "HEAD")
    commit_info["dirty"] = bool(git("status", "--porcelain", "--", "."))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["tables"] = all_tables(output_json, rows_of(output_json))
    config.stash[REPORT] = output_json


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    report = config.stash.get(REPORT, None)
    if report is None:
        return
    for name, text in report["tables"].items():
        terminalreporter.section(name)
        terminalreporter.write_line(text)
    folder = config.getoption("--docs")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in report["tables"].items():
            (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
