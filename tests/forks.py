"""Programs in processes of their own that do not import the libraries anew.

Importing them takes longer than most programs of the tests. A process that has imported them is forked for each
program and for each worker of dask, which then is a process like any other, with its own memory and signals. It ends
as ``multiprocessing`` ends processes, without what ``atexit`` was given. Tests of that, and of what happens while
libraries are imported, need ``subprocess``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from trainings import SMALL_TEXTURE_PX, set_texture_patches

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fork_context() -> ForkServerContext:
    """Return the context of multiprocessing whose processes find the libraries and most of the package imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # dask names other modules to import, which counts only before the server runs.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


_PATIENCE = 600
"""Seconds after which a program is given up."""


@dataclass
class Program:
    """A program that runs, or that has ended.

    Parameters
    ----------
    process
        Its process.
    stdout_path, stderr_path
        Files to which it writes.
    """

    process: ForkServerProcess
    stdout_path: Path
    stderr_path: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()


class ForkServer:
    """A process with the libraries imported, of which programs are forked."""

    def __init__(self, folder: Path) -> None:
        self.context, self.folder, self.count = fork_context(), folder, 0

    def start(self, code: str, *argv: str, cwd: Path, env: Mapping[str, str] | None = None) -> Program:
        """Start a program, as ``python -c code argv`` would."""
        self.count += 1
        paths = [self.folder / f"{self.count}.{name}" for name in ("stdout", "stderr")]
        for path in paths:
            path.touch()
        job = {"code": code, "argv": argv, "cwd": cwd, "env": dict(os.environ if env is None else env), "files": paths}
        process = self.context.Process(target=become, args=(job,))
        process.start()
        return Program(process, *paths)

    def wait(self, program: Program) -> Program:
        """Wait until a program has ended; one that hangs is killed, which its return code tells."""
        program.process.join(_PATIENCE)
        if program.returncode is None:
            program.process.kill()
            program.process.join()
        return program

    def run(self, code: str, *argv: str, cwd: Path, env: Mapping[str, str] | None = None) -> Program:
        """Run a program to its end."""
        return self.wait(self.start(code, *argv, cwd=cwd, env=env))


def become(job: dict[str, Any]) -> None:
    """Run the program of a job in this process."""
    # multiprocessing passes over what cannot be imported and says nothing.
    assert "preloaded" in sys.modules
    warnings.simplefilter("ignore")
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for target, path in zip((1, 2), job["files"], strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, target)
        os.close(file)
    sys.argv, sys.path[0] = ["-c", *job["argv"]], ""
    # As in the process of the tests.
    set_texture_patches(pytest.MonkeyPatch(), SMALL_TEXTURE_PX)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(job["code"], "<string>", "exec"), vars(module))
