"""A model between ``STGCHB(adata)`` and ``train()``: the network is not built yet, and what needs it says so."""

from __future__ import annotations

import copy
import inspect
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from st_gchb.errors import ArgumentError, InputError, NotTrainedError, TerminatedError
from st_gchb.model import STGCHB


def new(adata: AnnData) -> STGCHB:
    STGCHB.setup_anndata(adata, slice_key="slice")
    return STGCHB(adata, n_top_genes=10, n_hidden=16, n_embedding=8, k=10)


@pytest.fixture
def untrained(reference: AnnData) -> STGCHB:
    return new(reference)


def trained(model: STGCHB) -> STGCHB:
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=False)
    return model


@pytest.fixture(scope="module")
def undisturbed_id(tissue: AnnData) -> str:
    """Identity of the model that a training makes of the untrained one when nothing comes in between."""
    return trained(new(tissue[tissue.obs["slice"] != "S3"].copy())).model_id_


def test_the_module_is_told_to_come_with_training(untrained: STGCHB):
    with pytest.raises(NotTrainedError, match=r"no module yet.*model\.train\(\) first"):
        _ = untrained.module
    # What lists the attributes of an object, as completion does, takes the module for absent.
    assert not hasattr(untrained, "module")
    assert "preset" in dict(inspect.getmembers(untrained))
    assert next(trained(untrained).module.parameters()).device.type == "cpu"


def test_a_device_that_is_chosen_before_training_is_where_the_network_is_built(
    untrained: STGCHB, monkeypatch: pytest.MonkeyPatch
):
    assert untrained.device == torch.device("cpu")
    # The meta device stands for a GPU: it is everywhere.
    untrained.to_device("meta")
    assert untrained.device == torch.device("meta")
    untrained._fit()
    assert untrained.device == untrained.module.device == torch.device("meta")


def test_a_model_that_was_sent_to_the_cpu_trains_as_any_other(untrained: STGCHB):
    other = copy.deepcopy(untrained)
    untrained.to_device(torch.device("cpu"))
    assert trained(untrained).model_id_ == trained(other).model_id_
    assert untrained.device == torch.device("cpu")


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_device_that_is_not_there_is_refused(is_trained: bool, untrained: STGCHB):
    model = trained(untrained) if is_trained else untrained
    for device in ("nonsense", 1000, -1):
        with pytest.raises(InputError, match=r"not usable here"):
            model.to_device(device)
    with pytest.raises(ArgumentError, match="to_device: device=None"):
        model.to_device(None)
    assert model.device == torch.device("cpu")


def test_it_is_shown_as_not_trained(untrained: STGCHB, capsys: pytest.CaptureFixture[str]):
    assert repr(untrained) == ""
    shown = capsys.readouterr().out
    assert "STGCHB, preset 'default': embedding of 8" in shown
    assert "Not Trained" in shown
    trained(untrained)
    assert "10 genes" in untrained.summary_string
    assert "Training status: Trained" in untrained.summary_string


COPIES: dict[str, Callable[[STGCHB], STGCHB]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_trains_to_the_same_model_and_leaves_the_original_untrained(
    way: str, untrained: STGCHB, held_out: AnnData
):
    other = COPIES[way](untrained)
    assert not hasattr(other, "module")
    expected = trained(other).predict(held_out).layers["st_gchb"]
    assert not hasattr(untrained, "module")
    assert not untrained.is_trained
    assert np.array_equal(trained(untrained).predict(held_out).layers["st_gchb"], expected)


def test_it_cannot_be_saved(untrained: STGCHB, tmp_path):
    with pytest.raises(NotTrainedError, match="save needs a trained model"):
        untrained.save(tmp_path / "model", save_anndata=True)
    assert list(tmp_path.iterdir()) == []


def ended_at(moment: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process be told to end when a function of the training has returned."""
    module = sys.modules[STGCHB.__module__]
    function = getattr(module, moment)

    def told(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        # The default handler would end this process.
        assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)
        signal.raise_signal(number)
        return result

    monkeypatch.setattr(module, moment, told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["fit", "build_module", "training_identity", "training_data"])
def test_a_signal_before_the_first_epoch_leaves_the_model_as_it_was(
    moment: str, number: signal.Signals, untrained: STGCHB, undisturbed_id: str, monkeypatch: pytest.MonkeyPatch
):
    before, handler = dict(vars(untrained)), signal.getsignal(number)
    ended_at(moment, number, monkeypatch)
    error = KeyboardInterrupt if number == signal.SIGINT else TerminatedError
    with pytest.raises(error, match="" if number == signal.SIGINT else "Training was ended by SIGTERM"):
        trained(untrained)
    assert signal.getsignal(number) is handler
    assert all(value is before.get(name) for name, value in vars(untrained).items())
    assert not hasattr(untrained, "module")
    monkeypatch.undo()
    assert trained(untrained).model_id_ == undisturbed_id


def test_an_error_while_fitting_leaves_a_trained_model_as_it_was(untrained: STGCHB, monkeypatch: pytest.MonkeyPatch):
    model = pickle.loads(pickle.dumps(trained(untrained)))
    model._fitted = None
    before, weights = dict(vars(model)), {name: value.clone() for name, value in model.module.state_dict().items()}
    ended_at("fit", signal.SIGTERM, monkeypatch)
    with pytest.raises(TerminatedError):
        trained(model)
    assert all(value is before[name] for name, value in vars(model).items() if name != "history_")
    assert list(model.history_) == list(before["history_"])
    assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())
