"""The public types of errors: all of them, documented, and the same classes wherever they are imported from."""

from __future__ import annotations

import inspect
import pickle

import pytest

import st_gchb
from st_gchb import _errors, errors

TYPES = [value for value in vars(_errors).values() if inspect.isclass(value) and issubclass(value, BaseException)]


def test_every_type_is_public():
    assert sorted(errors.__all__) == sorted(one.__name__ for one in TYPES)
    assert st_gchb.errors is errors


@pytest.mark.parametrize("error", TYPES, ids=lambda one: one.__name__)
def test_a_type_is_documented_and_known_by_its_public_name(error):
    assert getattr(errors, error.__name__) is error
    assert error.__module__ == "st_gchb.errors"
    assert issubclass(error, errors.STGCHBError) == (error is not errors.TerminatedError)
    lines = inspect.getdoc(error).splitlines()
    assert lines[0].endswith((".", ":")) or "``" in lines[0]
    assert "__doc__" in vars(error)


def test_an_error_survives_the_way_from_a_worker():
    again = pickle.loads(pickle.dumps(errors.MissingKeyError("obs has no column 'slice'")))
    assert type(again) is errors.MissingKeyError
    assert str(again) == "obs has no column 'slice'"


def test_the_end_of_a_process_is_not_swallowed_by_a_loop_that_goes_on_after_errors():
    assert not issubclass(errors.TerminatedError, Exception)
    assert issubclass(errors.TerminatedError, SystemExit)


def test_a_kind_of_ones_own_keeps_its_module():
    class MyError(errors.InputError):
        pass

    assert MyError.__module__ == __name__
