"""What Lightning does with the plan: stages, logged terms, and the weights that are kept."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scvi.module.base import LossOutput
from scvi.train._logger import SimpleExperiment
from torchmetrics import Metric

from network_settings import loss_of, sizes_of
from st_gchb._compat import History
from st_gchb.model import STGCHBModule
from st_gchb.nn import STGCHBNetwork
from st_gchb.train import GraphDataModule, KeepBest, Pretraining, STGCHBTrainingPlan, StopEarly

TERMS = ("alignment", "dgi_image", "dgi_expression", "bottleneck_image", "bottleneck_expression")


ALL = loss_of(dgi_image=0.1, dgi_expression=0.1, bottleneck=0.1)


def module_for(data):
    torch.manual_seed(0)
    sizes = sizes_of(data.image.shape[1], data.expression.shape[1])
    return STGCHBModule(STGCHBNetwork(sizes), ALL)


class Overfitting(STGCHBModule):
    """One weight that starts at 0 and that training drives up, past the value that is best in validation."""

    def __init__(self, best):
        super().__init__(STGCHBNetwork(sizes_of(1, 1, n_hidden=1, n_embedding=1)), ALL)
        self.best, self.w = best, torch.nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        loss = (self.w - (100.0 if self.training else self.best)) ** 2
        return LossOutput(loss=loss, n_obs_minibatch=len(batch.rows), extra_metrics={"term": loss.detach()})


class Watch(Callback):
    """Notes weights, logged values and the stage at the end of each epoch's validation."""

    def __init__(self):
        self.losses, self.states, self.stages, self.logged = [], [], [], []

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["validation_loss"]))
        self.states.append({k: v.detach().clone() for k, v in pl_module.module.state_dict().items()})

    def on_train_epoch_end(self, trainer, pl_module):
        self.stages.append(pl_module.module.pretraining)
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def train(data, *, n_epochs, pretrain=0, lr=1e-3, callbacks=(), share=0.2, module=None, sanity=0, **options):
    module = module or module_for(data)
    steps = GraphDataModule(
        data, n_hops=1, batch_size=16, sampler="spots", validation_share=share, seed=0, pretrain_epochs=pretrain
    )
    plan = STGCHBTrainingPlan(module, optimizer="AdamW", lr=lr)
    trainer = Trainer(
        max_epochs=n_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=sanity,
        callbacks=[*callbacks, Pretraining(pretrain)],
        **options,
    )
    torch.manual_seed(0)
    trainer.fit(plan, steps)
    return module


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def test_there_are_no_metrics_of_an_autoencoder(data):
    """scvi-tools makes them with a plan, and anew when it knows the number of spots: a quarter of a short training."""
    plan = STGCHBTrainingPlan(module_for(data))
    plan.n_obs_training, plan.n_obs_validation = 90, 10
    assert [part for part in plan.modules() if isinstance(part, Metric)] == []


def test_the_best_epochs_weights_are_put_back(data):
    watch, keep = Watch(), KeepBest()
    module = train(data, n_epochs=8, lr=0.1, module=Overfitting(best=2.0), callbacks=[watch, keep])
    best = watch.losses.index(min(watch.losses))
    assert 0 < best < 7, "the best epoch is the first or the last: this run would show nothing"
    assert (keep.epoch, keep.best) == (best, watch.losses[best])
    assert watch.states[-1]["w"] > watch.states[best]["w"] + 0.1
    assert_same_state(module.state_dict(), watch.states[best])


def test_without_it_the_last_epochs_weights_stay(data):
    watch = Watch()
    module = train(data, n_epochs=8, lr=0.1, module=Overfitting(best=2.0), callbacks=[watch])
    assert_same_state(module.state_dict(), watch.states[-1])


def test_weights_before_the_first_epoch_are_no_candidates(data):
    """Lightning's trial validation runs on untrained weights, on a few steps alone."""
    watch, keep = Watch(), KeepBest()
    module = train(data, n_epochs=3, lr=0.1, module=Overfitting(best=0.0), callbacks=[watch, keep], sanity=2)
    assert watch.losses[0] == 0 < min(watch.losses[1:])
    assert keep.best == watch.losses[1]
    assert_same_state(module.state_dict(), watch.states[1])


def test_early_stopping_waits_for_its_patience(data):
    watch = Watch()
    train(data, n_epochs=12, lr=0.1, module=Overfitting(best=1.2), callbacks=[watch, StopEarly(2)])
    assert len(watch.losses) == watch.losses.index(min(watch.losses)) + 1 + 2
    assert len(watch.losses) < 12


def test_early_stopping_counts_no_epoch_of_pretraining(data):
    watch = Watch()
    train(data, n_epochs=12, pretrain=5, module=Overfitting(best=0.0), callbacks=[watch, StopEarly(2)])
    assert watch.losses == sorted(watch.losses)  # from the first epoch on there is nothing to wait for
    assert watch.stages == [True] * 5 + [False] * 3


def epochs(keep, values, *, pretraining=0):
    """Play epochs with given validation losses; the only weight is the epoch's number."""
    layer = torch.nn.Linear(1, 1)
    layer.pretraining = False
    plan = SimpleNamespace(module=layer)
    for epoch, value in enumerate(values):
        layer.pretraining = epoch < pretraining
        torch.nn.init.constant_(layer.weight, epoch)
        metrics = {} if value is None else {"validation_loss": torch.tensor(value)}
        trainer = SimpleNamespace(callback_metrics=metrics, current_epoch=epoch, sanity_checking=False)
        keep.on_validation_end(trainer, plan)
    keep.on_fit_end(None, plan)
    return layer.weight.item()


def test_the_lowest_loss_counts_and_the_first_of_equals():
    assert epochs(KeepBest(), [3.0, 1.0, 2.0, 1.0]) == 1
    assert epochs(KeepBest(), [3.0, 2.0, 1.0]) == 2


def test_epochs_of_pretraining_are_no_candidates():
    assert epochs(KeepBest(), [0.1, 3.0, 2.0, 2.5], pretraining=1) == 2


def test_a_loss_that_is_nan_or_absent_is_no_candidate():
    assert epochs(KeepBest(), [float("nan"), 2.0, float("nan")]) == 1
    assert epochs(KeepBest(), [None, None, None]) == 2


def test_pretraining_is_infomax_alone_and_ends(data):
    watch = Watch()
    module = train(data, n_epochs=3, pretrain=2, callbacks=[watch])
    assert watch.stages == [True, True, False]
    assert not module.pretraining
    for term in TERMS:
        assert (f"{term}_train" in watch.logged[1]) == term.startswith("dgi")
        assert f"{term}_train" in watch.logged[2]


def test_a_run_that_ends_in_pretraining_leaves_the_joint_stage(data):
    assert not train(data, n_epochs=1, pretrain=5, callbacks=[]).pretraining


def test_the_logged_loss_is_the_sum_of_the_logged_terms(data):
    watch = Watch()
    train(data, n_epochs=1, callbacks=[watch])
    (logged,) = watch.logged
    for mode in ("train", "validation"):
        assert logged[f"{mode}_loss"] == pytest.approx(sum(logged[f"{term}_{mode}"] for term in TERMS), rel=1e-4)


class Counted(Overfitting):
    """Its loss is 100 in training and 1, 2, ... in the batches of a validation; it notes the spots of each batch."""

    def __init__(self):
        super().__init__(best=0.0)
        self.seen = {"train": [], "validation": []}

    def loss(self, batch):
        seen = self.seen["train" if self.training else "validation"]
        seen.append(len(batch.rows))
        loss = self.w * 0.0 + float(len(seen))
        return LossOutput(loss=loss, n_obs_minibatch=len(batch.rows), extra_metrics={"term": 2.0 * loss.detach()})


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 1, "check_val_every_n_epoch": None}])
def test_logged_values_are_means_over_the_spots_of_an_epoch(data, options):
    """Also where validation comes in the middle of the epoch; batches differ in size."""
    watch, module = Watch(), Counted()
    train(data, n_epochs=1, module=module, share=0.3, callbacks=[watch], **options)
    (logged,) = watch.logged
    sizes = np.array(module.seen["train"])
    assert len(sizes) > 2
    assert len(set(sizes)) > 1, "all batches are of one size: this run would not tell a mean over batches apart"
    mean = np.average(np.arange(1, len(sizes) + 1), weights=sizes)
    assert logged["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert logged["term_train"] == pytest.approx(2 * mean, rel=1e-6)
    checks = len(watch.losses)
    assert checks == (len(sizes) if options else 1)
    each = len(module.seen["validation"]) // checks
    last = np.arange(each) + 1 + (checks - 1) * each
    mean = np.average(last, weights=module.seen["validation"][-each:])
    assert logged["validation_loss"] == pytest.approx(mean, rel=1e-6)


def test_values_of_a_later_epoch_are_its_own(data):
    """After the first epoch, the terms are logged in a shorter way than the loss."""
    watch, module = Watch(), Counted()
    train(data, n_epochs=3, module=module, share=0.3, callbacks=[watch])
    n_batches = len(module.seen["train"]) // 3
    for epoch, logged in enumerate(watch.logged):
        own = slice(epoch * n_batches, (epoch + 1) * n_batches)
        counts = np.arange(1, 3 * n_batches + 1)
        assert logged["train_loss"] == pytest.approx(np.average(counts[own], weights=module.seen["train"][own]))
        for mode in ("train", "validation"):
            assert logged[f"term_{mode}"] == pytest.approx(2 * logged[f"{mode}_loss"])
    assert len({logged["validation_loss"] for logged in watch.logged}) == 3


def test_training_lowers_the_loss_and_the_seed_fixes_the_weights(data):
    watch = Watch()
    first = train(data, n_epochs=5, lr=1e-2, share=0.0, callbacks=[watch])
    assert watch.logged[-1]["train_loss"] < watch.logged[0]["train_loss"]
    assert_same_state(train(data, n_epochs=5, lr=1e-2, share=0.0).state_dict(), first.state_dict())


def test_the_image_encoders_last_stage_learns_at_a_rate_of_its_own(data):
    plain = STGCHBTrainingPlan(module_for(data), optimizer="AdamW", lr=1e-2, stage_lr=0.1)
    (group,) = plain.configure_optimizers()["optimizer"].param_groups
    assert group["lr"] == 1e-2
    stage = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    module = STGCHBModule(STGCHBNetwork(sizes_of(2, 3), stage), ALL)
    plan = STGCHBTrainingPlan(module, optimizer="AdamW", lr=1e-2, weight_decay=0.5, stage_lr=0.1)
    others, stage = plan.configure_optimizers()["optimizer"].param_groups
    assert (others["lr"], stage["lr"]) == (1e-2, 1e-3)
    assert stage["weight_decay"] == others["weight_decay"] == 0.5
    assert [one.shape for one in stage["params"]] == [(2, 1, 1, 1), (2,)]
    trained = {id(one) for one in module.parameters() if one.requires_grad}
    assert {id(one) for one in others["params"] + stage["params"]} == trained


def test_the_optimizer_steps_as_torchs_own_does(data):
    """It treats all parameters in one call where torch would loop over them; newer scvi-tools asks for a fused one."""
    ours, theirs = module_for(data), module_for(data)
    plan = STGCHBTrainingPlan(ours, optimizer="AdamW", lr=1e-2, weight_decay=0.5, eps=1e-8)
    optimizer = plan.configure_optimizers()["optimizer"]
    loop = {"fused": True} if optimizer.param_groups[0]["fused"] else {"foreach": False}
    plain = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.5, eps=1e-8, **loop)
    for _ in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        plain.step()
    assert_same_state(ours.state_dict(), theirs.state_dict())


def test_the_history_is_kept_as_scvi_tools_keeps_it():
    """Data frames of the same values, types and names, though they are made only when they are asked for."""
    ours, theirs = History(), SimpleExperiment()
    logged = [({"loss": torch.tensor(0.1 * n), "term": 1.0 / (n + 1), "epoch": n}, 7 * n) for n in range(3)]
    logged += [({"rate": 1e-3, "step": 4}, None), ({"other": 2}, 9), ({"loss": 5.0, "epoch": 2}, 15)]
    for metrics, step in logged:
        for record in (ours, theirs):
            record.log_metrics(dict(metrics), step)
    assert list(ours.data) == list(theirs.data)
    for name, frame in theirs.data.items():
        pd.testing.assert_frame_equal(ours.data[name], frame)
    again = History()
    again.restore({name: points for name, points in ours.points.items() if name in ("loss", "term")})
    for name, frame in again.data.items():
        pd.testing.assert_frame_equal(frame, theirs.data[name])


def test_the_kept_weights_are_those_of_their_epoch_and_fixed_ones_are_copied_once(data):
    kept, watch, best = [], Watch(), KeepBest()

    class Notes(Callback):
        def on_validation_end(self, trainer, pl_module):
            kept.append(dict(best.state_dict()["state"]))

    train(data, n_epochs=3, callbacks=[watch, best, Notes()])
    improved = [i for i, loss in enumerate(watch.losses) if loss == min(watch.losses[: i + 1])]
    assert len(improved) > 1
    for i in improved:
        assert_same_state(kept[i], watch.states[i])
    first, last = kept[improved[0]], kept[improved[-1]]
    assert first["network.image.fixed.offset"] is last["network.image.fixed.offset"]
    assert first["network.image.head.project.weight"] is not last["network.image.head.project.weight"]
