"""Every public function checks its arguments, whatever it is given, before it does anything."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

import st_gchb
from st_gchb._errors import ArgumentError, STGCHBError
from st_gchb.model import STGCHB, ModelSettings

ROOMS = ("datasets", "evaluate", "cohort", "io", "metrics", "model", "pl", "pp", "retrieval")
# What functions return: nobody makes them by hand, and a wrong one is told by the function that takes it.
RETURNED = {
    "evaluate": {"Evaluation", "Fold", "HestBench", "Reliability"},
    "io": {"Reader", "SlideImage", "SlideLevel"},
    "model": {"Predictor"},
    "pp": {"Encoder", "ExpressionRule", "Resolved", "Slice", "Tissue"},
    "retrieval": {"RidgeHead", "Neighbors", "ReferenceBank", "SearchIndex"},
}


class Unusual:
    """An object of no use."""


def odd_values() -> dict[str, Any]:
    return {
        "None": None,
        "no text": "",
        "a space": " ",
        "text": "x",
        "bytes": b"x",
        "an empty list": [],
        "a list": [1],
        "an empty dict": {},
        "a dict": {"x": "y"},
        "a set": {1},
        "NaN": float("nan"),
        "infinity": float("inf"),
        "minus one": -1,
        "zero": 0,
        "a float": 2.5,
        "huge": 1e308,
        "tiny": 1e-308,
        "beyond 64 bits": 2**63,
        "beyond floats": 10**400,
        "True": True,
        "an object": Unusual(),
        "a class": Unusual,
        "a generator": (x for x in "ab"),
        "an array": np.arange(3),
        "an array of text": np.array(["x"]),
        "numpy's NaN": np.float32("nan"),
        "numpy's infinity": np.float64("inf"),
        "numpy's date": np.datetime64("2020-01-01"),
        "complex": 1j,
        "a null byte": "a\0b",
    }


ODD = list(odd_values())


def told(call: Any, what: str) -> str | None:
    """Words of the package's error; None where the call went through. Any other error fails the test."""
    try:
        call()
    except STGCHBError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    return None


def public_functions() -> dict[str, Any]:
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"st_gchb.{room}")
        for name in module.__all__:
            one = getattr(module, name)
            if inspect.isfunction(one) or (inspect.isclass(one) and name not in RETURNED.get(room, ())):
                found[f"{room}.{name}"] = one
    for name, method in inspect.getmembers(STGCHB):
        if not name.startswith("_") and callable(method) and inspect.unwrap(method).__module__.startswith("st_gchb"):
            found[f"model.STGCHB.{name}"] = method
    return found | {"load_predictor": st_gchb.load_predictor}


FUNCTIONS = public_functions()


def check_of(function: Any) -> Any:
    return (function.__init__ if inspect.isclass(function) else function).__checked__


def test_there_are_public_functions():
    assert len(FUNCTIONS) > 50
    assert {"model.STGCHB.train", "model.STGCHB.load", "pp.embed_patches", "model.ModelSettings"} <= set(FUNCTIONS)


def test_what_is_returned_is_there():
    for room, names in RETURNED.items():
        assert names <= set(importlib.import_module(f"st_gchb.{room}").__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_checks_its_arguments(name):
    if inspect.signature(FUNCTIONS[name]).parameters:
        assert check_of(FUNCTIONS[name]).checks


@pytest.mark.parametrize("name", [name for name, one in FUNCTIONS.items() if inspect.signature(one).parameters])
def test_any_value_of_any_argument_is_taken_or_refused_in_words(name):
    door = check_of(FUNCTIONS[name])
    for argument, check in door.checks.items():
        for what, value in odd_values().items():
            label = partial(str, f"{name}: {argument}")
            words = told(partial(check, value, label), f"{argument}: {what}")
            assert words is None or (argument in words and "expected" in words)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_signature_is_still_seen(name):
    shown = inspect.signature(FUNCTIONS[name])
    assert "args" not in shown.parameters
    assert FUNCTIONS[name].__doc__


def test_settings_have_limits():
    """No number of a model's settings may be so large that training would not end."""
    for name, check in check_of(ModelSettings).checks.items():
        if isinstance(getattr(ModelSettings(), name), int | float) and not isinstance(
            getattr(ModelSettings(), name), bool
        ):
            for value in (1e30, float("inf"), 2**63, float("nan")):
                with pytest.raises(ArgumentError):
                    check(value, partial(str, name))


@pytest.fixture(scope="module")
def reference() -> AnnData:
    adata = st_gchb.datasets.synthetic_tissue(2, n_rows=5, n_cols=5, n_genes=20)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    st_gchb.pp.spatial_graph(adata, slice_key="slice")
    return adata


IMAGE = np.random.default_rng(0).integers(90, 220, (160, 160, 3)).astype(np.uint8)


def spots() -> AnnData:
    return AnnData(obsm={"spatial": np.array([[60.0, 60.0], [80.0, 90.0], [100.0, 70.0]])})


def cheap(reference: AnnData, tmp_path: Any) -> dict[str, Any]:
    """Functions with input that is right, to which one odd argument is added."""
    table = np.random.default_rng(0).random((6, 3))
    frame = st_gchb.metrics.per_gene(table, table[::-1], ["A", "B", "C"])
    good = {"image": IMAGE, "um_per_px": 2.0, "encoder": "texture", "patch_um": 150, "n_views": 1, "cache": False}
    return {
        "pp.embed_patches": lambda **odd: st_gchb.pp.embed_patches(spots(), **good | odd),
        "pp.slices_of": lambda **odd: st_gchb.pp.slices_of(spots(), **{"image": IMAGE} | odd),
        "pp.spatial_graph": lambda **odd: st_gchb.pp.spatial_graph(spots(), **odd),
        "pp.find_tissue": lambda **odd: st_gchb.pp.find_tissue(**{"image": IMAGE, "um_per_px": 2.0} | odd),
        "pp.tile_tissue": lambda **odd: st_gchb.pp.tile_tissue(
            **{"source": IMAGE, "um_per_px": 4.0, "tissue": "all"} | odd
        ),
        "pp.get_encoder": lambda **odd: st_gchb.pp.get_encoder(**{"encoder": "texture"} | odd),
        "pp.register_encoder": lambda **odd: st_gchb.pp.register_encoder(**{"name": "odd", "overwrite": True} | odd),
        "io.open_image": lambda **odd: st_gchb.io.open_image(**{"source": IMAGE} | odd),
        "io.register_reader": lambda **odd: st_gchb.io.register_reader(**{"name": "odd", "suffixes": ".odd"} | odd),
        "io.read_section": lambda **odd: st_gchb.io.read_section(**{"path": tmp_path} | odd),
        "io.write_elements": partial(st_gchb.io.write_elements, reference),
        "metrics.per_gene": lambda **odd: st_gchb.metrics.per_gene(
            **{"truth": table, "prediction": table, "genes": ["A", "B", "C"]} | odd
        ),
        "metrics.summary": lambda **odd: st_gchb.metrics.summary(**{"frame": frame, "n_top": 2} | odd),
        "model.STGCHB.setup_anndata": lambda **odd: STGCHB.setup_anndata(reference.copy(), **odd),
        "model.STGCHB.load": lambda **odd: STGCHB.load(**{"dir_path": tmp_path} | odd),
        "evaluate.leave_one_out": lambda **odd: st_gchb.evaluate.leave_one_out(reference, **odd),
    }


FIRST = {"data", "adata", "kwargs", "options", "n_slices"}


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be compiled runs as it is: tests of the encoder at work compile for real."""
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, **_: module)


@pytest.mark.parametrize("what", ODD)
def test_odd_values_through_the_doors(reference, tmp_path, not_compiled, what):
    before = {key: value.copy() for key, value in reference.obsm.items()}
    for name, call in cheap(reference, tmp_path).items():
        for argument in inspect.signature(FUNCTIONS[name]).parameters:
            if argument in FIRST:
                continue
            words = told(partial(call, **{argument: odd_values()[what]}), f"{name}({argument}={what})")
            assert words is None or len(words) > 25
    assert all((reference.obsm[key] == value).all() for key, value in before.items())


@pytest.mark.parametrize("what", ODD)
def test_odd_settings_of_a_model(reference, what):
    """Training itself is not tried: what is taken has to build a network."""
    adata = reference.copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    small = {"n_top_genes": 10, "n_hidden": 8, "n_embedding": 4, "k": 5}
    for argument in ("panel", "seed", "preset", "k", "n_hidden", "context_rings", "n_expression_components", "sigma"):
        words = told(partial(STGCHB, adata, **small | {argument: odd_values()[what]}), f"{argument}={what}")
        assert words is None or len(words) > 25
