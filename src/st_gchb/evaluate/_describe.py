"""Descriptions of methods that are the same in every process, by which stored runs are found again."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from st_gchb.evaluate import _methods
from st_gchb.evaluate._published import resolved_settings
from st_gchb.evaluate._task import Method
from st_gchb.model import ModelSettings, settings_for

_TRAINED = (_methods._model, _methods._model_of_log_counts)
"""Functions that train the model."""
# Keywords of the function itself; all others are settings of the model.
_OWN = {name for name, p in inspect.signature(_methods._model).parameters.items() if p.kind is not p.VAR_KEYWORD}


class _UnstableError(Exception):
    """The object has no description that another process would reproduce."""


def model_settings(method: Method) -> tuple[str, ModelSettings] | None:
    """Return preset and resolved settings of a method that trains the model; ``None`` for any other method.

    Raises
    ------
    InputError
        A keyword is not a setting, or its value is out of range.
    """
    if not isinstance(method, partial) or method.func not in _TRAINED or method.args:
        return None
    preset = method.keywords.get("preset", "default")
    return preset, settings_for(preset, {key: value for key, value in method.keywords.items() if key not in _OWN})


def describe(method: Method) -> dict[str, Any] | None:
    """Describe a method by values that JSON can hold.

    A model or published method is described by all of its settings, so that a changed preset counts as another
    method; a function by its name, source and keywords; an instance of a dataclass by its class and fields. Closures,
    lambdas and other objects may depend on state that cannot be inspected and have no description.

    Returns
    -------
    dict or None
        The description; ``None`` if another process could not reproduce it.

    Examples
    --------
    >>> from st_gchb.evaluate import METHODS
    >>> describe(METHODS["paper"])["settings"]["beta"]
    25.0
    >>> describe(lambda task: None) is None
    True
    """
    try:
        return _callable(method)
    except _UnstableError:
        return None


def _callable(method: Any) -> dict[str, Any]:
    resolved = model_settings(method)
    if resolved is not None:
        preset, settings = resolved
        own = {key: _value(value) for key, value in method.keywords.items() if key in _OWN and key != "preset"}
        return {
            "function": _name(method.func),
            "preset": preset,
            "settings": _value(dataclasses.asdict(settings)),
            "own": own,
        }
    if isinstance(method, partial):
        called = _callable(method.func)
        given = {"args": [_value(value) for value in method.args], "keywords": _value(method.keywords)}
        chosen = resolved_settings(method)
        return called | given | ({} if chosen is None else {"settings": _value(chosen)})
    if isinstance(method, FunctionType):
        # A wrapper has the name and the source of the function that it wraps.
        if method.__closure__ or "<" in method.__qualname__ or hasattr(method, "__wrapped__"):
            raise _UnstableError
        defaults = [_value(value) for value in method.__defaults__ or ()]
        named = _value(method.__kwdefaults__ or {})
        return {"function": _name(method), "source": _source(method), "defaults": defaults, "named_defaults": named}
    if dataclasses.is_dataclass(method) and not isinstance(method, type):
        return _instance(method) | {"source": _source(type(method))}
    raise _UnstableError


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _value(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _value(value[key]) for key in sorted(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        content = hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
        return {"array": content, "dtype": str(value.dtype), "shape": list(value.shape)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _instance(value)
    if callable(value):
        return _callable(value)
    raise _UnstableError


def _instance(value: Any) -> dict[str, Any]:
    if "<" in type(value).__qualname__:
        raise _UnstableError
    fields = {field.name: _value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"class": _name(type(value)), "fields": fields}


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _source(thing: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()
    except (OSError, TypeError) as error:
        # Defined in an interpreter: another session may define a different function of this name.
        raise _UnstableError from error
