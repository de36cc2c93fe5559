"""The weighted mean of retrieved spots, in one piece or in many."""

import numpy as np
import pytest
from scipy import sparse

from st_gchb.retrieval import Neighbors, ReferenceTable, weighted_mean

RNG = np.random.default_rng(0)
VALUES = sparse.random(50, 37, 0.3, format="csr", dtype=np.float32, random_state=0)
IDS = np.stack([RNG.choice(50, 6, replace=False) for _ in range(23)])
FOUND = Neighbors(IDS, RNG.random((23, 6)), RNG.random((23, 6)).astype(np.float32))


@pytest.mark.parametrize("rows_at_once", [1, 6, 14, 2**17])
@pytest.mark.parametrize("values_at_once", [1, 500, 2**25])
def test_it_is_the_product_with_the_weights(monkeypatch, rows_at_once, values_at_once):
    monkeypatch.setattr("st_gchb.retrieval._search._REFERENCE_ROWS", rows_at_once)
    monkeypatch.setattr("st_gchb.retrieval._search._VALUES", values_at_once)
    expected = [FOUND.weights[i] @ VALUES[IDS[i]].toarray() for i in range(23)]
    found = weighted_mean(FOUND, VALUES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("values_at_once", [1, 2**19])
def test_threads_and_blocks_change_no_bit(monkeypatch, values_at_once):
    whole = weighted_mean(FOUND, VALUES)
    monkeypatch.setattr("st_gchb.retrieval._search._VALUES", values_at_once)
    for number in (1, 3):
        monkeypatch.setattr("torch.get_num_threads", lambda number=number: number)
        np.testing.assert_array_equal(weighted_mean(FOUND, VALUES), whole)


def test_no_more_of_a_large_reference_is_taken_out_than_is_referred_to(monkeypatch):
    taken = []

    class Watched(sparse.csr_matrix):
        def __getitem__(self, rows):
            taken.append(len(rows))
            return super().__getitem__(rows)

    monkeypatch.setattr("st_gchb.retrieval._search._REFERENCE_ROWS", 12)
    weighted_mean(FOUND, Watched(VALUES))
    assert len(taken) == 12
    assert max(taken) <= 12


def test_no_query_and_no_column():
    none = Neighbors(np.empty((0, 3), np.int64), np.empty((0, 3)), np.empty((0, 3)))
    assert weighted_mean(none, VALUES).shape == (0, 37)
    assert weighted_mean(FOUND, VALUES[:, :0]).shape == (23, 0)


def test_mean_squares_of_rows_with_and_without_values():
    dense = np.zeros((6, 4), np.float32)
    dense[1], dense[3, 2] = [1, 2, 0, 3], -5
    for values in (dense, dense[1:4], np.zeros((3, 4), np.float32), dense[:0]):
        table = ReferenceTable(sparse.csr_matrix(values), None)
        np.testing.assert_allclose(table.mean_squares, (values.astype(float) ** 2).mean(1))


def test_bounds_of_columns_count_what_is_not_stored():
    dense = np.array([[0, -2, 3, 0], [0, -5, 4, 7], [0, -1, 9, 0]], np.float32)
    for values in (dense, dense[1:2], dense[:, :0]):
        low, high = ReferenceTable(sparse.csr_matrix(values), None).bounds
        np.testing.assert_array_equal(low, values.min(0))
        np.testing.assert_array_equal(high, values.max(0))
