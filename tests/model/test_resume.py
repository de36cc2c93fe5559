"""Training that ends early: the model is as before, and the same call goes on to the same end."""

from __future__ import annotations

import logging
import signal
import sys
import textwrap

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from st_gchb._errors import CheckpointError, DeviceError, InputError
from st_gchb.model import STGCHB

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
WITH_GRAPH = {"image_graph": "sage", "expression_graph": "gcn", "dgi_image": 0.1, "dgi_expression": 0.1}


class Stop(Callback):
    """Raises in the middle of an epoch; each training counts from 0."""

    def __init__(self, error, epoch, step=1, training=0):
        self.error, self.epoch, self.step, self.training, self.seen = error, epoch, step, training, -1

    def on_fit_start(self, trainer, pl_module):
        self.seen += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (self.seen, trainer.current_epoch, batch_idx) == (self.training, self.epoch, self.step):
            raise self.error


def new(reference, **settings):
    adata = reference.copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    return STGCHB(adata, n_top_genes=20, k=30, **({"batch_size": 24} | settings))


def assert_same_training(found, expected):
    for name, value in expected.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value), name
    assert found.history.keys() == expected.history.keys()
    for name, frame in expected.history.items():
        assert found.history[name].index.tolist() == frame.index.tolist()
        assert found.history[name][name].tolist() == frame[name].tolist(), name
    np.testing.assert_array_equal(found.bank_.keys, expected.bank_.keys)
    assert found.model_id_ == expected.model_id_


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (KeyboardInterrupt(), {"max_epochs": 6, "patience": 2}),
        (RuntimeError("power"), WITH_GRAPH | {"pretrain_epochs": 1, "max_epochs": 3, "sampler": "slices"}),
    ],
    ids=["default", "graph"],
)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(reference, tmp_path, settings, error, caplog):
    whole = new(reference, **settings)
    whole.train(calibrate=False, **QUIET)
    one = new(reference, **settings)
    one._fit()
    before = {name: value.clone() for name, value in one.module.state_dict().items()}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(type(error)), caplog.at_level(logging.WARNING, logger="st_gchb"):
        one.train(calibrate=False, checkpoint_dir=tmp_path, callbacks=[Stop(error, epoch=2)], **QUIET)
    assert signal.getsignal(signal.SIGINT) is handler
    assert f"The checkpoint is in {tmp_path} (epochs done: network 2)" in caplog.text
    assert "resume=True" in caplog.text
    assert not one.is_trained_
    assert one.history is None
    assert all(torch.equal(value, before[name]) for name, value in one.module.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["network.checkpoint"]
    # Another process would make the model anew.
    again = new(reference, **settings)
    torch.manual_seed(99)
    again.train(calibrate=False, checkpoint_dir=tmp_path, resume=True, **QUIET)
    assert_same_training(again, whole)
    assert list(tmp_path.iterdir()) == []


def test_on_another_processor_whose_logarithms_differ_in_the_last_bit(reference, tmp_path, monkeypatch):
    def stopped():
        with pytest.raises(KeyboardInterrupt):
            new(reference, max_epochs=2).train(
                calibrate=False, checkpoint_dir=tmp_path, callbacks=[Stop(KeyboardInterrupt(), 1)], **QUIET
            )

    stopped()
    room = sys.modules[sys.modules[STGCHB.__module__].fit.__module__]
    log_normalize = room.log_normalize

    def elsewhere(*arguments, **options):
        values = log_normalize(*arguments, **options)
        values.data = np.nextafter(values.data, np.float32(np.inf))
        return values

    monkeypatch.setattr(room, "log_normalize", elsewhere)
    model = new(reference, max_epochs=2)
    model.train(calibrate=False, checkpoint_dir=tmp_path, resume=True, **QUIET)
    assert len(model.history["train_loss"]) == 2
    monkeypatch.undo()
    # Another count is another training, also of a gene that is not predicted and counts in the spot's total.
    stopped()
    other = reference.copy()
    panel = model._fitted.rules.expression.genes
    counts = other.X.toarray()
    counts[0, next(i for i, gene in enumerate(other.var_names) if gene not in panel)] += 1
    other.X = counts
    with pytest.raises(CheckpointError, match="measured: "):
        new(other, max_epochs=2).train(calibrate=False, checkpoint_dir=tmp_path, resume=True, **QUIET)


def test_in_the_first_epoch_and_twice(reference, tmp_path):
    whole = new(reference, max_epochs=3)
    whole.train(calibrate=False, **QUIET)
    model = new(reference, max_epochs=3)
    for epoch in (0, 1):
        stop = Stop(KeyboardInterrupt(), epoch)
        with pytest.raises(KeyboardInterrupt):
            model.train(calibrate=False, checkpoint_dir=tmp_path, resume=epoch > 0, callbacks=[stop], **QUIET)
    model.train(calibrate=False, checkpoint_dir=tmp_path, resume=True, **QUIET)
    assert_same_training(model, whole)


def test_in_the_middle_of_calibration_what_was_trained_is_not_trained_again(reference, caplog):
    whole = new(reference, max_epochs=2)
    whole.train(**QUIET)
    model = new(reference, max_epochs=2)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, logger="st_gchb"):
        model.train(callbacks=[Stop(KeyboardInterrupt(), epoch=1, training=2)], **QUIET)
    assert "epochs done: fold_1 2, fold_2 1, network 2" in caplog.text
    assert model.bank_ is None
    # No folder was given: it is found by data and settings.
    counting = Stop(None, epoch=-1)
    again = new(reference, max_epochs=2)
    again.train(resume=True, callbacks=[counting], **QUIET)
    assert counting.seen == 0, "one network alone had not been trained to the end"
    assert_same_training(again, whole)
    for name, value in vars(whole.calibration_).items():
        np.testing.assert_array_equal(getattr(again.calibration_, name), value)


def test_a_second_training_that_is_interrupted_goes_on_too(reference, tmp_path):
    whole, model = new(reference, max_epochs=2), new(reference, max_epochs=2)
    for one in (whole, model):
        one.train(calibrate=False, **QUIET)
    whole.train(calibrate=False, **QUIET)
    before = model.history["train_loss"].copy()
    stop = Stop(KeyboardInterrupt(), epoch=1)
    with pytest.raises(KeyboardInterrupt):
        model.train(calibrate=False, checkpoint_dir=tmp_path, callbacks=[stop], **QUIET)
    assert model.is_trained_
    assert model.history["train_loss"].equals(before)
    model.train(calibrate=False, checkpoint_dir=tmp_path, resume=True, **QUIET)
    assert len(model.history["train_loss"]) == 4
    assert_same_training(model, whole)


def interrupted(reference, folder, **settings):
    with pytest.raises(KeyboardInterrupt):
        new(reference, max_epochs=3, **settings).train(
            calibrate=False, checkpoint_dir=folder, callbacks=[Stop(KeyboardInterrupt(), 1)], **QUIET
        )


def test_a_checkpoint_of_other_settings_or_data_is_refused(reference, tmp_path):
    interrupted(reference, tmp_path)
    content = (tmp_path / "network.checkpoint").read_bytes()
    again = {"calibrate": False, "checkpoint_dir": tmp_path, "resume": True, **QUIET}
    with pytest.raises(CheckpointError, match="of another training .settings: "):
        new(reference, dropout=0.1).train(**again)
    with pytest.raises(CheckpointError, match="batch_size: 24 there, 30 here"):
        new(reference).train(batch_size=30, **again)
    with pytest.raises(CheckpointError, match="plan_kwargs"):
        new(reference).train(plan_kwargs={"lr": 0.1}, **again)
    other = reference.copy()
    other.obsm["X_patch"] = other.obsm["X_patch"][::-1].copy()
    model = new(other)
    with pytest.raises(CheckpointError, match="features"):
        model.train(**again)
    assert not model.is_trained_
    assert (tmp_path / "network.checkpoint").read_bytes() == content


def test_a_checkpoint_cut_short_is_refused(reference, tmp_path):
    interrupted(reference, tmp_path)
    file = tmp_path / "network.checkpoint"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged.*Delete it"):
        new(reference).train(checkpoint_dir=tmp_path, resume=True, **QUIET)


def test_sizes_out_of_range(reference):
    model = new(reference)
    for name, value in (("max_epochs", 0), ("batch_size", 1), ("block_size", 1)):
        with pytest.raises(InputError, match=f"{name}={value}; expected"):
            model.train(**{name: value}, **QUIET)


# ---- Memory ----


class Small(Callback):
    """A device whose memory is too small for more than some spots."""

    def __init__(self, n_spots, kind):
        self.n_spots, self.kind, self.seen = n_spots, kind, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, len(getattr(batch, self.kind))))
        if trainer.current_epoch and self.seen[-1][1] > self.n_spots:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_halves_the_batch_and_goes_on(reference, caplog):
    device = Small(15, "rows")
    model = new(reference, max_epochs=3, batch_size=40)
    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        model.train(calibrate=False, callbacks=[device], **QUIET)
    assert (
        "in epoch 1 with steps of 40 spots: training goes on from that epoch's start with batch_size=20" in caplog.text
    )
    assert "batch_size=10" in caplog.text
    assert model.history["train_loss"].index.tolist() == [0, 1, 2]
    assert max(n for epoch, n in device.seen if epoch == 2) <= 15
    assert model.is_trained_


def test_out_of_memory_with_whole_slices_halves_the_blocks(reference, caplog):
    device = Small(30, "inner")
    model = new(reference, max_epochs=2, sampler="slices", **WITH_GRAPH)
    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        model.train(calibrate=False, callbacks=[device], **QUIET)
    assert "block_size=" in caplog.text
    assert "batch_size=" not in caplog.text
    assert max(n for epoch, n in device.seen if epoch == 1 and n <= 30) > 10


def test_out_of_memory_at_the_smallest_step_is_an_error(reference):
    model = new(reference, max_epochs=3)
    with pytest.raises(DeviceError, match="too small even for a step of 3 spots"):
        model.train(calibrate=False, callbacks=[Small(0, "rows")], **QUIET)
    assert not model.is_trained_


# ---- A process that is killed ----

SCRIPT = """
    import os, signal, sys
    import anndata, torch
    from lightning.pytorch import Callback
    from st_gchb.model import STGCHB
    from st_gchb.train import _checkpoints as _progress
    _progress.SECONDS_BETWEEN_WRITES = 0.0

    class Kill(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    adata = anndata.read_h5ad(sys.argv[1])
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=20, k=30, batch_size=24, max_epochs=4)
    model.train(calibrate=False, enable_progress_bar=False, accelerator="cpu", callbacks=[Kill()])
"""


def test_a_process_that_is_killed_leaves_a_checkpoint(reference, programs, tmp_path):
    whole, again = new(reference, max_epochs=4), new(reference, max_epochs=4)
    whole.train(calibrate=False, **QUIET)
    adata = reference.copy()
    adata.write_h5ad(tmp_path / "ref.h5ad")
    killed = programs.run(textwrap.dedent(SCRIPT), str(tmp_path / "ref.h5ad"), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    watch = Stop(None, -1)
    watch.on_train_epoch_start = lambda trainer, _: watch.__dict__.setdefault("first", trainer.current_epoch)
    again.train(calibrate=False, resume=True, callbacks=[watch], **QUIET)
    assert watch.first == 2
    assert_same_training(again, whole)


def test_without_checkpoints_nothing_is_kept(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path))
    model = new(reference, max_epochs=3)
    with pytest.raises(RuntimeError, match="power"):
        model.train(
            calibrate=False, enable_checkpointing=False, callbacks=[Stop(RuntimeError("power"), epoch=2)], **QUIET
        )
    assert list(tmp_path.rglob("*.checkpoint")) == []
    with pytest.raises(InputError, match="resume=True goes on from a checkpoint"):
        model.train(resume=True, enable_checkpointing=False)
