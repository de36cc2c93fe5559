"""Tiny slides in files, a model trained once, and a log of what is really computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

import st_gchb
from st_gchb.cohort import _worker as _work
from st_gchb.model import STGCHB

TEXTURE = {"encoder": "texture", "patch_um": 150, "n_views": 1}
READ = {"um_per_px": 1.0, "spacing_um": 150.0}


@pytest.fixture(scope="session")
def tissue() -> anndata.AnnData:
    """Three sections of about 45 spots; not to be changed."""
    return st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=40, seed=4)


@pytest.fixture(scope="session")
def model(tissue, tmp_path_factory) -> Path:
    """Folder of a model trained on two of them."""
    reference = tissue[tissue.obs["slice"] != "S3"].copy()
    st_gchb.pp.embed_patches(reference, **TEXTURE, cache=False)
    STGCHB.setup_anndata(reference, slice_key="slice")
    trained = STGCHB(reference, n_top_genes=20)
    trained.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    folder = tmp_path_factory.mktemp("model") / "model"
    trained.save(folder)
    return folder


@pytest.fixture(scope="session")
def images(tissue, tmp_path_factory) -> list[Path]:
    """Five slides as image files, 1 µm per px: the middles of the sections, for a dozen spots each."""
    folder = tmp_path_factory.mktemp("images")
    pixels = [tissue.uns["spatial"][name]["images"]["hires"][150:650, 150:650] for name in ("S1", "S2", "S3")]
    turned = [np.rot90(pixels[0]), pixels[1][::-1]]
    for index, image in enumerate([*pixels, *turned], start=1):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"A{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def computed(monkeypatch) -> Counter[str]:
    """How often each slide is computed in this process."""
    counts: Counter[str] = Counter()
    make = _work._make

    def counted(slide, *arguments):
        counts[slide.name] += 1
        return make(slide, *arguments)

    monkeypatch.setattr(_work, "_make", counted)
    return counts


@pytest.fixture(scope="session")
def same() -> Callable[[Path, Path], None]:
    """Fails where two results differ in a bit."""

    def check(one: Path, other: Path) -> None:
        first, second = anndata.read_h5ad(one), anndata.read_h5ad(other)
        assert list(first.obs_names) == list(second.obs_names)
        for part in ("layers", "obsm"):
            assert list(getattr(first, part)) == list(getattr(second, part))
            for key, value in getattr(first, part).items():
                np.testing.assert_array_equal(value, getattr(second, part)[key], err_msg=key)
        for key in first.obs:
            assert first.obs[key].tolist() == second.obs[key].tolist(), key

    return check
