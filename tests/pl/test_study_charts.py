from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from st_gchb import pl
from st_gchb._errors import InputError, MissingKeyError


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    x = np.linspace(0, 1, 100)
    spots = pd.DataFrame({"fold": np.repeat(["A", "B"], 50), "confidence": x, "rmse": 2 - x})
    return spots, pd.DataFrame({"fold": "A", "expected": x, "pearson": x / 2})


def test_reliability_draws_tenths_of_spots_and_genes(tables):
    left, right = pl.reliability(*tables)
    assert [line.get_label() for line in left.lines] == ["A", "B"]
    first = left.lines[0]
    assert len(first.get_xdata()) == 10
    np.testing.assert_allclose(first.get_ydata(), 2 - first.get_xdata())
    assert left.get_ylim()[0] == 0
    assert "expected correlation" in right.get_xlabel()
    medians = right.containers[0].lines[0]
    x, y = (np.asarray(values, float) for values in (medians.get_xdata(), medians.get_ydata()))
    np.testing.assert_allclose(y, x / 2, atol=1e-9)


def test_reliability_without_what_it_needs(tables):
    spots, genes = tables
    with pytest.raises(MissingKeyError, match=r"table of spots has no columns \['rmse'\]"):
        pl.reliability(spots.drop(columns="rmse"), genes)
    with pytest.raises(InputError, match="table of genes is empty"):
        pl.reliability(spots, genes.iloc[:0])
