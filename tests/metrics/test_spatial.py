from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from st_gchb._errors import GraphError, InputError
from st_gchb.metrics import morans_agreement, morans_i


def naive_morans_i(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    n, z = len(x), x - x.mean(axis=0)
    top = sum(w[i, j] * z[i] * z[j] for i in range(n) for j in range(n))
    return n / w.sum() * top / sum(z**2)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 5))


@pytest.fixture
def graph() -> np.ndarray:
    weights = np.random.default_rng(1).random((12, 12)) * (np.random.default_rng(2).random((12, 12)) < 0.3)
    np.fill_diagonal(weights, 0)
    return weights


def test_is_the_double_sum(graph):
    """Of more genes than are made dense at once."""
    values = np.random.default_rng(0).normal(size=(12, 20_000))
    expected = naive_morans_i(values, graph)
    np.testing.assert_allclose(morans_i(values, graph), expected)
    np.testing.assert_allclose(morans_i(values, sparse.csr_matrix(graph)), expected)


def test_is_that_of_scanpy(values, graph):
    scanpy_metrics = pytest.importorskip("scanpy.metrics")
    # Gene by gene: what scanpy compiles for a matrix of genes takes four seconds, anew in each process.
    expected = [scanpy_metrics.morans_i(sparse.csr_matrix(graph), gene) for gene in values.T.copy()]
    np.testing.assert_allclose(morans_i(values, graph), expected)


def test_self_loops_do_not_count(values, graph):
    looped = sparse.csr_matrix(graph + np.eye(12))
    np.testing.assert_allclose(morans_i(values, looped), morans_i(values, graph))
    assert looped.diagonal().tolist() == [1.0] * 12


def test_constant_gene_counts_as_zero(values, graph):
    values[:, 2] = 4.2
    assert morans_i(values, graph)[2] == 0.0


def test_agreement_by_hand(values, graph):
    prediction = values[::-1].copy()
    measured, predicted = morans_i(values, graph), morans_i(prediction, graph)
    result = morans_agreement(values, prediction, graph)
    assert result["correlation"] == pytest.approx(np.corrcoef(measured, predicted)[0, 1])
    assert result["mean_abs_difference"] == pytest.approx(np.abs(measured - predicted).mean())
    assert morans_agreement(values, values, graph) == pytest.approx({"correlation": 1.0, "mean_abs_difference": 0.0})


def test_agreement_with_a_flat_prediction_is_zero(values, graph):
    assert morans_agreement(values, np.ones_like(values), graph)["correlation"] == 0.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g[:5, :5], r"shape \(5, 5\) and there are 12 spots"),
        (lambda g: np.zeros_like(g), "no edge"),
        (lambda g: np.eye(12), "no edge"),
        (lambda g: -g, "negative"),
        (lambda g: np.where(g > 0, np.nan, 0), "not finite"),
    ],
)
def test_graphs_that_cannot_be_used(values, graph, change, says):
    with pytest.raises(GraphError, match=says):
        morans_i(values, change(graph))


def test_values_that_cannot_be_used(values, graph):
    with pytest.raises(InputError, match="values has shape"):
        morans_i(values[:, 0], graph)
    with pytest.raises(InputError, match="expected the same"):
        morans_agreement(values, values[:, :2], graph)
    values[0, 0] = np.nan
    with pytest.raises(InputError, match="values holds 1 values"):
        morans_i(values, graph)
