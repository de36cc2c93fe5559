"""Check that every fold has enough training spots for the methods that retrieve k of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from st_gchb._errors import InputError
from st_gchb.evaluate import _methods
from st_gchb.evaluate._describe import model_settings
from st_gchb.evaluate._folds import Fold
from st_gchb.evaluate._methods import Method
from st_gchb.model import check_k


def check_reference(folds: Sequence[Fold], methods: Mapping[str, Method]) -> None:
    """Reject a fold with fewer training spots than a method retrieves.

    Methods that train the model are checked with their resolved settings, and so are nearest neighbors; the number of
    spots that other methods retrieve is not known.

    Raises
    ------
    InputError
        A fold is too small; the message names fold, method, number of spots and k.
    """
    for fold in folds:
        for name, method in methods.items():
            try:
                _check(method, len(fold.train))
            except InputError as error:
                raise InputError(f"Fold {fold.name!r}, method {name!r}: {error} Or leave this method out.") from error


def _check(method: Method, n_train: int) -> None:
    resolved = model_settings(method)
    if resolved is not None:
        preset, settings = resolved
        check_k(settings, preset, n_train)
        return
    keywords: dict[str, Any] = method.keywords if isinstance(method, partial) else {}
    function = method.func if isinstance(method, partial) else method
    if function is _methods.nearest_neighbors:
        k = keywords.get("k", inspect.signature(_methods.nearest_neighbors).parameters["k"].default)
        if k > n_train:
            raise InputError(f"k={k}, but the training slices have {n_train} spots. Pass more slices, or a lower k.")
