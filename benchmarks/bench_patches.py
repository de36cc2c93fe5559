"""Growth of the time and memory of reading and encoding patches with the size of the slide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from measuring import CLOCK, Watch, apart, gpu_mib, resident_kib, timed
from slides import DLPFC_SPOTS, on_image, tiff_slide
from torch import Tensor, nn

import st_gchb
from st_gchb.pp import read_patches, slices_of

UM_PER_PX = 2.0
"""Coarser than DLPFC's images: a slide of 64 times the spots, 24,000 px wide, is read within a minute."""
INPUT_PX = 32
PATCH_UM = 150.0


class Cheap(nn.Module):
    """An image encoder that takes little time, so that superlinear growth of the other steps is visible."""

    input_px = INPUT_PX

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 64, 4, 4), nn.ReLU())

    def transform(self, patches: Tensor) -> Tensor:
        return patches.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


def cheap() -> Cheap:
    torch.manual_seed(0)
    return Cheap()


@pytest.fixture(scope="module")
def slide(scale, tmp_path_factory):
    """Write one slide with as many spots as ``scale`` slices of DLPFC; yield its path and spots."""
    folder = tmp_path_factory.mktemp("slide")
    tiff_slide(folder / "warm.tif", 64, UM_PER_PX)
    path = folder / f"{scale}.tif"
    yield path, tiff_slide(path, scale * DLPFC_SPOTS, UM_PER_PX)
    path.unlink()


def encode(adata, path: Path, encoder, device: str) -> None:
    where = {"image": path, "um_per_px": UM_PER_PX, "patch_um": PATCH_UM}
    st_gchb.pp.embed_patches(adata, encoder=encoder, n_views=1, cache=False, device=device, **where)


def read(adata, path: Path) -> None:
    (only,) = slices_of(adata, image=path, um_per_px=UM_PER_PX)
    for _ in read_patches(only, PATCH_UM / UM_PER_PX, INPUT_PX):
        pass


@pytest.mark.benchmark(group="patches")
def bench_reading(measure, slide, scale):
    """Measure reading all patches of a slide."""
    path, adata = slide
    warm = path.with_name("warm.tif")
    read(on_image(64, UM_PER_PX)[0], warm)
    measure(lambda: read(adata, path), spots=adata.n_obs, rounds=3 if scale < 16 else 1)


@pytest.mark.benchmark(group="patches")
def bench_encoding(measure, slide, scale, device):
    """Measure embedding all patches of a slide with an encoder that takes little time."""
    path, adata = slide
    encoder = cheap()
    encode(on_image(64, UM_PER_PX)[0], path.with_name("warm.tif"), encoder, device)
    measure(lambda: encode(adata, path, encoder, device), spots=adata.n_obs, rounds=3 if scale < 16 else 1)


def encode_apart(path: str, n_spots: int, device: str, threads: int) -> dict:
    """Measure the peak memory of encoding a slide beyond that of encoding a small one, in the current process."""
    torch.set_num_threads(threads)
    encoder, adata = cheap(), on_image(n_spots, UM_PER_PX)[0]
    encode(on_image(64, UM_PER_PX)[0], Path(path).with_name("warm.tif"), encoder, device)
    before = resident_kib()[0]
    with Watch(device) as watch:
        sample = timed(lambda: encode(adata, Path(path), encoder, device), device)
    return {"sample": sample, "own_mib": (watch.own - before) / 1024, "gpu_mib": gpu_mib(device)}


@pytest.mark.benchmark(group="memory", timer=CLOCK)
def bench_encoding_memory(measure, slide, device, threads):
    """Measure the peak of a separate process's own memory, which includes the returned features."""
    path, adata = slide
    found = apart(encode_apart, str(path), adata.n_obs, device, threads)
    features_mib = adata.n_obs * 64 * 4 / 2**20
    facts = {"features_mib": features_mib, "gpu_mib": found["gpu_mib"]}
    measure.replay([found["sample"]], spots=adata.n_obs, mib=[found["own_mib"]], **facts)
