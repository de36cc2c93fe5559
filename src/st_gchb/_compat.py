"""The only file with private or experimental names of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def parse_device_args(*arguments: Any, **options: Any) -> Any:
    """scvi-tools' own reading of ``accelerator`` and ``devices``, so that ``load`` takes what ``train`` takes."""
    from scvi.model._utils import parse_device_args as parse

    return parse(*arguments, **options)


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Put torch's number of threads back after a block that may start numba.

    numba's first parallel loop sets the number of OpenMP threads of the whole process to that of the cores. torch
    shares it: a process that was told ``OMP_NUM_THREADS=1`` would from then on fight with those beside it.
    """
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
