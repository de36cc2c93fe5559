"""Fixtures that several rooms share."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from _pytest.logging import catching_logs

from forks import ForkServer, fork_context
from hub_server import Hub, running_hub
from trainings import (
    SMALL_TEXTURE_PX,
    choose_panels_once,
    draw_sections_once,
    narrow_resnet,
    set_texture_patches,
    shorten_trainings,
    shrink_patches,
)

if TYPE_CHECKING:
    # The process that hands out the tests reads this file, too, and has no use for it.
    from anndata import AnnData

os.environ.setdefault("MPLBACKEND", "agg")
# A shell that runs the tests in the background has Ctrl-C ignored, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Lightning asks for the entry points of all packages whenever it makes a trainer: a fifth of the time of a short
# training. It takes this function from here when it is imported.
vars(importlib.metadata)["entry_points"] = functools.cache(importlib.metadata.entry_points)

ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
"""This process runs some of the tests, whose results another one collects."""
if ONE_OF_SEVERAL:
    # After what else is to be done at the end, since it was registered later. Python would take the libraries apart,
    # object by object, for seconds.
    atexit.register(os._exit, 0)

# How long an example takes is a matter of what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

FORKING = {"programs", "forked_workers"}
"""Fixtures that need a process that imports the libraries, which each process that runs tests has for itself."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that need such a process first: pytest-xdist then gives them all to one of its own."""
    items.sort(key=lambda item: FORKING.isdisjoint(getattr(item, "fixturenames", ())))


# Nothing of what is imported is garbage. Collection is not disabled: dask, imported meanwhile, would leave it so.
gc.set_threshold(0)


def pytest_collection_finish() -> None:
    """Spare the libraries from garbage collection: passing over them takes a tenth of the time of all tests."""
    gc.freeze()
    # Garbage is looked for a thirtieth as often as by default: what is found alive is next to all.
    gc.set_threshold(20_000)
    # Torch looks for a driver each time that it is asked for GPUs, as every training does.
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.cuda.device_count = functools.cache(torch.cuda.device_count)
        # The seed of a device that is not there is kept for it, with a stack trace that takes milliseconds.
        for devices in (torch.cuda, torch.xpu):
            if not devices.is_available():
                devices.manual_seed_all = lambda seed: None
    # Loggers that do not hand on their records, as torch's sixty, would have to be watched each by itself.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True
    catching_logs.__enter__ = _watch_root


def _watch_root(watching: catching_logs[Any]) -> Any:
    """Watch the logger to which all others hand on their records.

    pytest would look through the thousand others, six times for each test, for some that do not.
    """
    root = logging.getLogger()
    root.addHandler(watching.handler)
    watching.attached_loggers = [root]
    if watching.level is not None:
        watching.handler.setLevel(watching.level)
        watching.orig_level = root.level
        root.setLevel(min(root.level, watching.level))
    return watching.handler


_MANY_MODULES = 200
_frozen = 0
"""Number of modules that are spared from garbage collection."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Spare libraries that tests import, too: scvi-tools collects garbage after each training that is interrupted."""
    global _frozen
    if len(sys.modules) - _frozen > _MANY_MODULES:
        _frozen = len(sys.modules)
        gc.collect(1)
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    # pytest collects garbage at its end.
    gc.freeze() if ONE_OF_SEVERAL else gc.unfreeze()


def _shared(*parts: str) -> Path:
    """Path inside the folder of real data, or a skip that says where it was looked for."""
    root = Path(os.environ.get("ST_GCHB_SHARED", Path(__file__).parents[2] / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real tissue is not here: {path} (set ST_GCHB_SHARED to the folder that holds data/ and weights/)")
    return path


@pytest.fixture(scope="session")
def her2st_path() -> Path:
    return _shared("data", "her2st")


@pytest.fixture(scope="session")
def dlpfc_path() -> Path:
    return _shared("data", "dlpfc")


@pytest.fixture(scope="session")
def visium_lung_path() -> Path:
    return _shared("data", "visium_lung")


@pytest.fixture(scope="session")
def weights_path() -> Path:
    return _shared("weights", "mobilenet_v2_imagenet.safetensors")


@pytest.fixture(scope="session")
def reader_fixtures_path() -> Path:
    return _shared("data", "reader_fixtures")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> ForkServer:
    """Start Python programs in processes of their own, without the seconds that imports take."""
    return ForkServer(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[None]:
    """Let the workers of dask's clusters be forked of a process that has imported the libraries."""
    import dask
    import distributed  # noqa: F401  # brings dask's defaults

    fork_context()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


@pytest.fixture(scope="session")
def _tissue() -> AnnData:
    import pandas as pd

    import st_gchb

    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=40, seed=5)
    adata.obs["patient"] = pd.Categorical(adata.obs["slice"].map({"S1": "P1", "S2": "P1", "S3": "P2"}))
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    return adata


@pytest.fixture
def tissue(_tissue: AnnData) -> AnnData:
    """Three small slices of two patients with features, for evaluations; some rooms have tissue of their own."""
    return _tissue.copy()


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are trained for an epoch or two."""
    shorten_trainings(monkeypatch)


@pytest.fixture
def small_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained encoders are given small patches."""
    shrink_patches(monkeypatch)


@pytest.fixture
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest ResNet has few weights."""
    narrow_resnet(monkeypatch)


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are written with few pixels: for tests of which files there are, and what is in them at a glance.

    Nor are their parts moved apart, for which all text is laid out twice more.
    """
    from matplotlib.figure import Figure

    write = Figure.savefig

    def coarse(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        write(figure, *arguments, **options | {"dpi": min(72, options.get("dpi", 72)), "bbox_inches": None})

    monkeypatch.setattr(Figure, "savefig", coarse)


@pytest.fixture
def sketched_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not rendered, which takes most of their time; the same figure still gives the same file."""
    from matplotlib.figure import Figure

    from pictures import sketch

    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: sketch(figure, path))


@pytest.fixture
def watched_windows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Bands of windows in the order in which they are read, each of which says how many bytes it held."""
    from st_gchb.pp.patches import _reader, _window_plan

    made: list[Any] = []

    class Watched(_window_plan.Windows):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(_reader, "Windows", Watched)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A model hub on this machine, with a cache of its own."""
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        # Before it goes on with a broken download, the client waits for a second.
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        yield running


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's cache; one folder a run, so that features are computed once."""
    cache = tmp_path_factory.getbasetemp() / "st_gchb_cache"
    cache.mkdir(exist_ok=True)
    monkeypatch.setenv("ST_GCHB_CACHE", str(cache))


@pytest.fixture(autouse=True, scope="session")
def _loose_png() -> Iterator[None]:
    """PNG files are packed less tightly, which takes a third of the time and changes no pixel."""
    from PIL import Image

    save = Image.Image.save

    def loose(image: Image.Image, fp: Any, format: str | None = None, **options: Any) -> None:
        if (format or Path(str(fp)).suffix[1:]).upper() == "PNG":
            options.setdefault("compress_level", 1)
        save(image, fp, format, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "save", loose)
        yield


@pytest.fixture(autouse=True, scope="session")
def _small_texture_patches() -> Iterator[None]:
    """The texture encoder is given smaller patches: most tests take it, for a tenth of the time of all."""
    with pytest.MonkeyPatch.context() as patch:
        set_texture_patches(patch, SMALL_TEXTURE_PX)
        yield


@pytest.fixture(autouse=True, scope="session")
def _sections_drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if ONE_OF_SEVERAL else own) / "sections"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        draw_sections_once(patch, folder)
        yield


@pytest.fixture(autouse=True, scope="session")
def _panels_chosen_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        choose_panels_once(patch)
        yield


@pytest.fixture(scope="module")
def whole_texture_patches(_small_texture_patches: None) -> Iterator[None]:
    """The texture encoder is given the patches that users give it: for numbers that other runs give, too."""
    with pytest.MonkeyPatch.context() as patch:
        set_texture_patches(patch)
        yield


class _SameThread:
    """The parts of asyncio, of which functions that block are called at once instead of by another thread."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def to_thread(function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


@pytest.fixture(autouse=True, scope="session")
def _zarr_in_one_thread() -> Iterator[None]:
    """Zarr reads and writes each of the many small files of a table by its event loop itself.

    The files are the same; to wake another thread for each of them takes half of the time.
    """
    from zarr.storage import _local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_local, "asyncio", _SameThread())
        yield


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
