"""Arguments and settings are checked against their annotations, in one place, in the same words."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pydantic
import pytest
from hypothesis import given, strategies as st

from st_gchb._advice import EntryPoint, Fix, advise, current_entry_point, entered
from st_gchb._arguments import Count, Limits, PixelSize, Rate, Share, check_keywords, check_value, checked
from st_gchb._errors import ArgumentError, QueryError, ScaleError, STGCHBError

if TYPE_CHECKING:
    from somewhere import Thing

    from st_gchb._options import Views


class Thing_:
    """Stands for a class of another package."""


Thing_.__name__ = "Thing"


@checked
@dataclass(frozen=True)
class Settings:
    lr: Rate = 1e-3
    kind: Literal["softmax", "mean"] = "softmax"


@checked
def call(
    k: Count = 3,
    *,
    share: Share | None = None,
    size: PixelSize | Mapping[str, PixelSize] | None = None,
    path: str | Path | None = None,
    name: str = "a",
    flag: bool = False,
    n_views: Literal[1, 4] = 1,
    genes: Sequence[str] = (),
    pair: tuple[float, ...] = (),
    function: Callable[[int], int] | None = None,
    thing: Thing | None = None,
    query: Annotated[Thing | None, Limits("a query", error=QueryError)] = None,
    anything: Any = None,
) -> dict[str, Any]:
    return dict(locals())


@checked(keywords=lambda: Settings)
def passing(flag: bool = False, **settings: Any) -> Settings:
    return Settings(**settings)


GOOD = {
    "numpy's number": ({"k": np.int64(4)}, 4),
    "a whole share": ({"share": 1}, 1.0),
    "no share": ({"share": None}, None),
    "numpy's share": ({"share": np.float32(0.5)}, 0.5),
    "an array without dimensions": ({"share": np.array(0.5)}, 0.5),
    "sizes by name": ({"size": {"A": 1, "B": np.float64(2)}}, {"A": 1.0, "B": 2.0}),
    "a path": ({"path": Path("x")}, Path("x")),
    "a path as text": ({"path": "x"}, "x"),
    "numpy's truth": ({"flag": np.bool_(True)}, True),
    "a choice": ({"n_views": 4}, 4),
    "numpy's choice": ({"n_views": np.int8(4)}, 4),
    "a list": ({"genes": ["a"]}, ["a"]),
    "a tuple": ({"genes": ("a",)}, ("a",)),
    "an array of names": ({"genes": np.array(["a", "b"])}, ["a", "b"]),
    "a list for a tuple": ({"pair": [1, 2.5]}, (1.0, 2.5)),
    "a function": ({"function": abs}, abs),
}
BAD: dict[str, tuple[dict[str, Any], type[STGCHBError], str]] = {
    "text": ({"k": "x"}, ArgumentError, r"^call: k='x'; expected a whole number of 1 or more\.$"),
    "none": ({"k": None}, ArgumentError, "k=None"),
    "a float": ({"k": 2.5}, ArgumentError, "k=2.5"),
    "a whole float": ({"k": 3.0}, ArgumentError, "k=3.0"),
    "a truth": ({"k": True}, ArgumentError, "k=True"),
    "numpy's truth": ({"k": np.bool_(True)}, ArgumentError, "expected a whole number"),
    "below": ({"k": 0}, ArgumentError, "k=0"),
    "absurd": ({"k": 2**63}, ArgumentError, "The largest is 2.14748e"),
    "an array": ({"k": np.arange(3)}, ArgumentError, r"k is a ndarray of shape \(3,\)"),
    "an object": ({"k": object()}, ArgumentError, "k is an object"),
    "nan": ({"share": float("nan")}, ArgumentError, "share=nan; expected a share between 0 and 1 or None"),
    "infinity": ({"share": float("inf")}, ArgumentError, "share=inf"),
    "a digit": ({"share": "0.5"}, ArgumentError, "share='0.5'"),
    "truth for a float": ({"share": True}, ArgumentError, "share=True"),
    "a size": ({"size": -1.0}, ScaleError, "a positive size of a pixel in µm .*a dict of such by name or None"),
    "a size by name": ({"size": {"A": "x"}}, ScaleError, r"size=\{'A': 'x'\} with 'x' in it"),
    "a name that is a number": ({"size": {1: 2.0}}, ScaleError, "with 1 in it"),
    "bytes": ({"path": b"x"}, ArgumentError, "expected a path or None"),
    "an empty path": ({"path": ""}, ArgumentError, "path=''"),
    "a path that ends early": ({"path": "a\0b"}, ArgumentError, "expected a path"),
    "a path that is too long": ({"path": "x" * 5000}, ArgumentError, "expected a path or None. File name too long"),
    "the home of nobody": ({"path": "~nobody-of-this-name/x"}, ArgumentError, "There is no such home folder"),
    "a number": ({"name": 3}, ArgumentError, "name=3; expected text"),
    "one": ({"flag": 1}, ArgumentError, "flag=1; expected True or False"),
    "another choice": ({"n_views": 3}, ArgumentError, "expected 1 or 4"),
    "truth for one": ({"n_views": True}, ArgumentError, "n_views=True"),
    "a float for one": ({"n_views": 1.0}, ArgumentError, "n_views=1.0"),
    "a word for a list": ({"genes": "abc"}, ArgumentError, "genes='abc'; expected a list, each entry text"),
    "a set": ({"genes": {"a"}}, ArgumentError, "expected a list"),
    "a generator": ({"genes": (x for x in "ab")}, ArgumentError, "genes is a generator"),
    "a number in a list": ({"genes": ["a", 1]}, ArgumentError, "with 1 in it"),
    "no function": ({"function": 3}, ArgumentError, "expected a function or None"),
    "no thing": ({"thing": 3}, ArgumentError, "expected a Thing or None"),
    "no query": ({"query": 3}, QueryError, "expected a query"),
    "a close name": ({"shar": 1}, ArgumentError, "^call has no argument 'shar'; did you mean 'share'"),
    "an unknown name": ({"zzz": 1}, ArgumentError, "it takes k, share, size"),
}


@pytest.mark.parametrize("name", GOOD)
def test_values_that_are_taken(name):
    given, expected = GOOD[name]
    found = call(**given)[next(iter(given))]
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize("name", BAD)
def test_values_that_are_refused(name):
    given, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(**given)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_any_value_is_taken_or_refused_in_words(value):
    for name in ("k", "share", "size", "path", "name", "flag", "n_views", "genes", "pair", "function", "thing"):
        try:
            call(**{name: value})
        except STGCHBError as error:
            assert str(error).startswith(f"call: {name}")  # noqa: PT017


def test_numbers_by_position_and_too_many_of_them():
    with pytest.raises(ArgumentError, match="k='x'"):
        call("x")
    with pytest.raises(
        ArgumentError, match=r"too many positional arguments; it is called as call\(k=3, \*, share=None"
    ):
        call(1, 2)


def test_a_generator_is_not_used_up_by_being_refused():
    names = (x for x in "ab")
    with pytest.raises(ArgumentError):
        call(genes=names)
    assert list(names) == ["a", "b"]


def test_a_class_that_only_the_checker_of_types_imports_is_told_by_its_name():
    assert isinstance(call(thing=Thing_())["thing"], Thing_)


def test_a_choice_that_only_the_checker_of_types_imports():
    @checked
    def encode(n_views: Views = 1) -> int:
        return n_views

    # Of this file, which is not the package's own, the name alone is known.
    with pytest.raises(ArgumentError, match="expected a Views"):
        encode(n_views=4)


def test_keywords_that_the_function_sets_are_none_of_its_arguments():
    @checked(keywords=lambda: call, decided=("share", "n_views"))
    def follow(rule: float, **options: Any) -> dict[str, Any]:
        return call(share=rule, n_views=4, **options)

    assert follow(0.5, flag=True)["share"] == 0.5
    assert not {"share", "n_views"} & set(inspect.signature(follow).parameters)
    with pytest.raises(ArgumentError, match=r"^follow has no argument 'share'; "):
        follow(0.5, share=0.1)


def test_keywords_that_are_passed_on():
    assert passing(lr=1, kind="mean") == Settings(1.0, "mean")
    with pytest.raises(ArgumentError, match="passing: lr=inf; expected a number above 0"):
        passing(lr=float("inf"))
    with pytest.raises(ArgumentError, match="passing: kind='maen'; expected 'softmax' or 'mean'. Did you mean 'mean'"):
        passing(kind="maen")
    with pytest.raises(ArgumentError, match="passing has no argument 'kin'; did you mean 'kind'"):
        passing(kin="mean")
    with pytest.raises(ArgumentError, match=r"call\(how=...\): lr='x'"):
        check_keywords({"lr": "x"}, Settings, "call(how=...)")


def test_a_check_is_made_once(monkeypatch):
    """Making one takes a hundred times as long as using it, and a model that is loaded has hundreds of values."""
    made = []

    class Counted(pydantic.TypeAdapter):
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    def target(*, rings: Count = 1) -> None: ...

    monkeypatch.setattr(pydantic, "TypeAdapter", Counted)
    for rings in (1, 2):
        assert check_keywords({"rings": rings}, target, "target") == {"rings": rings}
        assert check_value(rings, Annotated[int, Limits("a number of this test", low=1)], "n") == rings
    assert len(made) == 2
    # Equal, and written in another order.
    for kind, words in ((int | str, "a whole number or text"), (str | int, "text or a whole number")):
        with pytest.raises(ArgumentError, match=f"expected {words}"):
            check_value([], kind, "n")


def test_settings_are_checked_when_they_are_made_and_changed():
    with pytest.raises(ArgumentError, match="Settings: lr=0; expected"):
        Settings(lr=0)
    with pytest.raises(ArgumentError, match="Settings: lr=-1; expected"):
        replace(Settings(), lr=-1)
    with pytest.raises(ArgumentError, match="Settings has no argument 'l'"):
        Settings(l=1)


def test_methods_are_called_by_their_class():
    class Model:
        @checked
        def __init__(self, k: Count) -> None: ...

        @checked
        def fit(self, k: Count) -> int:
            return k

        @classmethod
        @checked
        def load(cls, k: Count) -> int:
            return k

    assert Model(1).fit(2) == Model.load(2) == 2
    for made, words in ((lambda: Model(0), "^Model: k=0"), (lambda: Model(1).fit(0), "^Model.fit: k=0")):
        with pytest.raises(ArgumentError, match=words):
            made()
    with pytest.raises(ArgumentError, match="^Model.load: k=0"):
        Model.load(0)
    with pytest.raises(ArgumentError, match=r"^Model: missing a required argument: 'k'"):
        Model()


def test_advice_names_what_the_called_function_has():
    fixes = Fix("image", why="with the image"), Fix("image_key", "'hires'")

    @checked
    def inner(image_key: str = "x") -> str:
        return advise(*fixes, otherwise="Make the features first.")

    @checked
    def outer(image: str = "x") -> str:
        return inner(image_key="y")

    @checked
    def neither() -> str:
        return advise(*fixes, otherwise="Make the features first.")

    assert inner() == "Pass image_key='hires'."
    assert outer() == "Pass image= with the image."
    assert neither() == "Make the features first."
    with entered(EntryPoint("st-gchb predict", {"image_key": "--image-key", "k": "--k"})):
        assert outer() == "Pass --image-key hires."
        with pytest.raises(ArgumentError, match="^--k='x'"):
            call(k="x")
    assert current_entry_point() is None


def test_the_package_alone_does_not_import_pydantic():
    code = "import sys, st_gchb, st_gchb._arguments; print('pydantic' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
