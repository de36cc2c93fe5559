"""A training that runs away is an error, and its numbers are never predicted with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.numpy import load_file, save_file

from st_gchb._artifacts import digest, sha256_of
from st_gchb._errors import DivergenceError, ModelFileError
from st_gchb.model import STGCHB

QUIET = {"enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}


class Spoil(Callback):
    """Makes a weight NaN at one moment of the first epoch."""

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self._spoil)

    def _spoil(self, trainer, module, *_) -> None:
        with torch.no_grad():
            next(module.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("moment", ["on_train_epoch_start", "on_train_end"])
def test_numbers_that_are_none_end_the_training(reference, moment):
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10)
    with pytest.raises(DivergenceError, match=r"lr=.*lower one"):
        model.train(2, early_stopping=False, callbacks=[Spoil(moment)], **QUIET)
    assert not model.is_trained_
    assert not hasattr(model, "module")
    model.train(1, calibrate=False, **QUIET)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(DivergenceError, match=r"lr=.*lower one"):
        model.train(2, early_stopping=False, callbacks=[Spoil(moment)], **QUIET)
    assert model.is_trained_
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


@pytest.mark.parametrize("file", ["network.safetensors", "reference.safetensors"])
def test_a_saved_model_with_nan_is_refused(model, tmp_path, file):
    model.save(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / file)
    name = next(key for key in sorted(tensors) if key in ("keys", "appearance.components"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, tmp_path / "m" / file)
    record = json.loads((tmp_path / "m" / "model.json").read_text())
    record["sha256"][file] = sha256_of(tmp_path / "m" / file)
    del record["record_sha256"]
    (tmp_path / "m" / "model.json").write_text(json.dumps(record | {"record_sha256": digest(record)}))
    with pytest.raises(ModelFileError, match=f"NaN or infinite numbers in .*{name}"):
        STGCHB.load(tmp_path / "m")
