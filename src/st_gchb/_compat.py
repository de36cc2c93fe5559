"""The only file with private or experimental names of other packages, and where their versions answer differently."""

from __future__ import annotations

import csv
import lzma
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_gchb._errors import DeviceError

if TYPE_CHECKING:
    from anndata import AnnData

ARRAY_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, OverflowError)
"""What numpy, scipy, h5py, zarr, dask and torch raise where an array cannot be read or made plain.

They have no common base: h5py raises OSError, RuntimeError or KeyError of a file that is closed or damaged, zarr's
codecs RuntimeError and ValueError, numpy ValueError and TypeError of what is no array.
"""


def named_layers(adata: AnnData) -> dict[str, Any]:
    """The layers of an object that have a name, by name: what to list, copy or sort in place of ``adata.layers``.

    From anndata 0.13 on, ``adata.layers`` also holds ``X``, under the key None.
    """
    return {name: values for name, values in adata.layers.items() if name is not None}


def parse_device_args(*arguments: Any, **options: Any) -> Any:
    """scvi-tools' own reading of ``accelerator`` and ``devices``, so that ``load`` takes what ``train`` takes."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from scvi.model._utils import parse_device_args as parse

    try:
        return parse(*arguments, **options)
    except (MisconfigurationException, RuntimeError, ValueError, ImportError) as error:
        # Lightning's own, torch's for a device that is not there, Lightning's for an accelerator that it does not know
        # or whose package is not installed.
        raise DeviceError(
            f"There is no such accelerator or device here: {arguments} ({error}). Pass accelerator='auto' or 'cpu'."
        ) from error


def history_logger() -> Any:
    """scvi-tools' logger that keeps values in memory; left to itself, its trainer pickles them on several devices."""
    from scvi.train._logger import SimpleLogger

    return SimpleLogger()


@contextmanager
def runner_quiet() -> Iterator[None]:
    """Keep a line from users that scvi-tools' runner prints whatever ended a training, and that is about none of it.

    ``Exception raised during training. <class 'NameError'>``: the runner's author printed the type of another error.
    """
    from scvi.train import _trainrunner as module

    def said(*values: object, **options: Any) -> None:
        if values[:1] != ("Exception raised during training.",):
            print(*values, **options)  # noqa: T201 (what the runner prints is its own)

    runner: Any = module
    runner.print = said
    try:
        yield
    finally:
        # A training in another thread may have put it back before.
        vars(runner).pop("print", None)


def fold_batch_norm(module: Any) -> Any:
    """A copy of a torch module in eval mode, traced, with batch norm as part of the convolutions before it."""
    from torch.fx.experimental.optimization import fuse

    return fuse(module)


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


def squidpy_stain(pixels: np.ndarray, mask: np.ndarray, method: str) -> list[float]:
    """Numbers of a picture's stain on a mask by squidpy's ``fit_stain_reference``, which is experimental.

    Hematoxylin's and eosin's optical densities, and their 99 % quantiles; for ``"reinhard"`` means and standard
    deviations. RuntimeError where the dyes found are not those of H&E.
    """
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel
    from squidpy.experimental.im import fit_stain_reference

    from st_gchb._logging import others_quiet

    with others_quiet():
        image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))
        tissue = Labels2DModel.parse(mask.astype(np.uint8), dims=("y", "x"))
        sdata = SpatialData(images={"slide": image}, labels={"tissue": tissue})
        found = fit_stain_reference(sdata, "slide", method=method, tissue_mask_key="tissue")
    parts = (found.mu, found.sigma) if method == "reinhard" else (found.stain_matrix[:, :2].T, found.max_concentrations)
    return [float(value) for part in parts for value in np.ravel(part)]


def store_format(store: Path) -> Any:
    """Format in which elements of a SpatialData store are written: that of the store, which may be an older one."""
    import zarr
    from spatialdata._io.format import SpatialDataContainerFormats

    attributes: dict[str, Any] = dict(zarr.open_group(store, mode="r").attrs)
    return SpatialDataContainerFormats[attributes.get("spatialdata_attrs", {}).get("version", "0.1")]


def read_errors() -> tuple[type[Exception], ...]:
    """What the libraries that read files raise on damaged ones.

    A damaged byte turns up wherever a library first trips over it, so most of these are Python's own types. The others
    derive from Exception alone.
    """
    from anndata._io.specs.registry import IORegistryError
    from openslide import OpenSlideError
    from PIL.Image import DecompressionBombError
    from pyarrow import ArrowException

    python: tuple[type[Exception], ...] = (
        OSError,  # truncated files; h5py, Pillow, gzip
        EOFError,  # gzip
        ValueError,  # pandas, JSON, zarr, numpy; UnicodeDecodeError
        TypeError,  # elements of another kind than their description says
        LookupError,  # h5py's, zarr's and spatialdata's missing parts
        AttributeError,  # a group where an array was expected, and the other way round
        ArithmeticError,  # sizes that overflow or are zero
        AssertionError,  # spatialdata and spatialdata-io check with assertions
        RuntimeError,  # h5py's and numcodecs' codecs; NotImplementedError
        MemoryError,  # a damaged shape that asks for more than there is
        SyntaxError,  # Pillow's PNG; XML
        BufferError,  # codecs, of sizes that do not fit
        ImportError,  # imagecodecs and Pillow, of a codec that is not built in
        struct.error,  # headers that end too early
        csv.Error,  # a field of more characters than csv takes
        zlib.error,
        lzma.LZMAError,
    )
    return (*python, IORegistryError, ArrowException, OpenSlideError, DecompressionBombError)
