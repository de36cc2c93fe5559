"""Reading and encoding of patches, relative to their limits: disk, decoder and encoder alone, measured alternately."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tifffile
from measuring import Watch
from PIL import Image
from raw_forward import network_of
from slides import DLPFC_SPOTS, DLPFC_UM_PER_PX, jpeg_slide, tiff_slide

import st_gchb
from st_gchb.pp import get_encoder, read_patches, slices_of

PATCH_UM, INPUT_PX = 150.0, 224
N_ENCODED = {"cpu": 12, "cuda": 40}
"""Rows and columns of the encoded spots, by device: 144 patches on a CPU, 1,600 on a GPU, which take about as long."""
PX_AT_MOST = 10**9


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Write one slice of DLPFC size in full resolution, about 60 megapixels, as a pyramid and as one JPEG."""
    folder = tmp_path_factory.mktemp("slice")
    tiff, jpeg = folder / "slice.tif", folder / "slice.jpg"
    adata = tiff_slide(tiff, DLPFC_SPOTS, DLPFC_UM_PER_PX)
    jpeg_slide(jpeg, DLPFC_SPOTS, DLPFC_UM_PER_PX)
    return {"TIFF": tiff, "JPEG": jpeg}, adata


def forget(path: Path) -> None:
    """Drop the file from the page cache, so that it is read from disk (unless it is on a file system in memory)."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def disk(path: Path) -> None:
    """Read the bytes of the file, without decoding."""
    with path.open("rb", buffering=0) as file:
        while file.read(2**20):
            pass


def decode(path: Path) -> None:
    """Read and decode all pixels of the finest level."""
    if path.suffix in (".tif", ".svs"):
        with tifffile.TiffFile(path) as file:
            for _ in file.pages[0].segments(maxworkers=1):
                pass
        return
    with Image.open(path) as image:
        image.load()


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
@pytest.mark.benchmark(group="limits")
def bench_reading_rate(measure, slides, kind, monkeypatch):
    """Measure reading all patches of a slice, from opening the file to resampled patches."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PX_AT_MOST)
    paths, adata = slides
    path = paths[kind]

    def read() -> None:
        (only,) = slices_of(adata, image=path, um_per_px=DLPFC_UM_PER_PX)
        for _ in read_patches(only, PATCH_UM / DLPFC_UM_PER_PX, INPUT_PX):
            pass

    limits = {"disk read": lambda: disk(path), "read and decode": lambda: decode(path)}
    facts = {"file_mb": path.stat().st_size / 1e6}
    measure(read, spots=adata.n_obs, case=kind, limits=limits, before=lambda: forget(path), **facts)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
@pytest.mark.benchmark(group="limits")
def bench_encoding_rate(measure, slides, name, device):
    """Measure embedding from the file to features, relative to the forward pass on the same batches in memory."""
    paths, adata = slides
    place = (adata.obsm["spatial"] * DLPFC_UM_PER_PX).argsort(axis=0).argsort(axis=0)
    side = round(DLPFC_SPOTS**0.5)
    few = adata[(place < N_ENCODED[device.split(":")[0]] * side).all(axis=1)].copy()
    encoder = get_encoder(name, None)

    def embed() -> None:
        where = {"image": paths["TIFF"], "um_per_px": DLPFC_UM_PER_PX, "patch_um": PATCH_UM}
        st_gchb.pp.embed_patches(few, encoder=encoder, n_views=1, cache=False, device=device, **where)

    caught = network_of(embed)
    # Warm-up: the first run selects kernels.
    caught.forward()
    assert caught.n_patches == few.n_obs, f"{caught.n_patches} patches were seen, of {few.n_obs}"
    with Watch(device) as watch:
        facts = {"batch": max(len(batch) for batch in caught.inputs), "dtype": str(caught.inputs[0].dtype)}
        measure(embed, spots=few.n_obs, case=name, limits={"raw forward": caught.forward}, **facts)
    measure.note(gpu_utilization=watch.mean_utilization)
