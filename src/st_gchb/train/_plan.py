"""Lightning training plan and callbacks: infomax pretraining, early stopping, best weights, finite loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from st_gchb._compat import log_again
from st_gchb._errors import DivergenceError
from st_gchb.nn import GraphBatch


class STGCHBTrainingPlan(TrainingPlan):
    """Training plan of scvi-tools without the terms of a variational autoencoder.

    It logs ``train_loss``, ``validation_loss`` and each term as ``{term}_train`` and ``{term}_validation``.

    Parameters
    ----------
    module
        The scvi module with the network.
    stage_lr
        Factor on the learning rate for the last stage of the image encoder, if it is trained. Below 1, the pretrained
        weights from which the stage starts change slowly.
    options
        Further options of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(self, module: Any, *, stage_lr: float = 1.0, **options: Any) -> None:
        super().__init__(module, **options)
        self.stage_lr = stage_lr
        # Of each mode, since validation may come in the middle of an epoch.
        self._sums = {"train": MeanTerms(), "validation": MeanTerms()}

    def initialize_train_metrics(self) -> None:
        """Make none: scvi-tools' metrics are of an ELBO, and take a quarter of the time of a short training."""

    def initialize_val_metrics(self) -> None:
        """Make none, as for training."""

    def get_optimizer_creator(self) -> Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]:
        """Create the optimizer as scvi-tools does, with the parameters of a trained stage in a group of their own."""
        given = super().get_optimizer_creator()

        def create(parameters: Any) -> torch.optim.Optimizer:
            optimizer = given(parameters)
            # On a CPU, torch would by default loop over the parameters in Python, to the same result.
            for group in optimizer.param_groups if self.optimizer_name in ("Adam", "AdamW") else ():
                if group["foreach"] is None and not group["fused"]:
                    group["foreach"] = True
            return optimizer

        stage = getattr(self.module.network, "stage", None)
        if stage is None:
            return create
        own = {id(parameter) for parameter in stage.parameters()}

        def in_groups(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
            trained = list(parameters)
            groups = [[one for one in trained if (id(one) in own) == inside] for inside in (False, True)]
            return create([{"params": groups[0]}, {"params": groups[1], "lr": self.lr * self.stage_lr}])

        return in_groups

    def training_step(self, batch: GraphBatch, batch_idx: int) -> torch.Tensor:
        """Compute the loss of a training batch and log its mean over the spots of the epoch."""
        output = self._step(batch, batch_idx, "train")
        if self.trainer.is_last_batch:
            self.compute_and_log_metrics(output, {}, "train")
        return output.loss

    def validation_step(self, batch: GraphBatch, batch_idx: int) -> None:
        """Compute the loss of a validation batch."""
        self._step(batch, batch_idx, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over the validation spots."""
        self.compute_and_log_metrics(None, {}, "validation")
        super().on_validation_epoch_end()

    def _step(self, batch: GraphBatch, batch_idx: int, mode: str) -> LossOutput:
        _, _, output = self.forward(batch)
        if batch_idx == 0:
            self._sums[mode] = MeanTerms()
        self._sums[mode].add(output)
        return output

    def compute_and_log_metrics(self, loss_output: LossOutput | None, metrics: dict[str, Any], mode: str) -> None:
        """Log the mean loss and terms of the epoch.

        Logging in each batch, as Lightning means it, would take a fifth of the time of a short training.
        """
        # Without an explicit batch size, Lightning would guess it from the nodes, halo included, and warn.
        n_spots = self._sums[mode].n_spots
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": self.trainer.world_size > 1}
        for name, value in self._sums[mode].means().items():
            key = f"{mode}_loss" if name == "loss" else f"{name}_{mode}"
            if name == "loss" or not log_again(self, key, value, n_spots):
                self.log(key, value, prog_bar=key == "train_loss", batch_size=n_spots, **options)


class MeanTerms:
    """Mean loss, and mean of each of its terms, over the spots of several batches."""

    def __init__(self) -> None:
        self.n_spots = 0
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, output: LossOutput) -> None:
        """Add a batch. Its values stay tensors, so that a device need not be waited for in every step."""
        n_spots = int(output.n_obs_minibatch)
        self.n_spots += n_spots
        for name, value in {"loss": output.loss, **output.extra_metrics}.items():
            added = value.detach() * n_spots
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    def means(self) -> dict[str, torch.Tensor]:
        """Return the means by name; ``"loss"`` is the whole loss."""
        return {name: value / self.n_spots for name, value in self._sums.items()}


class StayFinite(Callback):
    """Callback that stops the training when the loss is NaN or infinite, from which it cannot recover."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the mean loss of the epoch.

        Raises
        ------
        DivergenceError
            The loss is NaN or infinite.
        """
        value = trainer.callback_metrics.get("train_loss")
        if value is not None and not torch.isfinite(torch.as_tensor(value)).all():
            lr = getattr(pl_module, "lr", None)
            raise DivergenceError(
                f"The training loss is {float(value)} in epoch {trainer.current_epoch + 1}, with the learning rate "
                f"lr={lr}. Train with a lower one."
            )


class Pretraining(Callback):
    """Callback that trains on deep graph infomax alone (equation 1) in the first epochs, the paper's first stage.

    Parameters
    ----------
    n_epochs
        Number of these epochs.
    """

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select the loss of the epoch: infomax alone, or the joint loss."""
        _module(pl_module).pretraining = trainer.current_epoch < self.n_epochs

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the module to the joint loss."""
        _module(pl_module).pretraining = False


class StopEarly(EarlyStopping):
    """Early stopping on the validation loss that ignores the epochs of infomax pretraining.

    Parameters
    ----------
    patience
        Number of epochs without improvement after which training stops.
    """

    def __init__(self, patience: int) -> None:
        # Lightning would otherwise check at the end of the training epoch, in a hook that does not skip pretraining.
        super().__init__("validation_loss", patience=patience, mode="min", check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check for improvement, unless the epoch belongs to infomax pretraining."""
        if not _module(pl_module).pretraining:
            super().on_validation_end(trainer, pl_module)


class KeepBest(Callback):
    """Callback that keeps the weights of the epoch with the lowest validation loss and restores them at the end."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.epoch: int | None = None
        self._state: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights if the validation loss is the lowest so far."""
        if trainer.sanity_checking or _module(pl_module).pretraining:
            return
        value = trainer.callback_metrics.get("validation_loss")
        if value is not None and float(value) < self.best:
            self.best, self.epoch = float(value), trainer.current_epoch
            self._state = copied_state(_module(pl_module), self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores: the lowest loss, its epoch and the weights, in fixed tensors."""
        return {"best": self.best, "epoch": self.epoch, "state": dict(self._state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best, self.epoch, self._state = state_dict["best"], state_dict["epoch"], dict(state_dict["state"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the best weights."""
        if self._state:
            _module(pl_module).load_state_dict(self._state)


def copied_state(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy the state of a module in training; of an earlier copy, tensors that are still the same are kept.

    No training changes the buffers: the fixed input projections, which are most of a small network, and what is known
    of the images on which an image encoder was pretrained. So they are copied once, and not compared either.
    """
    fixed = {name for name, _ in module.named_buffers()}

    def kept(key: str, value: torch.Tensor) -> bool:
        own = before.get(key)
        alike = own is not None and own.device == value.device and own.dtype == value.dtype
        return alike and (key in fixed or torch.equal(before[key], value))

    return {
        key: before[key] if kept(key, value) else value.detach().clone() for key, value in module.state_dict().items()
    }


def _module(plan: LightningModule) -> Any:
    """Return the scvi module of a plan; Lightning types it as any torch module."""
    return plan.module
