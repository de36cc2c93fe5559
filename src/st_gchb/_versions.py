"""Versions and hardware for bug reports, without importing anything heavy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_NAME = "st-gchb"
_EXTRAS = ("timm", "transformers", "faiss", "plot")
"""Extras that users install; those of tests and documentation say nothing about a bug."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def print_versions(*, file: TextIO | None = None) -> None:
    """Print the versions of the package and of the packages it depends on, and the machine, for a bug report.

    Versions are read from the installed packages' metadata, so nothing heavy is imported. PyTorch alone knows of GPUs
    and of its threads: they are printed where it has been imported before.

    Parameters
    ----------
    file
        Text stream to print to. By default standard output.

    Examples
    --------
    >>> import io, st_gchb
    >>> text = io.StringIO()
    >>> st_gchb.print_versions(file=text)
    >>> text.getvalue().split()[0]
    'st-gchb'
    """
    groups = ([(_NAME, _version(_NAME))], list(_dependencies()), list(_machine()))
    width = max(len(name) for group in groups for name, _ in group)
    text = "\n\n".join("\n".join(f"{name:<{width}}  {value}" for name, value in group) for group in groups)
    print(text, file=sys.stdout if file is None else file)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _dependencies() -> Iterator[tuple[str, str]]:
    """Yield name and version of each required package, and of those of the users' extras."""
    names = set()
    for requirement in importlib.metadata.requires(_NAME) or []:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[A-Za-z0-9][\w.-]*", requirement)
        if name and (extra is None or extra[1] in _EXTRAS):
            names.add(name[0])
    yield from ((name, _version(name)) for name in sorted(names, key=str.lower))


def _machine() -> Iterator[tuple[str, str]]:
    """Yield what is known of Python, system, processor, threads and GPU."""
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", platform.platform()
    yield "processor", _processor()
    yield "threads", _threads()
    yield "GPU", _gpu()


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # on Linux, platform.processor() says no more than the architecture
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return model[1].strip() if model else platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def working_threads() -> int:
    """Return the number of threads that share work: torch's where it is imported, and no more than usable cores.

    A process that shares its machine with others, such as a worker of a cluster, is told so by torch's number.

    Examples
    --------
    >>> from st_gchb._versions import working_threads
    >>> working_threads() >= 1
    True
    """
    torch = sys.modules.get("torch")
    most = usable_cores()
    return most if torch is None else max(min(torch.get_num_threads(), most), 1)


def _threads() -> str:
    told = [f"{usable_cores()} of {os.cpu_count() or 1} cores usable"]
    told += [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if name in os.environ]
    torch = sys.modules.get("torch")
    if torch is not None:
        told.append(f"{torch.get_num_threads()} of PyTorch")
    return ", ".join(told)


def _gpu() -> str:
    torch = sys.modules.get("torch")
    if torch is None:
        return "unknown: torch has not been imported (import torch first)"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda or torch.version.hip})"
    return "Apple MPS" if torch.backends.mps.is_available() else "none that PyTorch can use"
