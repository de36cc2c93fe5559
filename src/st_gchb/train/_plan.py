"""What Lightning does in a step, and which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan

from st_gchb._errors import DivergenceError
from st_gchb.nn import GraphBatch


class STGCHBTrainingPlan(TrainingPlan):
    """scvi-tools' training plan without the terms of a variational autoencoder.

    Logs ``train_loss``, ``validation_loss`` and each term as ``{term}_train`` and ``{term}_validation``.

    Parameters
    ----------
    module
        The network.
    stage_lr
        Learning rate of the trunk's last stage, where it is trained, as a share of the others': it starts from
        weights that are good already.
    options
        Of scvi-tools' plan.
    """

    def __init__(self, module: Any, *, stage_lr: float = 1.0, **options: Any) -> None:
        super().__init__(module, **options)
        self.stage_lr = stage_lr

    def get_optimizer_creator(self) -> Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]:
        """Make the optimizer as scvi-tools does, with the stage's parameters apart where there is a stage."""
        create = super().get_optimizer_creator()
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
        """Loss of a step, logged as the epoch's mean over spots."""
        return self._step(batch, "train")

    def validation_step(self, batch: GraphBatch, batch_idx: int) -> None:
        """The same on validation spots."""
        self._step(batch, "validation")

    def _step(self, batch: GraphBatch, mode: str) -> torch.Tensor:
        _, _, output = self.forward(batch)
        # Said here, the batch size is not guessed (and warned about) by Lightning: nodes are not what is averaged over.
        self.log(f"{mode}_loss", output.loss, prog_bar=mode == "train", **self._options(output))
        self.compute_and_log_metrics(output, {}, mode)
        return output.loss

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: dict[str, Any], mode: str) -> None:
        """Log the terms of the loss, once an epoch."""
        for name, value in loss_output.extra_metrics.items():
            self.log(f"{name}_{mode}", value, **self._options(loss_output))

    def _options(self, output: LossOutput) -> dict[str, Any]:
        # Tensors are handed over as they are: they stay on the device until the epoch's mean is asked for.
        several = self.trainer.world_size > 1
        return {"on_step": False, "on_epoch": True, "batch_size": output.n_obs_minibatch, "sync_dist": several}


class StayFinite(Callback):
    """Ends a training whose loss is no finite number: nothing is learned from there on."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the epoch's mean.

        Raises
        ------
        DivergenceError
            If it is NaN or infinite.
        """
        value = trainer.callback_metrics.get("train_loss")
        if value is not None and not torch.isfinite(torch.as_tensor(value)).all():
            lr = getattr(pl_module, "lr", None)
            raise DivergenceError(
                f"The training loss is {float(value)} in epoch {trainer.current_epoch + 1}, with the learning rate "
                f"lr={lr}. Train with a lower one."
            )


class Pretraining(Callback):
    """Leaves every term but deep graph infomax out of the loss for the first epochs, the paper's first stage.

    Parameters
    ----------
    n_epochs
        How many epochs.
    """

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch between the two losses."""
        _module(pl_module).pretraining = trainer.current_epoch < self.n_epochs

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module in the joint stage."""
        _module(pl_module).pretraining = False


class StopEarly(EarlyStopping):
    """Lightning's early stopping on the validation loss, from the end of the infomax stage on.

    Parameters
    ----------
    patience
        Epochs without improvement that are waited for.
    """

    def __init__(self, patience: int) -> None:
        # Lightning would otherwise count at the end of the training epoch, past the condition below.
        super().__init__("validation_loss", patience=patience, mode="min", check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count this epoch, unless it belongs to the infomax stage."""
        if not _module(pl_module).pretraining:
            super().on_validation_end(trainer, pl_module)


class KeepBest(Callback):
    """Keeps the weights of the epoch with the lowest validation loss in memory and puts them back at the end.

    Parameters
    ----------
    monitor
        Logged value, lower is better.
    """

    def __init__(self, monitor: str = "validation_loss") -> None:
        self.monitor = monitor
        self.best = float("inf")
        self.epoch: int | None = None
        self._state: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the weights if the validation loss is the lowest so far."""
        if trainer.sanity_checking or _module(pl_module).pretraining:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and float(value) < self.best:
            self.best, self.epoch = float(value), trainer.current_epoch
            self._state = {key: tensor.detach().clone() for key, tensor in _module(pl_module).state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it."""
        return {"best": self.best, "epoch": self.epoch, "state": dict(self._state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.epoch, self._state = state_dict["best"], state_dict["epoch"], dict(state_dict["state"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back."""
        if self._state:
            _module(pl_module).load_state_dict(self._state)


def _module(plan: LightningModule) -> Any:
    """The plan's scvi module; Lightning only knows that it is some torch module."""
    return plan.module
