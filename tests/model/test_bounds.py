"""Numbers stay within what the reference has seen, and the alarm rings, however small the reference is."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

import st_gchb
from st_gchb._errors import EncoderError, QueryError, SliceError
from st_gchb.model import STGCHB, fit_appearance, fit_map

SIZES = [10, 25, 35, 48, 77, 250]
"""Spots of each section."""


def features_of(adata: AnnData, values: np.ndarray) -> AnnData:
    query = adata.copy()
    query.obsm["X_patch"] = np.asarray(values, dtype=np.float32)
    return query


@pytest.fixture(scope="module")
def large() -> AnnData:
    """Three sections of at least as many spots, with features."""
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=16, n_cols=19, n_genes=40, um_per_px=2.0, seed=1)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    return adata


@pytest.fixture(scope="module", params=SIZES)
def small(request, large) -> tuple[STGCHB, AnnData, AnnData]:
    """A model of the middles of two sections, these, and that of a third one."""
    names, kept = large.obs["slice"].to_numpy(), []
    for name in ("S1", "S2", "S3"):
        spots = np.flatnonzero(names == name)
        places = large.obsm["spatial"][spots]
        apart = np.linalg.norm(places - np.median(places, axis=0), axis=1)
        kept.append(spots[np.sort(np.argsort(apart, kind="stable")[: request.param])])
    adata = large[np.concatenate(kept)].copy()
    reference, query = (adata[(adata.obs["slice"] == "S3") == third].copy() for third in (False, True))
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=30)
    model.train(max_epochs=1, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    return model, reference, query


def test_what_is_unlike_the_reference_is_flagged_and_bounded(small):
    model, reference, query = small
    x, seen = query.obsm["X_patch"], reference.obsm["X_patch"]
    sides = np.where(np.arange(x.shape[1]) % 2, 1, -1)
    unlike = {
        "zeros": np.zeros_like(x),
        "constant": np.ones_like(x),
        "tenfold": 10 * x,
        "another stain": x + 3 * seen.std(0) * sides,
        "noise": np.random.default_rng(0).normal(size=x.shape),
        "huge": x * 1e4,
    }
    panel, whole = (model.bank_.table(name).bounds for name in (None, "all_genes"))
    for name, features in unlike.items():
        found = model.predict(features_of(query, features), slice_key="slice")
        assert found.obs["st_gchb_outlier"].all(), name
        assert found.obs["st_gchb_confidence"].between(0, 0.9).all(), name
        assert within(found.layers["st_gchb"], panel), name
        everything = model.predict(features_of(query, features), slice_key="slice", layer="all_genes")
        assert within(everything.layers["st_gchb"], whole), name


def test_the_references_own_tissue_is_not_flagged(small):
    model, reference, query = small
    found = model.predict(query, slice_key="slice")
    assert found.obs["st_gchb_outlier"].mean() < 0.1
    assert found.uns["st_gchb"]["stain"]["in_range"].all()
    assert model.predict(reference, slice_key="slice").obs["st_gchb_outlier"].mean() < 0.1


def within(values: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]) -> bool:
    return bool(np.isfinite(values).all() and (values >= bounds[0]).all() and (values <= bounds[1]).all())


def test_features_of_another_unit_are_refused(model, held_out, unchanged):
    for values, match in ((1e9, "standard deviations from the reference's.*Drop it"), (1e30, "beyond 1e.12")):
        query = features_of(held_out, np.full(held_out.obsm["X_patch"].shape, values))
        with unchanged(query), pytest.raises((EncoderError, QueryError), match=match):
            model.predict(query)
        with pytest.raises((EncoderError, QueryError), match=match):
            model.get_latent_representation(query, modality="image")


def test_a_reference_without_anything_to_learn_from_is_refused(reference):
    flat = features_of(reference, np.ones(reference.obsm["X_patch"].shape))
    STGCHB.setup_anndata(flat, slice_key="slice")
    with pytest.raises(EncoderError, match="same for all spots.*tissue"):
        STGCHB(flat).train(enable_progress_bar=False)
    few = reference[:3].copy()
    with pytest.raises(SliceError, match="3 spots; expected at least 4"):
        STGCHB.setup_anndata(few)


def test_four_spots_in_one_line_are_enough(reference):
    line = reference[reference.obs["slice"] == "S1"][:4].copy()
    line.obsm["spatial"] = np.column_stack([np.full(4, 300.0), 300.0 + 100 * np.arange(4)])
    del line.uns["X_patch"], line.obsm["X_patch_made"]  # features of the caller's own
    STGCHB.setup_anndata(line)
    model = STGCHB(line, n_top_genes=10)
    model.train(max_epochs=1, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    assert np.isfinite(model.predict(line).layers["st_gchb"]).all()


def test_what_hardly_varies_carries_no_weight():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8)).astype(np.float32)
    x[:, 0] = 5.0
    x[:, 1] = 5.0 + 1e-7 * x[:, 1]
    x[:, 2] *= 1e-5
    for unit in (1e-9, 1.0, 1e9):
        weights = fit_map(x * np.float32(unit), None, whitening=0.0, seed=0).matrix
        assert (weights[:3] == 0).all()
        np.testing.assert_allclose(weights[3:] * unit, 1 / x[:, 3:].std(0), rtol=1e-4)
        assert (fit_map(x * np.float32(unit), 4, whitening=0.5, seed=0).matrix[:3] == 0).all()


@pytest.mark.parametrize("n_spots", [2, 4, 9, 30, 200])
def test_components_without_variance_have_no_weight(n_spots):
    """Two directions of variance alone: the others would be divided by rounding."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(n_spots, 2)) @ rng.normal(size=(2, 50))).astype(np.float32)
    mapped = fit_map(x, 20, whitening=1.0, seed=0)
    look = fit_appearance(x, seed=0)
    probe = x + 1.0
    assert np.abs(mapped(probe)).max() < 1e3
    assert look.scale.max() < 1e3
    assert len(look.scale) <= 2
    assert np.linalg.norm(look(probe) - look(x), axis=1).min() > 1


FEATURES = arrays(
    np.float32,
    st.tuples(st.integers(2, 12), st.integers(1, 6)),
    elements=st.floats(-(2.0**39), 2.0**39, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -0.0, 1e-30]),
)


TINY = np.full((5, 4), np.finfo(np.float32).tiny)
TINY[0, 0] = 0.0


@settings(max_examples=150, deadline=None)
@given(FEATURES, st.sampled_from([None, 1, 5]), st.sampled_from([0.0, 0.5, 1.0]))
@example(TINY, 5, 0.5)
def test_maps_of_any_features_are_finite(x, n_components, whitening):
    mapped, look = fit_map(x, n_components, whitening=whitening, seed=0), fit_appearance(x, seed=0)
    for numbers in (mapped.offset, mapped.matrix, mapped(x), look(x), look(x * 2), *vars(look).values()):
        assert np.isfinite(numbers).all()
