"""Arguments and settings are checked against their annotations, here and nowhere else.

:func:`checked` stands on every public function, method and class of settings. What a single value may be is said once,
by the annotation; rules that join several values stay with the function that knows them.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import difflib
import errno
import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, overload

from st_gchb._advice import Door, current_door, entered
from st_gchb._errors import ArgumentError, InputError, ScaleError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """What a number may be, beside its type.

    Parameters
    ----------
    words
        What messages say was expected.
    low, high
        Smallest and largest value.
    above
        Value that has to be exceeded.
    error
        Type of the error.
    finite
        Whether NaN and infinity are refused.
    """

    words: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    error: type[InputError] = ArgumentError
    finite: bool = True


# Upper limits are far beyond what is of use: beyond them a call would run for ever or end in some library's overflow.
Count = Annotated[int, Limits("a whole number of 1 or more", low=1, high=2**31 - 1)]
CountFromZero = Annotated[int, Limits("a whole number of 0 or more", low=0, high=2**31 - 1)]
Pair = Annotated[int, Limits("a whole number of 2 or more", low=2, high=2**31 - 1)]
Width = Annotated[int, Limits("a whole number from 1 to 65,536", low=1, high=2**16)]
WidthFromZero = Annotated[int, Limits("a whole number from 0 to 65,536", low=0, high=2**16)]
Epochs = Annotated[int, Limits("a whole number from 1 to 1,000,000", low=1, high=10**6)]
EpochsFromZero = Annotated[int, Limits("a whole number from 0 to 1,000,000", low=0, high=10**6)]
Rings = Annotated[int, Limits("0 (the spot alone) or a whole number up to 50", low=0, high=50)]
Versions = Annotated[int, Limits("0 (none) or a whole number up to 1,000", low=0, high=1000)]
Seed = Annotated[int, Limits("a whole number from 0 to 4,294,967,295", low=0, high=2**32 - 1)]
Share = Annotated[float, Limits("a share between 0 and 1", low=0, high=1)]
PositiveShare = Annotated[float, Limits("a share above 0, at most 1", above=0, high=1)]
Weight = Annotated[float, Limits("a number from 0 to 1,000,000", low=0, high=1e6)]
Positive = Annotated[float, Limits("a number above 0, up to 1,000,000", above=0, high=1e6)]
Temperature = Annotated[float, Limits("a number from 0.0001 to 10,000", low=1e-4, high=1e4)]
Rate = Annotated[float, Limits("a number above 0, up to 100", above=0, high=100)]
Few = Annotated[int, Limits("a whole number from 1 to 100,000", low=1, high=10**5)]
Dpi = Annotated[int, Limits("a whole number from 10 to 2,400", low=10, high=2400)]
TilePixels = Annotated[int, Limits("a whole number from 1 to 1,000", low=1, high=1000)]
Fill = Annotated[float, Limits("a number, or NaN", finite=False)]
Area = Annotated[float, Limits("an area in µm² of 0 or more", low=0, high=1e15)]
Megabytes = Annotated[float, Limits("a number of megabytes above 0", above=0, high=1e9)]
Micrometers = Annotated[float, Limits("a length in µm above 0, up to 100,000", above=0, high=1e5)]
PatchSize = Annotated[float, Limits("the side of a patch in px, from 1 to 100,000", low=1, high=1e5)]
PixelSize = Annotated[
    float, Limits("a positive size of a pixel in µm (0.001 to 10,000)", low=1e-3, high=1e4, error=ScaleError)
]


@overload
def checked(function: F) -> F: ...
@overload
def checked(*, keywords: Callable[[], Any] | None = None, apart: tuple[str, ...] = ()) -> Callable[[F], F]: ...
def checked(function: Any = None, *, keywords: Callable[[], Any] | None = None, apart: tuple[str, ...] = ()) -> Any:
    """Check what a caller gives to a function, or to a class, against the annotations, before anything else happens.

    Nothing is converted but numpy's numbers, which become Python's, and 1-D arrays given for lists. A whole number is
    no truth value, no text and no float; NaN and infinity are no numbers; None is taken only where it is annotated.
    Names that are imported for the checker of types alone are told by the name of the class.

    Parameters
    ----------
    function
        Function, method (below ``classmethod`` or ``staticmethod``), or class of settings, whose ``__init__`` is taken.
    keywords
        For a function with ``**keywords``: gives the functions or classes that these are passed to, so that unknown
        names and values are told here.
    apart
        Arguments that mean something else here than in the package's other functions: advice does not name them.

    Raises
    ------
    ArgumentError
        By the decorated function: a value that is not what its annotation says, an unknown or missing argument.

    Examples
    --------
    >>> from st_gchb._arguments import Count, checked
    >>> @checked
    ... def smooth(*, rings: Count = 2) -> int:
    ...     return rings
    >>> smooth(rings=3)
    3
    >>> smooth(rings="x")
    Traceback (most recent call last):
    st_gchb.errors.ArgumentError: smooth: rings='x'; expected a whole number of 1 or more.
    >>> smooth(ring=3)
    Traceback (most recent call last):
    st_gchb.errors.ArgumentError: smooth has no argument 'ring'; did you mean 'rings'?
    """
    if function is None:
        return functools.partial(checked, keywords=keywords, apart=apart)
    if isinstance(function, type):
        function.__init__ = checked(function.__init__, keywords=keywords)  # type: ignore[misc, call-overload]
        return function
    door = _Signature(function, keywords, apart)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        name = door.label(args)
        with entered(Door(name, door.arguments)) if current_door() is None else _NOTHING:
            args, given = door.check(name, args, given)
            return function(*args, **given)

    call.__checked__ = door  # type: ignore[attr-defined]
    return call


class _Nothing:
    """A block in which nothing is entered."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_NOTHING = _Nothing()


class _Signature:
    """Arguments of a function with the check of each, made when it is first called."""

    def __init__(
        self, function: Callable[..., Any], keywords: Callable[[], Any] | None, apart: tuple[str, ...]
    ) -> None:
        self.function, self.keywords, self.apart = function, keywords, apart
        self.signature = inspect.signature(function)
        first = next(iter(self.signature.parameters), "")
        self.is_method = first in ("self", "cls")

    def label(self, args: tuple[Any, ...]) -> str:
        """Name of the function as users write it: a method with its class, a constructor by the class."""
        name = self.function.__name__
        if not self.is_method or not args:
            return name
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        return owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"

    @functools.cached_property
    def checks(self) -> dict[str, _Check]:
        """Check of each argument by its name; those that are passed on come last."""
        return ({} if self.keywords is None else _checks_of_all(self.keywords())) | _checks_of(self.function)

    @functools.cached_property
    def arguments(self) -> dict[str, str]:
        """What a user writes for each argument."""
        return {name: f"{name}=" for name in self.checks if name not in self.apart}

    @functools.cached_property
    def takes_any(self) -> bool:
        """Whether keywords without a check may be given."""
        open_ended = any(p.kind is p.VAR_KEYWORD for p in self.signature.parameters.values())
        return open_ended and self.keywords is None

    def check(self, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as the function is to get them."""
        if not self.takes_any:
            check_known(name, given, self.checks)
        try:
            bound = self.signature.bind(*args, **given)
        except TypeError as error:
            raise ArgumentError(f"{name}: {error}; it is called as {name}{self._shown()}.") from None
        for key, value in bound.arguments.items():
            kind = self.signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[key] = {k: self._checked(name, k, v) for k, v in value.items()}
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[key] = self._checked(name, key, value)
        return bound.args, bound.kwargs

    def _checked(self, name: str, key: str, value: Any) -> Any:
        check, door = self.checks.get(key), current_door()
        spelled = f"{key}=" if door is None else door.arguments.get(key, f"{key}=")
        # On the command line an option stands alone.
        label = f"{name}: {key}" if spelled.endswith("=") else spelled
        return value if check is None else check(value, label)

    def _shown(self) -> str:
        shown = [one.replace(annotation=one.empty) for one in self.signature.parameters.values()]
        return str(inspect.Signature(shown[self.is_method :]))


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a function does not take.

    Raises
    ------
    ArgumentError
        With names that are close.
    """
    known = list(known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {_or([repr(one) for one in close])}?" if close else f"it takes {', '.join(known)}."
            raise ArgumentError(f"{name} has no argument {key!r}; {hint}")


def check_value(value: Any, annotation: Any, label: str) -> Any:
    """Check one value that is no argument, such as a line of a table.

    Raises
    ------
    ArgumentError
        Or the error of the annotation's limits.

    Examples
    --------
    >>> from st_gchb._arguments import Share, check_value
    >>> check_value(0.5, Share, "min_tissue of slide 'a'")
    0.5
    """
    return _Check(annotation)(value, label)


def check_keywords(given: Mapping[str, Any], targets: Any, label: str) -> dict[str, Any]:
    """Check a dict of keywords that is passed on to a function or class, or to the first of several that knows them.

    Raises
    ------
    ArgumentError
        With the name that no one knows, or the value that its annotation does not allow.
    """
    checks = _checks_of_all(targets)
    check_known(label, given, checks)
    return {key: checks[key](value, f"{label}: {key}") for key, value in given.items()}


def _checks_of_all(targets: Any) -> dict[str, _Check]:
    """Checks of several functions; what two of them know is as the last one says."""
    found: dict[str, _Check] = {}
    for target in targets if isinstance(targets, tuple) else (targets,):
        found |= _checks_of(target)
    return found


def _checks_of(function: Callable[..., Any]) -> dict[str, _Check]:
    """Check of each named argument of a function, or of a class's constructor."""
    if hasattr(function, "__checked__"):
        return function.__checked__.checks
    signature = inspect.signature(function)
    plain = inspect.unwrap(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    plain = getattr(plain, "__func__", plain)
    names = _Names(getattr(plain, "__module__", ""), getattr(plain, "__globals__", {}))
    found: dict[str, _Check] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in ("self", "cls"):
            continue
        kind = parameter.annotation
        if isinstance(kind, str):
            kind = eval(kind, {}, names)
        # Others' annotations say "int = None" where they mean "int | None = None".
        optional = parameter.default is None and kind is not parameter.empty
        found[name] = _Check(Any if kind is parameter.empty else Union[kind, None] if optional else kind)  # noqa: UP007
    return found


class _Named(type):
    """Stands for a class that is imported for the checker of types alone: told by its name among an object's bases."""

    def __instancecheck__(cls, value: Any) -> bool:
        return any(base.__name__ == cls.__name__ for base in type(value).__mro__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Named(name, (), {})

    def __getitem__(cls, item: Any) -> Any:
        return cls


class _Names(dict[str, Any]):
    """Names that the annotations of a module may use, with those that it imports for the checker of types alone.

    The package's own are imported now; of other packages' classes the name is enough.
    """

    def __init__(self, module: str, names: dict[str, Any]) -> None:
        super().__init__({**vars(builtins), **names})
        self.module = module

    def __missing__(self, name: str) -> Any:
        if self.module.split(".")[0] == "st_gchb":
            for node in ast.walk(ast.parse(inspect.getsource(sys.modules[self.module]))):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "st_gchb":
                    for alias in node.names:
                        if name == (alias.asname or alias.name):
                            return getattr(importlib.import_module(str(node.module)), alias.name)
        return _Named(name, (), {})


class _Check:
    """What one annotation allows."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    @functools.cached_property
    def adapter(self) -> Any:
        """Pydantic's validator of the annotation."""
        from pydantic import TypeAdapter

        return TypeAdapter(_schema(self.annotation))

    def __call__(self, value: Any, label: str) -> Any:
        """Give the value, or raise the error that the annotation asks for."""
        from pydantic import ValidationError

        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            raise self._error(value, label, error.errors(include_url=False, include_context=False)) from None

    def _error(self, value: Any, label: str, problems: list[Any]) -> InputError:
        # The innermost value is the culprit: one entry of a list is told beside the list.
        inner = max(problems, key=lambda problem: len(problem["loc"]))["input"]
        found = _found(value)
        if inner is not value and isinstance(value, list | tuple | Mapping):
            found += f" with {_found(inner).removeprefix('=').removeprefix(' is ')} in it"
        text = f"{label}{found}; expected {_or(_words(self.annotation))}."
        said = {one["msg"].removeprefix("Value error, ") for one in problems if one["type"] == "value_error"} - {""}
        text += "".join(f" {reason}." for reason in sorted(said))
        options = [option for option in _options(self.annotation) if isinstance(option, str)]
        close = difflib.get_close_matches(value, options, n=1) if isinstance(value, str) else []
        highest = [limits.high for limits in _limits(self.annotation) if limits.high is not None]
        if highest and isinstance(value, int | float) and value > max(highest):
            text += f" The largest is {max(highest):,g}."
        errors = [limits.error for limits in _limits(self.annotation) if limits.error is not ArgumentError]
        return (errors or [ArgumentError])[0](text + (f" Did you mean {close[0]!r}?" if close else ""))


_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PATHS = (Path, PurePath, os.PathLike)
_UNIONS = (Union, types.UnionType)


def _schema(kind: Any) -> Any:
    """The annotation as pydantic is to read it: strict, and classes by ``isinstance`` alone."""
    from pydantic import AllowInfNan, BeforeValidator, Field, PlainValidator, Strict, WrapValidator

    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return Any
    if kind is None or kind is type(None):
        return None
    if origin is Annotated:
        schema = _schema(inner[0])
        if not all(limits.finite for limits in _limits(kind)):
            schema = Annotated[float, Strict(), BeforeValidator(_plain)]
        for limits in _limits(kind)[:1]:
            if (limits.low, limits.high, limits.above) != (None, None, None):
                schema = Annotated[schema, Field(ge=limits.low, le=limits.high, gt=limits.above)]
        return schema
    if origin in _UNIONS:
        paths = any(_is_path(one) for one in inner)
        return Union[tuple(_schema(Path if one is str and paths else one) for one in inner)]  # noqa: UP007
    if origin is Literal:
        return Annotated[Any, PlainValidator(functools.partial(_option, inner))]
    if kind is float:
        return Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(_plain)]
    if kind in (bool, int, str):
        return Annotated[kind, Strict(), BeforeValidator(_plain)]
    if _is_path(kind):
        return Annotated[Any, PlainValidator(_path)]
    if (origin or kind) in _SEQUENCES:
        return Annotated[list[_schema(inner[0]) if inner else Any], Strict(), WrapValidator(_listed)]  # type: ignore[misc]
    if (origin or kind) is tuple and inner[1:] == (...,):
        return Annotated[tuple[_schema(inner[0]), ...], Strict(), BeforeValidator(_tupled)]  # type: ignore[misc]
    if (origin or kind) in _MAPPINGS:
        key, value = inner or (Any, Any)
        return Annotated[dict[_schema(key), _schema(value)], Strict(), BeforeValidator(_dict)]  # type: ignore[misc]
    if (origin or kind) is collections.abc.Callable:
        return Annotated[Any, PlainValidator(_callable)]
    one = origin or kind
    if not isinstance(one, type) or getattr(one, "_is_protocol", False):
        return Any
    return Annotated[Any, PlainValidator(functools.partial(_instance, one))]


def _is_path(kind: Any) -> bool:
    return (get_origin(kind) or kind) in _PATHS


def _plain(value: Any) -> Any:
    """Python's number in place of one of numpy's, or of an array without dimensions."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _path(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError
    os.fsencode(text)  # a ValueError of its own where no file can be called so
    try:
        os.lstat(os.path.expanduser(text))
    except OSError as error:
        # Elsewhere, what is not there is made or told as not there; these are told by no method of pathlib.
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
            raise ValueError(error.strerror) from None
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError("There is no such home folder")
    return value


def _option(options: tuple[Any, ...], value: Any) -> Any:
    """One of the options, by type too: True is not 1."""
    value = _plain(value)
    kind = str if isinstance(value, str) else type(value)
    if not any(kind is type(option) and value == option for option in options):
        raise ValueError
    return value


def _instance(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError
    return value


def _callable(value: Any) -> Any:
    if not callable(value):
        raise ValueError
    return value


def _listed(value: Any, check: Callable[[Any], Any]) -> Any:
    """Check the entries of a list, a tuple or an array with one dimension; a set has no order, a generator ends."""
    if isinstance(value, tuple):
        return tuple(check(list(value)))
    if isinstance(value, range | collections.abc.KeysView):
        value = list(value)
    return check(value.tolist() if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist") else value)


def _tupled(value: Any) -> Any:
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _dict(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _limits(kind: Any) -> list[Limits]:
    """All limits in an annotation."""
    here = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Limits)]
    return here + [limits for one in get_args(kind) for limits in _limits(one) if get_origin(kind) is not Literal]


def _options(kind: Any) -> list[Any]:
    """All words that an annotation lists."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [option for one in get_args(kind) for option in _options(one)]


_WORDS: dict[Any, str] = {
    None: "None",
    type(None): "None",
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text",
}


def _words(kind: Any) -> list[str]:
    """What an annotation asks for, one entry for each way to meet it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return [limits.words for limits in _limits(kind)] or _words(inner[0])
    if origin in _UNIONS:
        paths = any(_is_path(one) for one in inner)
        words = [word for one in inner if not (one is str and paths) for word in _words(one)]
        return [word.replace(f"a dict of {' or '.join(words[:1])} by name", "a dict of such by name") for word in words]
    if origin is Literal:
        return [repr(option) for option in inner]
    if kind in _WORDS:
        return [_WORDS[kind]]
    if _is_path(kind):
        return ["a path"]
    one = origin or kind
    if one in _SEQUENCES or one is tuple:
        items = [word for item in inner[:1] for word in _words(item)]
        return ["a list" + (f", each entry {_or(items)}" if items and inner[0] is not Any else "")]
    if one in _MAPPINGS:
        return ["a dict" + (f" of {_or(_words(inner[1]))} by name" if inner and inner[1] is not Any else "")]
    if one is collections.abc.Callable:
        return ["a function"]
    return [_article(getattr(one, "__name__", "object"))]


def _found(value: Any) -> str:
    """What was given, in a few characters, as it follows the argument's name."""
    if value is None or isinstance(value, str | bytes | int | float | list | tuple | set | dict):
        text = repr(value)
        return f"={text if len(text) <= 60 else f'{text[:57]}...'}"
    shape = getattr(value, "shape", None)
    return f" is {_article(type(value).__name__)}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _or(words: list[str]) -> str:
    """The words in one sentence, each once."""
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} or {last}" if first else last
