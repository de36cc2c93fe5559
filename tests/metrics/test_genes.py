from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.stats import pearsonr, spearmanr

from st_gchb._errors import InputError
from st_gchb.metrics import pearson, per_gene

NAMES = ["A", "B", "C", "D"]


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.poisson(1.0, (30, 4)).astype(float)  # counts: many ties
    return truth, truth + rng.normal(size=truth.shape)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_measures_are_those_of_scipy(pair):
    truth, prediction = pair
    frame = per_gene(truth, prediction.round(), NAMES)
    prediction = prediction.round()
    for j, gene in enumerate(NAMES):
        row = frame.loc[gene]
        assert row["pearson"] == pytest.approx(pearsonr(truth[:, j], prediction[:, j]).statistic)
        assert row["spearman"] == pytest.approx(spearmanr(truth[:, j], prediction[:, j]).statistic)
        assert row["rmse"] == pytest.approx(np.sqrt(sum((truth[:, j] - prediction[:, j]) ** 2) / 30))
        assert row["mean_truth"] == pytest.approx(sum(truth[:, j]) / 30)
        assert row["var_truth"] == pytest.approx(np.var(truth[:, j]))
        assert not row["constant"]


def test_constant_genes_count_as_zero_and_are_marked(pair):
    truth, prediction = pair
    truth[:, 0] = 3.0
    prediction[:, 1] = 0.0
    # The same value up to float32 rounding, as a mean computed in another order gives.
    prediction[:, 2] = np.float32(1.7) + np.where(np.arange(30) % 2, 1e-7, 0.0)
    frame = per_gene(truth, prediction, NAMES)
    assert frame["constant"].tolist() == [True, True, True, False]
    assert frame.loc[["A", "B", "C"], ["pearson", "spearman"]].to_numpy().tolist() == [[0.0, 0.0]] * 3
    assert frame.loc["D", "pearson"] > 0.2
    assert frame.notna().all(axis=None)


@pytest.fixture
def transcriptome(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """More genes than are made dense at once."""
    truth = rng.poisson(1.0, (6, 20_000)).astype(float)
    return truth, truth + rng.normal(size=truth.shape)


def test_blocks_sparse_and_frames_give_the_same_table(transcriptome):
    truth, prediction = transcriptome
    names = [f"G{j}" for j in range(truth.shape[1])]
    parts = [slice(start, start + 700) for start in range(0, len(names), 700)]
    whole = pd.concat([per_gene(truth[:, part], prediction[:, part], names[part]) for part in parts])
    pd.testing.assert_frame_equal(per_gene(truth, prediction, names), whole)
    pd.testing.assert_frame_equal(per_gene(sparse.csr_matrix(truth), prediction, names), whole)
    frames = [pd.DataFrame(m, columns=names) for m in transcriptome]
    pd.testing.assert_frame_equal(per_gene(*frames), whole)
    pd.testing.assert_frame_equal(per_gene(frames[0], prediction), whole)


def test_pearson_alone_is_that_of_the_table(transcriptome):
    truth, prediction = transcriptome
    truth[:, [2, 15_000]] = 1.0
    found = pearson(truth, prediction)
    np.testing.assert_array_equal(found, per_gene(truth, prediction, [f"G{j}" for j in range(20_000)])["pearson"])
    assert found[[2, 15_000]].tolist() == [0.0, 0.0]


def test_integers_are_not_wrapped():
    truth = np.array([[250], [1], [3]], dtype=np.uint8)
    assert per_gene(truth, truth[::-1], ["A"]).loc["A", "rmse"] == pytest.approx(np.sqrt(2 * 247**2 / 3))


def test_input_is_left_as_it_was(pair):
    before = [m.copy() for m in pair]
    per_gene(*pair, NAMES)
    for old, new in zip(before, pair, strict=True):
        np.testing.assert_array_equal(old, new)


values = st.floats(-50, 50, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(2, 12), st.integers(1, 5)).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float64, shape, elements=values), hnp.arrays(np.float64, shape, elements=values)
        )
    )
)
def test_every_gene_gets_finite_measures_in_range(pair):
    frame = per_gene(*pair, [f"g{j}" for j in range(pair[0].shape[1])])
    assert np.isfinite(frame.drop(columns="constant").to_numpy()).all()
    assert frame[["pearson", "spearman"]].abs().to_numpy().max() <= 1.0
    back = per_gene(pair[1], pair[0], list(frame.index))
    np.testing.assert_allclose(back[["pearson", "spearman", "rmse"]], frame[["pearson", "spearman", "rmse"]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["truth", "prediction"])
def test_values_that_are_not_finite_are_refused(pair, bad, which):
    matrices = dict(zip(("truth", "prediction"), pair, strict=True))
    matrices[which][2, 1] = bad
    with pytest.raises(InputError, match=f"{which} holds 1 values that are NaN or infinite"):
        per_gene(**matrices, genes=NAMES)


def test_shapes_that_do_not_match_are_refused(pair):
    truth, prediction = pair
    with pytest.raises(InputError, match=r"\(30, 4\) and prediction \(30, 3\)"):
        per_gene(truth, prediction[:, :3], NAMES)
    with pytest.raises(InputError, match="two dimensions"):
        per_gene(truth[:, 0], prediction, NAMES)
    with pytest.raises(InputError, match="at least two spots"):
        per_gene(truth[:1], prediction[:1], NAMES)
    with pytest.raises(InputError, match="expected numbers"):
        per_gene(truth.astype(str), prediction, NAMES)


def test_genes_are_named_once_each(pair):
    with pytest.raises(InputError, match="3 names and truth 4 columns"):
        per_gene(*pair, NAMES[:3])
    with pytest.raises(InputError, match=r"more than once: \['A'\]"):
        per_gene(*pair, ["A", "A", "B", "C"])
    with pytest.raises(InputError, match="pass genes="):
        per_gene(*pair)


@pytest.mark.parametrize("change", [lambda f: f[NAMES[::-1]], lambda f: f.iloc[::-1]])
def test_frames_in_another_order_are_refused(pair, change):
    truth, prediction = (pd.DataFrame(m, columns=NAMES) for m in pair)
    with pytest.raises(InputError, match="another order"):
        per_gene(truth, change(prediction))
