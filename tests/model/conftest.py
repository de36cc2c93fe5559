"""A tiny tissue with a known truth, a model trained on it once, and a check that nothing of the caller's changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import st_gchb
from st_gchb.model import STGCHB

N_PANEL = 25


@pytest.fixture(scope="session")
def tissue() -> AnnData:
    """Three slices of about 45 spots and 40 genes, with features; not to be changed."""
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=40, seed=3)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    rng = np.random.default_rng(0)
    adata.obsm["cell_types"] = pd.DataFrame(
        rng.random((adata.n_obs, 2)), index=adata.obs_names, columns=["tumor", "immune"]
    )
    adata.obsm["signed"] = rng.normal(size=(adata.n_obs, 3))
    return adata


@pytest.fixture(scope="session")
def _registered(tissue: AnnData) -> AnnData:
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    return adata


@pytest.fixture(scope="session")
def model(_registered: AnnData) -> STGCHB:
    """Trained on S1 and S2 for two epochs; not to be trained further."""
    model = STGCHB(_registered, n_top_genes=N_PANEL, k=30)
    model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    return model


@pytest.fixture
def reference(tissue: AnnData) -> AnnData:
    """S1 and S2 with features, not registered."""
    return tissue[tissue.obs["slice"] != "S3"].copy()


@pytest.fixture
def held_out(tissue: AnnData) -> AnnData:
    """S3 with counts and features."""
    return one_slice(tissue, "S3")


@pytest.fixture
def query(tissue: AnnData) -> AnnData:
    """S3 as a slide with H&E alone: no genes, no features."""
    part = one_slice(tissue, "S3")
    positions, images = part.obsm["spatial"], part.uns["spatial"]
    return AnnData(obs=part.obs[["slice"]].copy(), obsm={"spatial": positions}, uns={"spatial": images})


def one_slice(tissue: AnnData, name: str) -> AnnData:
    part = tissue[tissue.obs["slice"] == name].copy()
    part.uns["spatial"] = {name: part.uns["spatial"][name]}
    return part


@pytest.fixture
def unchanged() -> Callable[..., AbstractContextManager[None]]:
    """``with unchanged(adata):`` fails where anything in the objects differs afterwards."""

    @contextmanager
    def check(*objects: Any) -> Iterator[None]:
        before = [dict(parts_of(thing)) for thing in objects]
        yield
        after = [dict(parts_of(thing)) for thing in objects]
        for was, now in zip(before, after, strict=True):
            assert [key for key in was if key not in now] == []
            assert [key for key in now if key not in was] == []
            assert [key for key in was if was[key] != now[key]] == []

    return check


def parts_of(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of an AnnData, SpatialData or mapping with a place and something that tells it from all others."""
    if hasattr(value, "tables") and hasattr(value, "shapes"):
        elements = {name: (kind, element) for kind, name, element in value.gen_elements()}
        yield f"{where}elements", {name: (kind, id(element)) for name, (kind, element) in elements.items()}
        for name, (_, element) in elements.items():
            yield f"{where}{name}.attrs", sorted(map(str, element.attrs.items())) if hasattr(element, "attrs") else None
        for name, table in value.tables.items():
            yield from parts_of(table, f"{where}{name}")
    elif isinstance(value, AnnData):
        yield f"{where}.view", value.is_view
        for name in ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"):
            yield from parts_of(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, Mapping):
        yield f"{where}.keys", list(value)
        for key in value:
            yield from parts_of(value[key], f"{where}[{key!r}]")
    elif isinstance(value, pd.DataFrame):
        yield f"{where}.index", list(value.index)
        for key in value:
            yield f"{where}[{key!r}]", (str(value[key].dtype), value[key].tolist())
    elif sparse.issparse(value):
        for name in ("data", "indices", "indptr"):
            yield from parts_of(getattr(value, name), f"{where}.{name}")
        yield f"{where}.format", (value.format, value.shape)
    elif isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype == object else hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
        yield where, (value.dtype.str, value.shape, content)
    else:
        yield where, (type(value).__name__, repr(value))
