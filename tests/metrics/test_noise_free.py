"""Moran's I without counting noise is that of the true rates, which are known where counts are simulated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse
from scipy.stats import spearmanr

from st_gchb._errors import ExpressionError, GraphError, InputError, MissingKeyError
from st_gchb.metrics import HalfTransform, morans_i, noise_ceiling, noise_free_agreement, noise_free_morans_i

from .simulated import Tissue, tissue


@pytest.fixture(scope="module")
def small() -> Tissue:
    return tissue(side=12, n_genes=60, flat=0.0)


def test_is_morans_i_of_the_true_rates():
    slide = tissue(side=40, n_genes=300, depth_spread=0.0)
    found = noise_free_morans_i(slide.counts, slide.graph, totals=slide.totals)
    true = morans_i(np.log1p(1e4 * slide.shares), slide.graph)
    chosen = slide.groups()["HVG"]
    chosen = chosen[~found["uncertain"].to_numpy()[chosen]]
    values = found["morans_i"].to_numpy()
    assert len(chosen) > 45
    assert values[chosen].mean() == pytest.approx(true[chosen].mean(), abs=0.02)
    assert np.abs(values[chosen] - true[chosen]).mean() < 0.06
    assert spearmanr(values[chosen], true[chosen]).statistic > 0.85
    # What is measured is far from it.
    raw = morans_i(slide.measured, slide.graph)
    assert np.abs(raw[chosen] - true[chosen]).mean() > 0.2


def test_is_morans_i_of_the_expectation_where_depth_varies():
    slide = tissue(side=40, n_genes=300)
    found = noise_free_morans_i(slide.counts, slide.graph, totals=slide.totals)
    expected = morans_i(slide.expected, slide.graph)
    chosen = slide.groups()["HVG"]
    chosen = chosen[~found["uncertain"].to_numpy()[chosen]]
    assert np.abs(found["morans_i"].to_numpy()[chosen] - expected[chosen]).mean() < 0.08
    assert found["morans_i"].to_numpy()[chosen].mean() == pytest.approx(expected[chosen].mean(), abs=0.03)


def test_is_measured_morans_i_over_the_reliability(small):
    """Whatever the graph: weights, one-way edges and self-loops are those of Moran's I."""
    rng = np.random.default_rng(0)
    graph = rng.random((144, 144)) * (rng.random((144, 144)) < 0.05) + np.eye(144)
    found = noise_free_morans_i(small.counts, graph, totals=small.totals)
    reliability = noise_ceiling(small.counts, totals=small.totals)["reliability"]
    expected = morans_i(small.measured, graph) / reliability
    certain = ~found["uncertain"]
    assert certain.sum() > 5
    np.testing.assert_allclose(found["morans_i"][certain], expected[certain])


def test_agrees_with_the_cross_moran_of_halves(small):
    """The mean over many splits and both orders, by its definition, with the values that halves have."""
    rng, n = np.random.default_rng(0), len(small.counts)
    transform, graph = HalfTransform(small.totals.astype(float)), small.graph.toarray()
    gene = int(noise_ceiling(small.counts, totals=small.totals)["reliability"].argmax())
    top = bottom = 0.0
    for _ in range(3000):
        half = rng.binomial(small.counts[:, gene], 0.5)
        a, b = (transform(np.arange(n), k) for k in (half, small.counts[:, gene] - half))
        a, b = a - a.mean(), b - b.mean()
        top, bottom = top + (a @ graph @ b + b @ graph @ a) / 2, bottom + a @ b
    found = noise_free_morans_i(small.counts, graph, totals=small.totals, n_repeats=500)
    assert found["morans_i"][gene] == pytest.approx(n / graph.sum() * top / bottom, abs=0.03)


def test_uncertain_genes_are_marked_and_have_no_value(small):
    counts = small.counts.copy()
    counts[:, 3], counts[:, 4] = 0, np.random.default_rng(2).poisson(0.3, len(counts))
    frame = noise_free_morans_i(counts, small.graph, totals=small.totals + counts.sum(1))
    assert list(frame) == ["morans_i", "cross_covariance", "standard_error", "uncertain"]
    assert frame["uncertain"][[3, 4]].all()
    assert (frame["morans_i"].isna() == frame["uncertain"]).all()
    assert np.isfinite(frame[["cross_covariance", "standard_error"]].to_numpy()).all()
    assert not frame["uncertain"].all()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(1, 6), st.floats(0, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_all_counts_have_an_answer(n_spots, n_genes, level, seed, is_sparse):
    counts = np.random.default_rng(seed).poisson(level, (n_spots, n_genes))
    graph = np.eye(n_spots, k=1) + np.eye(n_spots, k=-1)
    matrix = sparse.csr_matrix(counts) if is_sparse else counts
    frame = noise_free_morans_i(matrix, graph, totals=counts.sum(1) + 1, n_repeats=2)
    assert (frame["morans_i"].isna() == frame["uncertain"]).all()
    assert frame["uncertain"][counts.sum(0) == 0].all()
    assert not np.isinf(frame["morans_i"]).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g[:5, :5], r"shape \(5, 5\) and there are 144 spots"),
        (lambda g: np.zeros_like(g), "no edge"),
        (lambda g: np.eye(144), "no edge"),
        (lambda g: -g, "negative"),
        (lambda g: np.where(g > 0, np.nan, 0), "not finite"),
    ],
)
def test_graphs_that_cannot_be_used(small, change, says):
    with pytest.raises(GraphError, match=says):
        noise_free_morans_i(small.counts, change(small.graph.toarray()))


@pytest.mark.parametrize("value", [-1, 0.5, np.nan])
def test_what_are_no_counts_is_refused(small, value):
    counts = small.counts.astype(float)
    counts[0, 0] = value
    with pytest.raises(ExpressionError):
        noise_free_morans_i(counts, small.graph)


TABLE = pd.DataFrame(
    {"morans_i": [0.1, 0.3, np.nan, 0.8], "uncertain": [False, False, True, False]}, index=["A", "B", "C", "D"]
)


def test_agreement_by_hand():
    found = noise_free_agreement(TABLE, [0.2, 0.1, 9.0, 0.9])
    assert found == {
        "mean_abs_difference": pytest.approx((0.1 + 0.2 + 0.1) / 3),
        "rank_correlation": pytest.approx(0.5),
        "n_genes": 3,
        "n_uncertain": 1,
    }
    series = pd.Series({"D": 0.9, "C": 9.0, "A": 0.2, "B": 0.1})
    assert noise_free_agreement(TABLE, series) == found
    part = noise_free_agreement(TABLE, series, ["D", "C"])
    assert (part["n_genes"], part["n_uncertain"]) == (1, 1)
    assert part["mean_abs_difference"] == pytest.approx(0.1)
    assert np.isnan(part["rank_correlation"])


def test_a_flat_prediction_has_no_rank_correlation():
    assert noise_free_agreement(TABLE, np.zeros(4))["rank_correlation"] == 0.0


def test_no_certain_gene_is_told():
    found = noise_free_agreement(TABLE, np.zeros(4), ["C"])
    assert np.isnan(found["mean_abs_difference"])
    assert found["n_genes"] == 0


def test_agreement_needs_values_that_fit():
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        noise_free_agreement(TABLE, np.zeros(3))
    with pytest.raises(InputError, match="no numbers"):
        noise_free_agreement(TABLE, ["a"] * 4)
    with pytest.raises(InputError, match="NaN or infinite"):
        noise_free_agreement(TABLE, [np.nan, 0, 0, 0])
    with pytest.raises(MissingKeyError, match="table of Moran's I lacks 1 genes"):
        noise_free_agreement(TABLE, np.zeros(4), ["A", "E"])
    with pytest.raises(MissingKeyError, match="predicted lacks 1 genes"):
        noise_free_agreement(TABLE, pd.Series({"A": 0.1}), ["A", "B"])
    with pytest.raises(MissingKeyError, match="columns"):
        noise_free_agreement(TABLE[["morans_i"]], np.zeros(4))
    with pytest.raises(InputError, match="more than once"):
        noise_free_agreement(pd.concat([TABLE, TABLE]), np.zeros(8))
