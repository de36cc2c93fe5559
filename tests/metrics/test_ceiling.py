"""The ceiling is the correlation of a perfect prediction, which is known where counts are simulated."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse
from scipy.stats import binom

from st_gchb._errors import ArgumentError, ExpressionError, InputError, MissingKeyError
from st_gchb.metrics import HalfTransform, noise_ceiling, per_gene, share_of_ceiling

from .simulated import Tissue, correlations, tissue

COLUMNS = ["ceiling", "reliability", "standard_error", "half_correlation", "uncertain"]


@pytest.fixture(scope="module")
def small() -> Tissue:
    return tissue(side=12, n_genes=30)


@pytest.mark.parametrize(("depth_spread", "flat"), [(0.0, 0.0), (0.6, 0.0), (0.6, 0.2)])
def test_means_are_those_of_a_perfect_prediction(depth_spread, flat):
    slide = tissue(side=40, n_genes=800, depth_spread=depth_spread, flat=flat)
    real = correlations(slide.expected, slide.measured)
    found = noise_ceiling(slide.counts, totals=slide.totals)
    for name, chosen in slide.groups().items():
        assert found["ceiling"].to_numpy()[chosen].mean() == pytest.approx(real[chosen].mean(), rel=0.05), name
    # Genes are told apart, and not their means alone.
    certain = ~found["uncertain"].to_numpy()
    assert certain.sum() > 50
    assert np.abs(found["ceiling"][certain] - real[certain]).mean() < 0.05
    if depth_spread == 0:
        # The true rates are as good a prediction where depth is the same everywhere.
        logs = correlations(np.log1p(1e4 * slide.shares), slide.measured)
        np.testing.assert_allclose(logs, real, atol=0.05)


def test_no_prediction_is_better_than_a_perfect_one():
    slide = tissue(side=40, n_genes=100)
    real = correlations(slide.expected, slide.measured)
    for other in (slide.shares, np.log1p(1e4 * slide.shares), slide.shares * slide.totals[:, None]):
        assert (correlations(other, slide.measured) < real + 0.03).all()


def test_plain_halves_by_spearman_and_brown_are_too_high():
    """The reason for the transform of the halves: this check fails for the formula that is not taken."""
    slide = tissue(side=40, n_genes=400)
    real = correlations(slide.expected, slide.measured)
    rng = np.random.default_rng(0)
    half, totals = rng.binomial(slide.counts, 0.5), rng.binomial(slide.totals, 0.5)
    a, b = (
        np.log1p(half / totals[:, None] * 1e4),
        np.log1p((slide.counts - half) / (slide.totals - totals)[:, None] * 1e4),
    )
    r = correlations(a, b)
    plain, chosen = np.sqrt(np.clip(2 * r / (1 + r), 0, 1)), slide.groups()["HEG"]
    assert plain[chosen].mean() > 1.05 * real[chosen].mean()


@pytest.mark.parametrize("total", [1000, 5000, 40_000])
def test_the_mean_over_all_halves_is_the_whole(total):
    transform, rows = HalfTransform(np.array([float(total)])), np.zeros(60, dtype=np.intp)
    for n in [*range(1, 16), 30, 59]:
        half = np.arange(n + 1)
        mean = binom.pmf(half, n, 0.5) @ transform(rows[: n + 1], half)
        assert mean == pytest.approx(np.log1p(n / total * 1e4), rel=0.06 if n < 3 else 0.02)


def test_columns_names_and_seeds(small):
    names = [f"gene{i}" for i in range(30)]
    frame = noise_ceiling(small.counts, names, totals=small.totals)
    assert list(frame) == COLUMNS
    assert frame.index.tolist() == names
    assert frame.index.name == "gene"
    assert np.isfinite(frame.to_numpy(dtype=float)).all()
    again = noise_ceiling(pd.DataFrame(small.counts, columns=names), totals=small.totals)
    pd.testing.assert_frame_equal(frame, again)
    pd.testing.assert_frame_equal(frame, noise_ceiling(sparse.csr_matrix(small.counts), names, totals=small.totals))
    other = noise_ceiling(small.counts, names, totals=small.totals, seed=1)
    assert not np.allclose(frame["reliability"], other["reliability"])
    assert np.abs(frame["reliability"] - other["reliability"]).mean() < 0.05
    assert noise_ceiling(small.counts).index.tolist() == list(range(30))


def test_counts_are_not_changed(small):
    counts = sparse.csr_matrix(small.counts.astype(np.float32))
    before = counts.copy()
    noise_ceiling(counts)
    assert (before != counts).nnz == 0


def test_blocks_make_no_difference(small, monkeypatch):
    whole = noise_ceiling(small.counts, totals=small.totals, n_repeats=200)
    monkeypatch.setattr("st_gchb.metrics._thinning._BLOCK", 300)
    for counts in (small.counts, sparse.csc_matrix(small.counts)):
        pieces = noise_ceiling(counts, totals=small.totals, n_repeats=200)
        # Other splits, of the same counts.
        np.testing.assert_allclose(pieces["reliability"], whole["reliability"], atol=0.06)


def test_totals_are_those_of_all_genes(small):
    alone = noise_ceiling(small.counts[:, :5], totals=small.counts.sum(1))
    assert len(alone) == 5
    assert not np.allclose(alone["reliability"], noise_ceiling(small.counts[:, :5] + 1)["reliability"])


def test_genes_without_signal_are_uncertain(small):
    counts = small.counts.copy()
    counts[:, 3], counts[:, 4] = 0, np.random.default_rng(0).poisson(0.2, len(counts))
    frame = noise_ceiling(counts, totals=small.totals + counts.sum(1))
    assert frame.loc[3].to_dict() == {
        "ceiling": 0.0,
        "reliability": 0.0,
        "standard_error": 0.0,
        "half_correlation": 0.0,
        "uncertain": True,
    }
    assert frame["uncertain"][4]
    assert frame["reliability"].min() < 0


def test_uncertain_genes_share_what_they_have_in_the_mean(small):
    frame = noise_ceiling(small.counts, totals=small.totals)
    shared = frame[frame["uncertain"]]
    assert 5 < len(shared) < 50
    assert shared["ceiling"].nunique() == 1
    assert shared["ceiling"].iloc[0] ** 2 == pytest.approx(max(shared["reliability"].mean(), 0))
    own = frame[~frame["uncertain"]]
    np.testing.assert_allclose(own["ceiling"] ** 2, own["reliability"].clip(upper=1))


def test_a_gene_with_one_value_in_all_spots_has_no_ceiling():
    frame = noise_ceiling(np.column_stack([np.full(20, 7), np.arange(20)]), totals=np.full(20, 100))
    assert frame["ceiling"][0] == 0
    assert frame["uncertain"][0]


def test_much_signal_has_a_ceiling_near_one():
    rates = np.linspace(100, 3000, 200)[:, None] * np.ones(4)
    frame = noise_ceiling(np.random.default_rng(0).poisson(rates), totals=np.full(200, 20_000))
    assert (frame["ceiling"] > 0.98).all()
    assert (frame["half_correlation"] > 0.97).all()
    assert not frame["uncertain"].any()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 40),
    st.integers(1, 8),
    st.floats(0, 30),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_all_counts_have_an_answer(n_spots, n_genes, level, seed, is_sparse):
    counts = np.random.default_rng(seed).poisson(level, (n_spots, n_genes))
    matrix = sparse.csr_matrix(counts) if is_sparse else counts
    frame = noise_ceiling(matrix, totals=counts.sum(1) + 1, n_repeats=2)
    assert np.isfinite(frame.to_numpy(dtype=float)).all()
    assert frame["ceiling"].between(0, 1).all()
    assert frame["half_correlation"].between(-1, 1).all()
    assert frame["uncertain"][counts.sum(0) == 0].all()
    assert (frame["uncertain"] | (frame["reliability"] > 0)).all()


def spoiled(value: float) -> np.ndarray:
    counts = np.random.default_rng(0).poisson(5.0, (10, 3)).astype(float)
    counts[2, 1] = value
    return counts


@pytest.mark.parametrize(
    ("counts", "error", "says"),
    [
        (spoiled(-1), ExpressionError, "negative"),
        (spoiled(0.5), ExpressionError, "no whole numbers"),
        (spoiled(np.nan), ExpressionError, "NaN"),
        (spoiled(np.inf), ExpressionError, "infinite"),
        (spoiled(3) > 2, ExpressionError, "true and false"),
        (np.log1p(spoiled(3)), ExpressionError, "looks logged"),
        (spoiled(3) / spoiled(3).sum(1, keepdims=True) * 1e4, ExpressionError, "normalized to one total"),
        (np.zeros((4, 3)), ExpressionError, "without a single count"),
        (np.array([["a", "b"]] * 3), ExpressionError, "real numbers"),
        (np.ones((1, 3)), InputError, "at least two spots"),
        (np.arange(5), InputError, "two dimensions"),
    ],
)
def test_what_are_no_counts_is_refused(counts, error, says):
    with pytest.raises(error, match=says):
        noise_ceiling(counts)
    if counts.ndim == 2 and counts.dtype.kind == "f" and np.isfinite(counts).all():
        with pytest.raises(error, match=says):
            noise_ceiling(sparse.csr_matrix(counts))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"genes": ["A", "B"]}, InputError, "2 names"),
        ({"genes": ["A", "B", "A"]}, InputError, "more than once"),
        ({"totals": np.ones(10)}, InputError, "smaller than the sums"),
        ({"totals": np.full(9, 100)}, InputError, "totals has shape"),
        ({"totals": np.full(10, 99.5)}, InputError, "whole numbers"),
        ({"totals": np.full(10, np.nan)}, InputError, "whole numbers"),
        ({"totals": ["many"] * 10}, InputError, "holds no numbers"),
        ({"n_repeats": 0}, ArgumentError, "1 or more"),
        ({"seed": -1}, ArgumentError, "seed"),
    ],
)
def test_bad_options(options, error, says):
    with pytest.raises(error, match=says):
        noise_ceiling(spoiled(3), **options)


def test_counts_of_one_depth_are_told(caplog):
    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        noise_ceiling(np.random.default_rng(0).poisson(400.0, (60, 5)))
    assert "corrected for depth" in caplog.text


def test_share_is_the_mean_over_the_mean_of_the_same_genes(small):
    names = [f"gene{i}" for i in range(30)]
    ceiling = noise_ceiling(small.counts, names, totals=small.totals)
    frame = per_gene(small.measured, small.expected, names)
    row = share_of_ceiling(frame, ceiling.sample(frac=1, random_state=0), n_top=5)
    for name, chosen in small.groups(5).items():
        genes = [names[i] for i in chosen]
        assert row[f"{name}_ceiling"] == pytest.approx(ceiling.loc[genes, "ceiling"].mean())
        expected = frame.loc[genes, "pearson"].mean() / ceiling.loc[genes, "ceiling"].mean()
        assert row[f"{name}_share"] == pytest.approx(expected)
    assert row["n_uncertain"] == ceiling["uncertain"].sum()


def test_share_of_no_ceiling_is_not_a_number(small):
    names = ["A", "B"]
    ceiling = pd.DataFrame({"ceiling": 0.0, "uncertain": True}, index=names)
    row = share_of_ceiling(per_gene(small.measured[:, :2], small.measured[:, :2], names), ceiling)
    assert np.isnan(row["AG_share"])
    assert row["n_uncertain"] == 2


def test_share_needs_tables_that_fit(small):
    names = ["A", "B", "C"]
    frame = per_gene(small.measured[:, :3], small.measured[:, :3], names)
    ceiling = noise_ceiling(small.counts[:, :3], names, totals=small.totals)
    with pytest.raises(MissingKeyError, match="lacks 1 genes"):
        share_of_ceiling(frame, ceiling.iloc[:2])
    with pytest.raises(MissingKeyError, match="ceilings lacks the columns"):
        share_of_ceiling(frame, ceiling.drop(columns="uncertain"))
    with pytest.raises(MissingKeyError, match="per-gene table lacks"):
        share_of_ceiling(ceiling, ceiling)
    with pytest.raises(InputError, match="more than once"):
        share_of_ceiling(pd.concat([frame, frame]), ceiling)
    with pytest.raises(InputError, match="no gene"):
        share_of_ceiling(frame.iloc[:0], ceiling)
