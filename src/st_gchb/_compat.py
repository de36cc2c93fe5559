"""The only file with private or experimental names of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def parse_device_args(*arguments: Any, **options: Any) -> Any:
    """scvi-tools' own reading of ``accelerator`` and ``devices``, so that ``load`` takes what ``train`` takes."""
    from scvi.model._utils import parse_device_args as parse

    return parse(*arguments, **options)


def history_logger() -> Any:
    """scvi-tools' logger that keeps values in memory; left to itself, its trainer pickles them on several devices."""
    from scvi.train._logger import SimpleLogger

    return SimpleLogger()


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


def squidpy_tissue(pixels: np.ndarray) -> np.ndarray:
    """Mask ``(h, w)`` of a picture ``(h, w, 3)`` by squidpy's ``detect_tissue``, which is experimental."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from squidpy.experimental.im import detect_tissue

    from st_gchb._logging import others_quiet

    with others_quiet():
        image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))
        labels = detect_tissue(SpatialData(images={"slide": image}), "slide", inplace=False)
    return np.asarray(labels) > 0
