"""The figure of a study: a dot per seed, a bar at the mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from st_gchb._errors import InputError, MissingKeyError
from studies._figure import variants


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


def test_a_dot_is_a_seeds_mean_over_folds(runs):
    (ax,) = variants(runs, ["AG"], reference="b")
    dots = [collection.get_offsets() for collection in ax.collections]
    np.testing.assert_allclose(sorted(dots[0][:, 0]), [0.2, 0.3])
    np.testing.assert_allclose(dots[1][:, 0], [0.5, 0.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_title() == "AG"
    top, bottom = ax.get_ylim()[1], ax.get_ylim()[0]
    assert top < 0 < 1 < bottom  # the first variant stands on top


def test_variants_that_are_not_there(runs):
    with pytest.raises(MissingKeyError, match=r"no columns \['HVG'\]"):
        variants(runs, ["HVG"])
    with pytest.raises(InputError, match="reference='c' is no variant"):
        variants(runs, ["AG"], reference="c")
    with pytest.raises(InputError, match="nothing to draw"):
        variants(runs.iloc[:0], ["AG"])
