"""Validation of arguments and settings against their annotations.

:func:`checked` decorates every public function, public method and class of settings. The annotation alone defines the
values that an argument accepts; rules that involve several arguments are checked by the function that takes them.
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

from st_gchb._advice import EntryPoint, current_entry_point, entered
from st_gchb._errors import ArgumentError, InputError, ScaleError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """Allowed range of a number, in addition to its type.

    Parameters
    ----------
    words
        Description of the expected value in messages.
    low, high
        Smallest and largest allowed value.
    above
        Exclusive lower bound.
    error
        Type of the error that is raised.
    finite
        Whether NaN and infinity are rejected.
    """

    words: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    error: type[InputError] = ArgumentError
    finite: bool = True


# Upper limits lie far beyond useful values: larger ones would run forever or overflow inside another library.
Count = Annotated[int, Limits("a whole number of 1 or more", low=1, high=2**31 - 1)]
CountFromZero = Annotated[int, Limits("a whole number of 0 or more", low=0, high=2**31 - 1)]
Pair = Annotated[int, Limits("a whole number of 2 or more", low=2, high=2**31 - 1)]
Width = Annotated[int, Limits("a whole number from 1 to 65,536", low=1, high=2**16)]
WidthFromZero = Annotated[int, Limits("a whole number from 0 to 65,536", low=0, high=2**16)]
Epochs = Annotated[int, Limits("a whole number from 1 to 1,000,000", low=1, high=10**6)]
EpochsFromZero = Annotated[int, Limits("a whole number from 0 to 1,000,000", low=0, high=10**6)]
Rings = Annotated[int, Limits("0 (the spot alone) or a whole number up to 50", low=0, high=50)]
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
Diameter = Annotated[float, Limits("a diameter in px above 0, up to 100,000", above=0, high=1e5, error=ScaleError)]
PixelSize = Annotated[
    float, Limits("a positive size of a pixel in µm (0.001 to 10,000)", low=1e-3, high=1e4, error=ScaleError)
]


@overload
def checked(function: F) -> F: ...
@overload
def checked(
    *, keywords: Callable[[], Any] | None = None, decided: tuple[str, ...] = (), apart: tuple[str, ...] = ()
) -> Callable[[F], F]: ...
def checked(
    function: Any = None,
    *,
    keywords: Callable[[], Any] | None = None,
    decided: tuple[str, ...] = (),
    apart: tuple[str, ...] = (),
) -> Any:
    """Validate the arguments of a function, or of a class's constructor, against their annotations on each call.

    Values are not converted, except for numpy scalars, which become Python numbers, and 1-D arrays passed for lists.
    An integer may not be given as a boolean, text or float; NaN and infinity are rejected; None is accepted only where
    it is annotated. Classes that are imported only under ``TYPE_CHECKING`` are compared by name.

    Parameters
    ----------
    function
        Function, method (below ``classmethod`` or ``staticmethod``), or class of settings, whose ``__init__`` is
        decorated.
    keywords
        For a function with ``**keywords``: returns the function or class, or a tuple of them, that receives these, so
        that unknown names and invalid values are reported here. Accepted are the keyword-only arguments of a function,
        and those of a class that have a default. ``inspect.signature``, and with it ``help`` and completion, shows
        them in place of ``**keywords``.
    decided
        Of these keywords, those that the function sets itself, and so does not accept.
    apart
        Arguments whose meaning differs from that of the same name elsewhere in the package; advice does not name them.

    Raises
    ------
    ArgumentError
        By the decorated function, for a value that does not match its annotation, or an unknown or missing argument.

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
        return functools.partial(checked, keywords=keywords, decided=decided, apart=apart)
    if isinstance(function, type):
        function.__init__ = checked(function.__init__, keywords=keywords)  # type: ignore[misc, call-overload]
        return function
    signature = _Signature(function, keywords, decided, apart)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        name = signature.label(args)
        with entered(EntryPoint(name, signature.arguments)) if current_entry_point() is None else _NOTHING:
            args, given = signature.check(name, args, given)
            return function(*args, **given)

    call.__checked__ = signature  # type: ignore[attr-defined]
    if keywords is not None:
        call.__signature__ = signature.shown()  # type: ignore[attr-defined]
    return call


class _Nothing:
    """Reusable context manager that does nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_NOTHING = _Nothing()


class _Signature:
    """Arguments of a function with a check for each, built when the function is first called."""

    def __init__(
        self,
        function: Callable[..., Any],
        keywords: Callable[[], Any] | None,
        decided: tuple[str, ...],
        apart: tuple[str, ...],
    ) -> None:
        self.function, self.keywords, self.apart = function, keywords, apart
        self.signature = inspect.signature(function)
        self.not_passed_on = {*self.signature.parameters, *decided}
        first = next(iter(self.signature.parameters), "")
        self.is_method = first in ("self", "cls")

    def label(self, args: tuple[Any, ...]) -> str:
        """Return the function's name as users write it: a method with its class, a constructor as the class."""
        name = self.function.__name__
        if not self.is_method or not args:
            return name
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        return owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"

    @functools.cached_property
    def checks(self) -> dict[str, _Check]:
        """Check of each argument, by name; the function's own arguments override those of its keyword targets."""
        known = {} if self.keywords is None else _checks_of_all(self.keywords())
        return {name: known[name] for name in known if name in self.passed_on} | {**_checks_of(self.function)}

    @functools.cached_property
    def passed_on(self) -> dict[str, inspect.Parameter]:
        """Arguments that ``**keywords`` stands for; for a name that two targets share, the last one counts."""
        found: dict[str, inspect.Parameter] = {}
        for target in () if self.keywords is None else _as_tuple(self.keywords()):
            for name, parameter in inspect.signature(target).parameters.items():
                is_option = isinstance(target, type) and parameter.default is not parameter.empty
                if parameter.kind is parameter.KEYWORD_ONLY or is_option:
                    found[name] = parameter.replace(kind=parameter.KEYWORD_ONLY)
        return {name: parameter for name, parameter in found.items() if name not in self.not_passed_on}

    def shown(self) -> inspect.Signature:
        """Return the signature with the arguments that ``**keywords`` stands for in its place."""
        own = [one for one in self.signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        return self.signature.replace(parameters=[*own, *self.passed_on.values()])

    @functools.cached_property
    def arguments(self) -> dict[str, str]:
        """Text that a user writes for each argument."""
        return {name: f"{name}=" for name in self.checks if name not in self.apart}

    @functools.cached_property
    def takes_any(self) -> bool:
        """True if the function accepts keywords for which there is no check."""
        open_ended = any(p.kind is p.VAR_KEYWORD for p in self.signature.parameters.values())
        return open_ended and self.keywords is None

    def check(self, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the validated positional and keyword arguments."""
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
        check = self.checks.get(key)
        return value if check is None else check(value, functools.partial(_spelled, name, key))

    def _shown(self) -> str:
        shown = [one.replace(annotation=one.empty) for one in self.signature.parameters.values()]
        return str(inspect.Signature(shown[self.is_method :]))


def _spelled(name: str, key: str) -> str:
    """Write an argument for messages as the user of the current entry point writes it."""
    entry_point = current_entry_point()
    spelled = f"{key}=" if entry_point is None else entry_point.arguments.get(key, f"{key}=")
    # On the command line, the option identifies the argument without the function's name.
    return f"{name}: {key}" if spelled.endswith("=") else spelled


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Reject keywords that a function does not take.

    Raises
    ------
    ArgumentError
        A keyword is unknown; the message suggests similar names.
    """
    known = list(known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {_or([repr(one) for one in close])}?" if close else f"it takes {', '.join(known)}."
            raise ArgumentError(f"{name} has no argument {key!r}; {hint}")


def check_value(value: Any, annotation: Any, label: str) -> Any:
    """Validate a value that is not an argument, such as an entry of a table.

    Raises
    ------
    ArgumentError
        The value does not match the annotation, whose limits may name another type of error.

    Examples
    --------
    >>> from st_gchb._arguments import Share, check_value
    >>> check_value(0.5, Share, "min_tissue of slide 'a'")
    0.5
    """
    return _check_of(annotation, repr(annotation))(value, lambda: label)


@functools.lru_cache(maxsize=256)
def _check_of(annotation: Any, written: str) -> _Check:
    """Return the check of an annotation; alternatives in another order are equal, and are told apart as ``written``."""
    return _Check(annotation)


def check_keywords(given: Mapping[str, Any], targets: Any, label: str) -> dict[str, Any]:
    """Validate a dict of keywords that is passed on to a function or class, or to a tuple of them.

    Raises
    ------
    ArgumentError
        A keyword is unknown to all of them, or its value does not match its annotation.
    """
    checks = _checks_of_all(targets)
    check_known(label, given, checks)
    return {key: checks[key](value, functools.partial("{}: {}".format, label, key)) for key, value in given.items()}


def _checks_of_all(targets: Any) -> dict[str, _Check]:
    """Collect the checks of several functions; for a name that two of them share, the last one counts."""
    found: dict[str, _Check] = {}
    for target in _as_tuple(targets):
        found |= _checks_of(target)
    return found


def _as_tuple(targets: Any) -> tuple[Any, ...]:
    return targets if isinstance(targets, tuple) else (targets,)


@functools.lru_cache(maxsize=256)
def _checks_of(function: Callable[..., Any]) -> Mapping[str, _Check]:
    """Build the check of each named argument of a function, or of a class's constructor."""
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
        # Other packages annotate "int = None" where they mean "int | None = None".
        optional = parameter.default is None and kind is not parameter.empty
        found[name] = _Check(Any if kind is parameter.empty else Union[kind, None] if optional else kind)  # noqa: UP007
    return found


class _Named(type):
    """Stand-in for a class that is imported only under ``TYPE_CHECKING``; instances match by a base class's name."""

    def __instancecheck__(cls, value: Any) -> bool:
        return any(base.__name__ == cls.__name__ for base in type(value).__mro__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Named(name, (), {})

    def __getitem__(cls, item: Any) -> Any:
        return cls


class _Names(dict[str, Any]):
    """Namespace in which a module's annotations are evaluated, including its imports under ``TYPE_CHECKING``.

    Names of this package are imported on demand; classes of other packages are represented by :class:`_Named`.
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
    """Validator of one annotation."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    @functools.cached_property
    def adapter(self) -> Any:
        """Pydantic's type adapter of the annotation."""
        from pydantic import TypeAdapter

        return TypeAdapter(_schema(self.annotation))

    def __call__(self, value: Any, label: Callable[[], str]) -> Any:
        """Return the validated value, or raise the error type that the annotation specifies, with a label in front."""
        from pydantic import ValidationError

        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            raise self._error(value, label(), error.errors(include_url=False, include_context=False)) from None

    def _error(self, value: Any, label: str, problems: list[Any]) -> InputError:
        # The innermost value caused the error: an invalid entry of a list is reported together with the list.
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
    """Translate an annotation for pydantic: strict types, and classes checked by ``isinstance`` alone."""
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
    """Convert a numpy scalar or zero-dimensional array to a Python number."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _path(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError
    os.fsencode(text)  # raises ValueError where no file can have this name
    try:
        os.lstat(os.path.expanduser(text))
    except OSError as error:
        # The caller creates or reports missing paths; these two errors would be hidden by pathlib's methods.
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
            raise ValueError(error.strerror) from None
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError("There is no such home folder")
    return value


def _option(options: tuple[Any, ...], value: Any) -> Any:
    """Require one of the options, equal in type too: True is not 1."""
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
    """Validate the entries of a list, tuple or 1-D array; sets have no order, and generators can be read only once."""
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
    """Collect all limits in an annotation."""
    here = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Limits)]
    return here + [limits for one in get_args(kind) for limits in _limits(one) if get_origin(kind) is not Literal]


def _options(kind: Any) -> list[Any]:
    """Collect all options that an annotation lists."""
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
    """Describe the values that an annotation accepts, one entry per alternative."""
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
    """Format the given value in a few characters, as it follows the argument's name in a message."""
    if value is None or isinstance(value, str | bytes | int | float | list | tuple | set | dict):
        text = repr(value)
        return f"={text if len(text) <= 60 else f'{text[:57]}...'}"
    shape = getattr(value, "shape", None)
    return f" is {_article(type(value).__name__)}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _or(words: list[str]) -> str:
    """Join words by commas and a final "or", each once."""
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} or {last}" if first else last
