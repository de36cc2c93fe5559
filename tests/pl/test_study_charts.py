from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from st_gchb import pl
from st_gchb._errors import InputError, MissingKeyError


@pytest.fixture
def runs() -> pd.DataFrame:
    """Two variants, two seeds, two folds."""
    return pd.DataFrame(
        {
            "variant": ["a"] * 4 + ["b"] * 4,
            "seed": [0, 0, 1, 1] * 2,
            "fold": ["x", "y"] * 4,
            "AG": [0.1, 0.3, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5],
        }
    )


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    x = np.linspace(0, 1, 100)
    spots = pd.DataFrame({"fold": np.repeat(["A", "B"], 50), "confidence": x, "rmse": 2 - x})
    return spots, pd.DataFrame({"fold": "A", "expected": x, "pearson": x / 2})


def test_a_dot_is_a_seeds_mean_over_folds(runs):
    (ax,) = pl.variants(runs, ["AG"], reference="b")
    dots = [collection.get_offsets() for collection in ax.collections]
    np.testing.assert_allclose(sorted(dots[0][:, 0]), [0.2, 0.3])
    np.testing.assert_allclose(dots[1][:, 0], [0.5, 0.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_title() == "AG"
    top, bottom = ax.get_ylim()[1], ax.get_ylim()[0]
    assert top < 0 < 1 < bottom  # the first variant stands on top


def test_variants_that_are_not_there(runs):
    with pytest.raises(MissingKeyError, match=r"no columns \['HVG'\]"):
        pl.variants(runs, ["HVG"])
    with pytest.raises(InputError, match="reference='c' is no variant"):
        pl.variants(runs, ["AG"], reference="c")
    with pytest.raises(InputError, match="nothing to draw"):
        pl.variants(runs.iloc[:0], ["AG"])


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
