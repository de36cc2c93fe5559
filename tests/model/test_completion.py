"""What completion and ``help`` offer of the model: the arguments that a method passes on, by name."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import fields

import pytest
from anndata import AnnData
from IPython.core.completer import IPCompleter, provisionalcompleter
from scvi.train import Trainer

from st_gchb.errors import ArgumentError
from st_gchb.model import STGCHB, ModelSettings

METHODS = {
    "STGCHB(adata, ": {"n_top": {"n_top_genes"}, "dgi_": {"dgi_image", "dgi_expression"}, "pan": {"panel"}},
    "model.train(5, ": {"enable_prog": {"enable_progress_bar"}, "early_stopping_p": {"early_stopping_patience"}},
    "STGCHB.setup_anndata(adata, ": {"source": {"source_registry"}, "slice": {"slice_key"}},
    "STGCHB.setup_spatialdata(sdata, ": {"log": {"log_normalized"}, "lay": {"layer"}, "extend": {"extend_categories"}},
    "model.save('folder', ": {"compression_": {"compression_opts"}},
}


def completed(line, *, use_jedi):
    """Names of arguments that IPython offers at the end of a line."""
    model = STGCHB.__new__(STGCHB)
    names = {"STGCHB": STGCHB, "model": model, "adata": None, "sdata": None}
    completer = IPCompleter(namespace=names, global_namespace={})
    completer.use_jedi = use_jedi
    with provisionalcompleter():
        found = [one.text for one in completer.completions(line, len(line))]
    return {text.removesuffix("=") for text in found if text.endswith("=")}


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize("call", METHODS)
def test_a_notebook_offers_the_arguments_that_are_passed_on(call, use_jedi):
    for begun, expected in METHODS[call].items():
        assert completed(call + begun, use_jedi=use_jedi) == expected


def test_the_signature_shows_each_setting_with_its_default():
    shown = inspect.signature(STGCHB).parameters
    for field in fields(ModelSettings):
        assert shown[field.name].default == field.default
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())
    text = pydoc.render_doc(STGCHB, renderer=pydoc.plaintext)
    assert "n_top_genes: 'Count' = 2000" in text


def test_own_arguments_go_before_those_of_the_trainer():
    shown = inspect.signature(STGCHB.train).parameters
    assert shown["max_epochs"].default is None
    assert shown["early_stopping"].default is True
    assert shown["benchmark"].default is inspect.signature(Trainer).parameters["benchmark"].default


@pytest.mark.parametrize("method", [STGCHB, STGCHB.setup_anndata, STGCHB.setup_spatialdata, STGCHB.train, STGCHB.save])
def test_what_is_shown_is_what_is_taken(method):
    door = (method.__init__ if isinstance(method, type) else method).__checked__
    shown = set(inspect.signature(method).parameters) - {"self"}
    assert shown == set(door.checks)


def test_arguments_that_a_method_passes_itself_are_not_taken_from_outside():
    with pytest.raises(ArgumentError, match="setup_spatialdata has no argument 'adata'"):
        STGCHB.setup_spatialdata(None, adata=AnnData())
    with pytest.raises(ArgumentError, match="save has no argument 'filename'"):
        STGCHB.__new__(STGCHB).save("folder", filename="other")
