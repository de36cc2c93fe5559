"""One quantity, written in the many ways in which files write it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from st_gchb._errors import InputError, ScaleError
from st_gchb.io import one_number, positive, reading, um_per_unit

FORMS = [
    lambda x: x,
    lambda x: np.float64(x),
    lambda x: np.array(x),
    lambda x: np.array([x]),
    lambda x: np.array([[x]]),
    lambda x: [x],
    lambda x: (x,),
    lambda x: pd.Series([x]),
    lambda x: repr(x),
    lambda x: [repr(x)],
    lambda x: repr(x).encode(),
    lambda x: np.array([repr(x)], dtype=object),
    lambda x: np.array(repr(x)),
]


@pytest.mark.parametrize("form", FORMS)
@given(value=st.floats(min_value=1e-300, max_value=1e300))
def test_a_number_is_read_in_every_form_in_which_it_is_stored(form, value):
    assert one_number(form(value)) == value
    assert positive(form(value), "size") == value


@given(st.one_of(st.text(), st.binary(), st.lists(st.floats()), st.none(), st.booleans(), st.integers(), st.floats()))
def test_a_size_is_positive_and_finite_or_refused(value):
    number = one_number(value)
    if number is not None and math.isfinite(number) and number > 0:
        assert positive(value, "size") == number
    else:
        with pytest.raises(ScaleError, match="expected a positive number"):
            positive(value, "size")


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        *[(text, 1.0) for text in ("\u00b5m", "\u03bcm", "um", "UM", " um ", "micron", "Microns", "micrometer")],
        *[(text, 1.0) for text in ("micrometre", "\u339b", b"um", b"\xc2\xb5m")],
        *[(text, 1e3) for text in ("mm", "millimeter", "Millimetres")],
        *[("nm", 1e-3), ("nanometers", 1e-3), ("cm", 1e4), ("centimeter", 1e4), ("m", 1e6), ("in", 25400.0)],
        *[(text, None) for text in ("", "px", "pixel", "s", "furlong", None, 3)],
    ],
)
def test_units(unit, um):
    assert um_per_unit(unit) == um


@given(st.text())
def test_any_text_is_a_unit_or_none(text):
    um = um_per_unit(text)
    assert um is None or um > 0


def test_what_goes_wrong_while_a_file_is_read_is_told_with_its_path():
    from anndata._io.specs.registry import IORegistryError
    from pyarrow import ArrowException

    for error in (IORegistryError("odd"), ArrowException("odd"), KeyError("odd"), RuntimeError("odd"), OSError("odd")):
        with pytest.raises(InputError, match=r"a\.h5ad: the table cannot be read \(.*odd.*\)\. Write it again\."):
            with reading("a.h5ad", "the table", "Write it again."):
                raise error
    with pytest.raises(ScaleError, match="own words"):
        with reading("a.h5ad", "the table"):
            raise ScaleError("own words")
    with pytest.raises(KeyboardInterrupt):
        with reading("a.h5ad", "the table"):
            raise KeyboardInterrupt
