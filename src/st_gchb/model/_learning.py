"""The training call of the model class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scvi.model.base import BaseModelClass

from st_gchb._arguments import Epochs, Pair, check_keywords, checked
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb._signals import ended_by_signal
from st_gchb.model._confidence import Calibration
from st_gchb.model._crossfit import cross_fit, embed_reference
from st_gchb.model._fit import Fitted, default_block_size, training_data
from st_gchb.model._saving import new_model_id
from st_gchb.model._settings import ModelSettings
from st_gchb.model._training import (
    Devices,
    TrainingOptions,
    as_before_on_error,
    checkpoint_folder,
    plan_arguments,
    run_training,
    trainers,
    training_identity,
)
from st_gchb.model._validation import Registered
from st_gchb.retrieval import ReferenceBank, index_for
from st_gchb.train import CheckpointFolder, NoCheckpoints


class TrainingMixin(BaseModelClass):
    """Training of :class:`~st_gchb.model.STGCHB`."""

    seed: int
    settings: ModelSettings
    bank_: ReferenceBank | None
    calibration_: Calibration | None
    model_id_: str | None
    _fitted: Fitted

    @property
    def _where(self) -> Registered:
        arguments = self.adata_manager.registry["setup_args"]
        names = Registered.__dataclass_fields__
        return Registered(**{name: arguments[name] for name in names})

    @checked(keywords=trainers)
    def train(
        self,
        max_epochs: Epochs | None = None,
        *,
        accelerator: str = "auto",
        devices: Devices = "auto",
        batch_size: Pair | None = None,
        early_stopping: bool = True,
        calibrate: bool = True,
        block_size: Pair | None = None,
        enable_checkpointing: bool = True,
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the network, then embed the reference and calibrate confidence on it.

        Where it ends early, by an error, Ctrl-C or a signal that ends the process, the model is as before the call, and
        a checkpoint of the last epoch is kept, from which the same call goes on with ``resume=True``.

        Parameters
        ----------
        max_epochs
            Epochs of the joint loss at most; by default the preset's.
        accelerator, devices
            As in Lightning; ``"auto"`` takes a GPU where there is one.
        batch_size
            Spots contrasted in a step; by default the preset's.
        early_stopping
            Stop when the loss on the validation split of the training slices no longer falls, and keep the best
            epoch's weights. Has no effect where ``validation_share`` is 0.
        calibrate
            Also train without each reference slice in turn (at most five times), to learn how confident a prediction
            can be. Without it, predictions carry no confidence, outlier flag and expected correlation.
        block_size
            Spots beyond which a slice is cut into spatial blocks, where a step would else hold a whole slice; by
            default 20,000, and with ``finetune`` as many as have feature maps of 1 GiB.
        enable_checkpointing
            Keep checkpoints; without them, a training that was interrupted begins anew.
        checkpoint_dir
            Folder of the checkpoints; by default one in the cache folder, named by data and settings. They are
            removed when training has ended.
        resume
            Go on from the checkpoint that is there, with the same result as if nothing had come between.
        plan_kwargs
            Passed to the training plan, such as ``{"lr": 1e-4}``.
        trainer_kwargs
            Passed to :class:`scvi.train.Trainer`, such as ``enable_progress_bar=False``.

        Raises
        ------
        CheckpointError
            If the checkpoint to go on from is damaged, or of other data or settings.
        ArgumentError
            If an argument is unknown, or is not what it is expected to be.
        DeviceError
            If several devices cannot be used this way, or the memory is too small for the smallest step.
        TerminatedError
            If the process is told to end by SIGTERM or SIGHUP, and the caller handles neither. Ctrl-C is a
            KeyboardInterrupt.
        """
        if self._adata is None:
            raise InputError("This model was loaded without data, so it cannot be trained. Load it with adata=.")
        if resume and not enable_checkpointing:
            raise InputError("resume=True goes on from a checkpoint, and enable_checkpointing=False keeps none.")
        options = TrainingOptions(
            max_epochs=max_epochs or self.settings.max_epochs,
            batch_size=batch_size or self.settings.batch_size,
            block_size=block_size or default_block_size(self._fitted),
            early_stopping=early_stopping,
            accelerator=accelerator,
            devices=devices,
            plan_kwargs=check_keywords(plan_kwargs or {}, plan_arguments(), "STGCHB.train(plan_kwargs=...)"),
            trainer_kwargs=trainer_kwargs,
        )
        fitted, where = self._fitted, self._where
        checkpoints: CheckpointFolder | NoCheckpoints = NoCheckpoints()
        if enable_checkpointing:
            identity = training_identity(self.adata, fitted, self.settings, self.seed, vars(options))
            checkpoints = CheckpointFolder(checkpoint_folder(checkpoint_dir, identity), identity, resume=resume)
        run = partial(run_training, settings=self.settings, seed=self.seed, checkpoints=checkpoints)
        advice = "The model is as before the call; resume=True goes on from its last checkpoint, where one was kept."
        with ended_by_signal("Training", advice), as_before_on_error(self), checkpoints.kept_on_error():
            run(self, training_data(fitted, self.adata), "network", options=options)
            self.bank_ = embed_reference(self.module, fitted, self.adata, where)
            self.model_id_ = new_model_id(self.module, fitted.rules.expression.genes, self.bank_)
            self.calibration_ = None
            index_for(self.bank_, min(self.settings.k, len(self.bank_)))
            logger.info("Reference bank: %d spots of %d slices.", len(self.bank_), len(set(self.bank_.slices)))
            if calibrate:
                logger.info("Calibration: training without each reference slice in turn.")
                quiet = replace(options, trainer_kwargs=trainer_kwargs | {"enable_progress_bar": False})
                once_more = partial(run, options=quiet)
                self.calibration_ = cross_fit(self.adata, where, self.settings, fitted, self.seed, once_more)
