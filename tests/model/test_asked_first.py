"""What is wrong with a question is told before patches are made."""

from __future__ import annotations

import pytest

from st_gchb._errors import InputError, MissingKeyError
from st_gchb.model import STGCHB, _stgchb


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
def test_no_query_is_prepared(model: STGCHB, held_out, monkeypatch, options, error, message):
    def prepared(*_args, **_options):
        raise AssertionError("the query was prepared")

    monkeypatch.setattr(_stgchb, "prepare_query", prepared)
    with pytest.raises(error, match=message):
        model.predict(held_out, **options)
