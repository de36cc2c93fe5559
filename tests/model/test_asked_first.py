"""What is wrong with a question is told before patches are made."""

from __future__ import annotations

import pandas as pd
import pytest
from anndata import AnnData

from st_gchb._errors import InputError, MissingKeyError
from st_gchb.model import STGCHB


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "none"}, MissingKeyError, "none of the reference's tables"),
        ({"k": 0}, InputError, "k=0"),
        ({"k": 100_000}, InputError, "k=100000"),
        ({"weighting": "median"}, InputError, "weighting='median'"),
        ({"write": True}, InputError, "write= and key_added="),
    ],
)
def test_no_query_is_prepared(model: STGCHB, options, error, message):
    """A query without positions, whose preparation fails at its first step."""
    query = AnnData(obs=pd.DataFrame(index=["A", "B"]))
    with pytest.raises(MissingKeyError, match="spatial"):
        model.predict(query)
    with pytest.raises(error, match=message):
        model.predict(query, **options)
