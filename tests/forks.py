"""Programs in processes of their own that do not import the libraries anew.

Importing them takes longer than most programs of the tests. A process that has imported them is forked for each
program, which then is a process like any other, with its own memory, signals and end. Tests of what happens while
libraries are imported need ``subprocess``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


LIBRARIES = ["scvi.train", "spatialdata", "squidpy", "torch_geometric.nn", "torchvision"]
"""Libraries that take seconds to import."""


def fork_context() -> ForkServerContext:
    """Return the context of multiprocessing whose processes find the libraries imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    # dask names other modules to import, which counts only before the server runs.
    forkserver.ensure_running()
    return context


@dataclass
class Program:
    """A program that runs, or that has ended.

    Parameters
    ----------
    pid
        Number of its process.
    stdout_path, stderr_path
        Files to which it writes.
    """

    pid: int
    stdout_path: Path
    stderr_path: Path
    returncode: int | None = None

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()


class ForkServer:
    """A process with the libraries imported, of which programs are forked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        command = [sys.executable, "-W", "ignore", __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, code: str, *argv: str, cwd: Path, env: Mapping[str, str] | None = None) -> Program:
        """Start a program, as ``python -c code argv`` would."""
        self.count += 1
        paths = [self.folder / f"{self.count}.{name}" for name in ("stdout", "stderr")]
        for path in paths:
            path.touch()
        job = {"code": code, "argv": argv, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
        return Program(self._ask(job | {"files": list(map(str, paths))}), *paths)

    def wait(self, program: Program) -> Program:
        """Wait until a program has ended."""
        program.returncode = self._ask({"wait": program.pid})
        return program

    def run(self, code: str, *argv: str, cwd: Path, env: Mapping[str, str] | None = None) -> Program:
        """Run a program to its end."""
        return self.wait(self.start(code, *argv, cwd=cwd, env=env))

    def close(self) -> None:
        """End the process; programs that still run are not waited for."""
        self.process.communicate()

    def _ask(self, job: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(job)}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def serve() -> dict[str, Any]:
    """Fork a process for each job on stdin; returns in such a process, with its job."""
    for name in LIBRARIES:
        importlib.import_module(name)
    from st_gchb.cli import main
    from st_gchb.cohort import predict_slides
    from st_gchb.evaluate import evaluate
    from st_gchb.model import STGCHB
    from st_gchb.pp import embed_patches, spatial_graph

    assert all((main, predict_slides, evaluate, STGCHB, embed_patches, spatial_graph))

    # Programs need not pass over the libraries in search of garbage, until they end.
    gc.freeze()
    atexit.register(gc.unfreeze)
    # A fork has one thread: what others hold would be held for ever.
    assert threading.active_count() == 1, threading.enumerate()
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                return job
        os.write(1, f"{answer}\n".encode())
    os._exit(0)


def become(job: dict[str, Any]) -> None:
    """Run the program of a job in this process, which ends as the program does."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for target, path in zip((1, 2), job["files"], strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, target)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.argv, sys.path[0] = ["-c", *job["argv"]], ""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(job["code"], "<string>", "exec"), vars(module))


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    become(serve())
