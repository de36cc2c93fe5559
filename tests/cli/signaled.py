"""Run the command line in this process, which sends itself signals at a moment that is named.

The moment is the call of a function, ``module:name``, or the import of a module, ``import module``. The process may
have imported what it was forked with: packages to forget are imported anew by the command.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import io
import json
import os
import signal
import sys
import threading
from typing import Any

# Whoever runs the tests in the background, or under nohup, ignores some of them, and so would this process.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
HANDLERS = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def send(names: list[str]) -> None:
    # To the thread in which Python handles signals: sent to the process, they may arrive at another one, and later.
    for name in names:
        signal.pthread_kill(threading.main_thread().ident, getattr(signal, name))


class AtImport(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, signals: list[str]) -> None:
        self.name, self.signals = name, signals

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == self.name and self.signals:
            signals, self.signals = self.signals, []
            send(signals)


def hook(job: dict[str, Any]) -> Any:
    """Send the signals at the job's moment; what undoes it."""
    kind, _, name = job["at"].partition("import ")
    if not kind:
        finder = AtImport(name, job["signals"])
        sys.meta_path.insert(0, finder)
        return lambda: sys.meta_path.remove(finder)
    module, _, path = job["at"].partition(":")
    owner: Any = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    original = getattr(owner, attribute)
    calls = 0

    def at(*values: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == job.get("nth", 1) and job.get("after"):
            original(*values, **options)
            send(job["signals"])
            return None
        if calls == job.get("nth", 1):
            with contextlib.suppress(BaseException) if job.get("swallowed") else contextlib.nullcontext():
                send(job["signals"])
        return original(*values, **options)

    setattr(owner, attribute, at)
    return lambda: setattr(owner, attribute, original)


def forget(packages: list[str]) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]


def main() -> None:
    jobs = json.loads(sys.argv[1])
    forget(jobs[0].get("forget", []))
    from st_gchb.cli import main as command

    for job in jobs:
        if "cache" in job:
            os.environ["ST_GCHB_CACHE"] = job["cache"]
        undo = [hook(one) for one in (job, job.get("first")) if one and "at" in one]
        said, answered = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(answered):
            status = command(job["argv"])
        for one in undo:
            one()
        now = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        found = {
            "status": status,
            "stderr": said.getvalue(),
            "stdout": answered.getvalue(),
            "handlers": "as before" if now == HANDLERS else str(now),
        }
        sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
