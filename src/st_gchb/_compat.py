"""Private and experimental names of other packages, and differences between their versions.

No other file of the package may use such names, so that a new version of a dependency affects this file alone.
"""

from __future__ import annotations

import csv
import importlib
import lzma
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from st_gchb._errors import DeviceError

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

ARRAY_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, OverflowError)
"""Exceptions of numpy, scipy, h5py, zarr, dask and torch for arrays that cannot be read or converted.

They have no common base: h5py raises OSError, RuntimeError or KeyError for a closed or damaged file, zarr's codecs
raise RuntimeError and ValueError, and numpy raises ValueError and TypeError for objects that are not arrays.
"""


def named_layers(adata: AnnData) -> dict[str, Any]:
    """Return the layers of an object that have a name, to list, copy or sort instead of ``adata.layers``.

    Since anndata 0.13, ``adata.layers`` also holds ``X``, under the key None.
    """
    return {name: values for name, values in adata.layers.items() if name is not None}


def parse_device_args(*arguments: Any, **options: Any) -> Any:
    """Parse ``accelerator`` and ``devices`` as scvi-tools does, so that ``load`` accepts the same values as ``train``.

    Raises
    ------
    DeviceError
        The accelerator is unknown, or the device is not available.
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from scvi.model._utils import parse_device_args as parse

    try:
        return parse(*arguments, **options)
    except (MisconfigurationException, RuntimeError, ValueError, ImportError) as error:
        # In this order: Lightning's own error, torch's for a device that is not available, and Lightning's for an
        # accelerator that is unknown or whose package is not installed.
        raise DeviceError(
            f"There is no such accelerator or device here: {arguments} ({error}). Pass accelerator='auto' or 'cpu'."
        ) from error


class History:
    """Record of logged values with the methods of the one in scvi-tools' in-memory logger.

    That one sets each value in a data frame, which in a short training takes as long as a step does. Here data frames
    are made when they are asked for.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[Any, float]] = {}
        self._axis: dict[str, str] = {}

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Record nothing, as scvi-tools does."""

    def save(self) -> None:
        """Write nothing, as scvi-tools does."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record values of a step or, if they name it, of an epoch."""
        axis = next((name for name in ("step", "epoch") if name in metrics), "step")
        time = metrics.get(axis, step)
        for name, value in metrics.items():
            if name != axis:
                self._axis.setdefault(name, axis)
                self._values.setdefault(name, {})[time] = float(value)

    @property
    def data(self) -> dict[str, pd.DataFrame]:
        """Return one data frame per name, with one row per step or epoch."""
        import pandas as pd

        return {
            name: pd.DataFrame(
                {name: list(values.values())}, index=pd.Index(list(values), name=self._axis[name]), dtype=object
            )
            for name, values in self._values.items()
        }

    @property
    def points(self) -> dict[str, list[list[float]]]:
        """Return pairs of step or epoch and value, by name."""
        return {name: [[int(time), value] for time, value in values.items()] for name, values in self._values.items()}

    def restore(self, points: dict[str, list[list[float]]]) -> None:
        """Record the values of the epochs of an earlier training, as :attr:`points` gives them."""
        for name, values in points.items():
            for epoch, value in values:
                self.log_metrics({"epoch": epoch, name: value})


def history_logger() -> Any:
    """Create scvi-tools' in-memory logger; the trainer's default logger pickles the values on several devices."""
    from scvi.train._logger import SimpleLogger

    logger = SimpleLogger()
    logger._experiment = History()
    return logger


def log_again(plan: Any, name: str, value: Any, batch_size: int) -> bool:
    """Log a value that the same hook of a Lightning module logged in an earlier epoch, with the same options.

    ``LightningModule.log`` copies the description of a value each time, which takes longer than all else that is done
    for it. It must have logged another value in the same call of the hook, which begins the epoch's record.

    Returns
    -------
    bool
        False if the value is new and still to be logged.
    """
    results: Any = getattr(plan.trainer, "_results", None)
    key = f"{plan._current_fx_name}.{name}"
    if not results or results.dataloader_idx is not None or key not in results:
        return False
    if results[key].value.device != value.device:
        return False
    results.update_metrics(key, value, batch_size)
    return True


@contextmanager
def driver_sought_once() -> Iterator[None]:
    """Keep torch from looking for the driver of a GPU at every step of an optimizer, on a machine that has none.

    Lightning has it ask the driver's library, which it cannot load, instead of CUDA, which remembers the answer.
    """
    import torch

    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    if before is None or torch.cuda.is_available():
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ[name] = before


@contextmanager
def runner_quiet() -> Iterator[None]:
    """Suppress a misleading line that scvi-tools' training runner prints after any exception.

    The line names ``NameError``, whatever the type of the actual exception.
    """
    from scvi.train import _trainrunner as module

    def said(*values: object, **options: Any) -> None:
        if values[:1] != ("Exception raised during training.",):
            print(*values, **options)  # noqa: T201 (the runner's other output is unchanged)

    runner: Any = module
    runner.print = said
    try:
        yield
    finally:
        # A training run in another thread may have restored it already.
        vars(runner).pop("print", None)


def fold_batch_norm(module: Any) -> Any:
    """Return a traced copy of a torch module in eval mode, with batch norm folded into the convolutions before it."""
    from torch.fx.experimental.optimization import fuse

    return fuse(module)


def resample_into(images: np.ndarray, resampled: np.ndarray) -> None:
    """Resample images as :func:`torch.nn.functional.interpolate` does, bilinearly with antialiasing.

    That one makes a new array for the result. The C library of Linux takes the memory of one that is made in a thread
    from the system each time, which clears it.

    Parameters
    ----------
    images
        Images, ``(n, h, w, 3)`` uint8.
    resampled
        Array for them in another size, ``(n, new_h, new_w, 3)`` uint8.
    """
    import torch

    given, out = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in (images, resampled))
    torch.ops.aten._upsample_bilinear2d_aa.out(given, list(resampled.shape[1:3]), False, None, None, out=out)


def cpu_supports(precision: str) -> bool:
    """Return whether the CPU computes in a half precision, ``"bfloat16"`` or ``"float16"``, in hardware.

    Otherwise torch emulates it, which is slow. Where torch does not tell, the answer is True.
    """
    import torch

    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[precision]
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is None or bool(supported())


class _Deferred(ModuleType):
    """Stand-in for ``torch._dynamo.utils`` while torchvision is imported, see :func:`torchvision_models`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "is_compile_supported":
            return lambda device: getattr(_imported(self), name)(device)
        return getattr(_imported(self), name)


def _imported(stand_in: ModuleType) -> ModuleType:
    """Import the module that a stand-in stands for."""
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]
    return importlib.import_module(stand_in.__name__)


def torchvision_models() -> ModuleType:
    """Import ``torchvision.models`` without torch's compiler.

    torchvision asks the compiler one question, in a function of object detection, and imports it for that: half of the
    time that an encoder takes to start, and 150 MB of every process. The question is put when the function is called.
    """
    name = "torch._dynamo.utils"
    stand_in = None
    if name not in sys.modules and "torchvision" not in sys.modules:
        sys.modules[name] = stand_in = _Deferred(name)
    try:
        return importlib.import_module("torchvision.models")
    finally:
        if stand_in is not None and sys.modules.get(name) is stand_in:
            del sys.modules[name]


class _PydataArray(type):
    """Type whose instances are pydata's sparse arrays, known without importing their package."""

    def __subclasscheck__(cls, other: type) -> bool:
        base = getattr(sys.modules.get("sparse"), "SparseArray", None)
        return base is not None and issubclass(other, base)

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls.__subclasscheck__(type(instance))


def import_dask_without_numba() -> None:
    """Import dask's arrays, which anndata needs, without pydata's sparse arrays and the compiler that they bring.

    dask imports them to know their type: 80 MB of every process, and half a second of its start. Here it knows the type
    as soon as someone else imports them.
    """
    if "dask.array" in sys.modules or "sparse" in sys.modules:
        return
    import dask

    if dask.config.get("array.query-planning", False):
        # Its registry takes no type that is not there yet.
        return
    # None, which is what keeps a package from being imported.
    modules: dict[str, Any] = sys.modules
    modules["sparse"] = None
    try:
        array = importlib.import_module("dask.array")
    finally:
        del modules["sparse"]
    array.register_chunk_type(_PydataArray("PydataArray", (), {}))


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore torch's number of threads after a block that may start numba.

    numba's first parallel loop sets the number of OpenMP threads of the whole process to the number of cores. torch
    shares this setting, so a process started with ``OMP_NUM_THREADS=1`` would then compete with its neighbors.
    """
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def squidpy_tissue(pixels: np.ndarray) -> np.ndarray:
    """Compute the tissue mask ``(h, w)`` of an image ``(h, w, 3)`` with squidpy's experimental ``detect_tissue``."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from squidpy.experimental.im import detect_tissue

    from st_gchb._logging import others_quiet

    with others_quiet():
        image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))
        labels = detect_tissue(SpatialData(images={"slide": image}), "slide", inplace=False)
    return np.asarray(labels) > 0


def squidpy_stain(pixels: np.ndarray, mask: np.ndarray, method: str) -> list[float]:
    """Estimate the stain of an image within a mask with squidpy's experimental ``fit_stain_reference``.

    Parameters
    ----------
    pixels
        RGB image, ``(h, w, 3)``.
    mask
        Tissue mask, ``(h, w)``.
    method
        Method of squidpy, such as ``"reinhard"``.

    Returns
    -------
    list of float
        Optical densities of hematoxylin and eosin, then their 99 % quantiles; for ``"reinhard"``, means and standard
        deviations.

    Raises
    ------
    RuntimeError
        The stains found are not hematoxylin and eosin.
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
    """Return the format in which elements are written to a SpatialData store: the store's own, even if it is old."""
    import zarr
    from spatialdata._io.format import SpatialDataContainerFormats

    attributes: dict[str, Any] = dict(zarr.open_group(store, mode="r").attrs)
    return SpatialDataContainerFormats[attributes.get("spatialdata_attrs", {}).get("version", "0.1")]


def store_versions() -> list[str]:
    """List the versions of SpatialData's store format that the installed spatialdata knows."""
    from spatialdata._io.format import SpatialDataContainerFormats

    return sorted(map(str, SpatialDataContainerFormats))


def read_errors() -> tuple[type[Exception], ...]:
    """Collect the exceptions that file-reading libraries raise for damaged files.

    A damaged byte can cause an error anywhere in a library, so most of these are built-in types. The others derive from
    Exception directly.
    """
    from anndata._io.specs.registry import IORegistryError
    from openslide import OpenSlideError
    from PIL.Image import DecompressionBombError
    from pyarrow import ArrowException
    from tifffile import TiffFileError

    python: tuple[type[Exception], ...] = (
        OSError,  # truncated files; h5py, Pillow, gzip
        EOFError,  # gzip
        ValueError,  # pandas, JSON, zarr, numpy; UnicodeDecodeError
        TypeError,  # elements of a kind other than the one declared
        LookupError,  # missing parts, in h5py, zarr and spatialdata
        AttributeError,  # a group where an array was expected, and the other way round
        ArithmeticError,  # sizes that overflow or are zero
        AssertionError,  # spatialdata and spatialdata-io check with assertions
        RuntimeError,  # h5py's and numcodecs' codecs; NotImplementedError
        MemoryError,  # a damaged shape that needs more memory than there is
        SyntaxError,  # Pillow's PNG; XML
        BufferError,  # codecs, for sizes that do not match
        ImportError,  # imagecodecs and Pillow, for a codec that is not built in
        struct.error,  # truncated headers
        csv.Error,  # a field that is longer than csv's limit
        zlib.error,
        lzma.LZMAError,
    )
    return (*python, IORegistryError, ArrowException, OpenSlideError, DecompressionBombError, TiffFileError)


def lazy_table(table: h5py.Dataset, rows_at_once: int) -> Any:
    """Return an array of dask that reads a table of an .h5ad file when it is computed; the file need not stay open.

    The reader is one of anndata's experimental ones.
    """
    from anndata.experimental import read_elem_lazy

    return read_elem_lazy(table, chunks=(rows_at_once, table.shape[1]))
