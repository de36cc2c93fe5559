"""The reference bank's tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from st_gchb._errors import MissingKeyError
from st_gchb.retrieval import ReferenceBank

VALUES = np.array([[0, 1.5], [2, 0], [0, 0]])


@pytest.fixture
def bank():
    origin = pd.DataFrame({"slice": pd.Categorical(["a", "a", "b"])}, index=["s1", "s2", "s3"])
    tables = {name: ReferenceBank.table_from(VALUES * factor, ["A", "B"]) for name, factor in (("panel", 1), ("x", 2))}
    return ReferenceBank(np.eye(3), np.eye(3), np.zeros((3, 4)), np.zeros((3, 2)), origin, tables)


def test_a_bank_is_as_long_as_its_reference_and_knows_its_slices(bank):
    assert len(bank) == 3
    assert bank.slices.tolist() == ["a", "a", "b"]


def test_tables_go_by_name_and_the_panel_by_none(bank):
    assert bank.table(None) is bank.tables["panel"]
    np.testing.assert_array_equal(bank.table("x").values.toarray(), VALUES * 2)
    assert bank.table("x").columns.tolist() == ["A", "B"]


def test_an_unknown_table_is_told_with_those_there_are(bank):
    with pytest.raises(MissingKeyError, match=r"layer='counts' .*\['panel', 'x'\]"):
        bank.table("counts")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, pd.DataFrame])
def test_a_table_comes_from_any_kind_of_matrix(kind):
    table = ReferenceBank.table_from(kind(VALUES), pd.Index(["A", "B"]))
    assert sparse.isspmatrix_csr(table.values)
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values.toarray(), VALUES)
