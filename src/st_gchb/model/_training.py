"""Run the training with scvi-tools' runner on Lightning: from the start or from a checkpoint, within the memory."""

from __future__ import annotations

import hashlib
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from anndata import AnnData
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from scvi.train import Trainer as ScviTrainer, TrainingPlan, TrainRunner

from st_gchb._arguments import Limits, Rate, Weight
from st_gchb._compat import driver_sought_once, history_logger, parse_device_args, runner_quiet
from st_gchb._errors import ArgumentError, CheckpointError, DeviceError, DivergenceError
from st_gchb._logging import logger, others_quiet
from st_gchb._settings import bars_disabled
from st_gchb._signals import Stopped, held_back
from st_gchb.model._earlier_formats import EARLIEST_SETTINGS
from st_gchb.model._fit import Fitted
from st_gchb.model._settings import ModelSettings
from st_gchb.pp.expression import as_csr
from st_gchb.pp.patches import cache_folder
from st_gchb.train import (
    CheckpointFolder,
    GraphDataModule,
    KeepBest,
    NoCheckpoints,
    Pretraining,
    Progress,
    StayFinite,
    STGCHBTrainingPlan,
    StopEarly,
    TrainingData,
    history_frames,
    history_points,
    key_of,
)

_ROWS = 2000
"""Spots whose numbers are compared: all of a million, with 2,048 features each, would be read from disk for it."""

_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""Arguments of the trainer that change the result."""


def training_identity(
    adata: AnnData, fitted: Fitted, settings: ModelSettings, seed: int, arguments: dict[str, Any]
) -> dict[str, str]:
    """Describe what a training depends on: settings in words, data as hashes.

    Parameters
    ----------
    adata, fitted
        The training slices and what was fitted on them.
    settings, seed
        Of the model.
    arguments
        Those of the call that change the result; its number of epochs does not, up to the last.
    """
    rows = _compared_rows(adata)
    graph = fitted.adjacency
    # Under the names of the first checkpoints, which are found by them.
    # What is no part of the trained network.
    without = {"max_epochs", "kernel_weight", "kernel_components", "kernel_rank", "sharpening"}
    without |= set() if settings.context_surroundings else {"context_surroundings"}
    plain = {EARLIEST_SETTINGS.get(k, k): value for k, value in asdict(settings).items() if k not in without}
    trainer = {key: arguments["trainer_kwargs"][key] for key in _TRAINER if key in arguments["trainer_kwargs"]}
    plan = {key: getattr(value, "__qualname__", repr(value)) for key, value in arguments["plan_kwargs"].items()}
    rule = fitted.rules.features
    # Which columns are one part decides their scale. Of one part nothing is added, so that checkpoints are found.
    parts = {} if rule is None or len(rule) == 1 else {"parts": _short("\n".join(rule.names), repr(rule.columns))}
    return {
        "settings": _short(repr(sorted(plain.items()))),
        "seed": str(seed),
        "batch_size": str(arguments["batch_size"]),
        "block_size": str(arguments["block_size"]),
        "early_stopping": str(arguments["early_stopping"]),
        "plan_kwargs": repr(sorted(plan.items())),
        "trainer_kwargs": repr(sorted(trainer.items())),
        "spots": _short("\n".join(adata.obs_names), "\n".join(fitted.slices)),
        "genes": _short("\n".join(fitted.rules.expression.genes)),
        "features": _short(np.asarray(fitted.features[rows])),
        "measured": _short(*_measured(adata, fitted, rows)),
        "graph": _short(graph.indptr.astype(np.int64), graph.indices.astype(np.int64)),
        **parts,
    }


def _measured(adata: AnnData, fitted: Fitted, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Take the numbers of the caller that decide about the expression of some spots.

    Logarithms of them would differ in the last bit from processor to processor, and a training could be resumed on the
    same machine alone.
    """
    expression = fitted.rules.expression
    own = as_csr(fitted.measured[rows])
    yield own[:, adata.var_names.get_indexer(expression.genes)].toarray()
    if not expression.log_normalized:
        yield np.asarray(own.sum(axis=1, dtype=np.float64))


def earlier_identity(identity: dict[str, str], adata: AnnData, fitted: Fitted) -> dict[str, str]:
    """Describe a training as versions did that compared log-normalized expression in place of what was measured."""
    hashed = {"expression": _short(fitted.panel[_compared_rows(adata)].toarray())}
    return {name: value for name, value in identity.items() if name != "measured"} | hashed


def _compared_rows(adata: AnnData) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:_ROWS])


def checkpoint_folder(given: str | Path | None, *identities: dict[str, str]) -> Path:
    """Find the folder of a training's checkpoints: as given, else one beside the cached features.

    Parameters
    ----------
    given
        Argument of ``train``.
    *identities
        What the training depends on, and the same as described by earlier versions, whose folder is taken if it is the
        only one.
    """
    if given is not None:
        return Path(given)
    folders = [cache_folder().with_name("checkpoints") / key_of(identity) for identity in identities]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _short(*parts: str | np.ndarray) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return sha.hexdigest()[:12]


Devices = Annotated[int, Limits("a number of devices, -1 for all", low=-1, high=1024)] | Sequence[int] | str

_DDP = "ddp_find_unused_parameters_true"
"""Parameters of terms that are left out of the loss get no gradient, for which plain DDP waits in vain."""


def trainers() -> tuple[Any, ...]:
    """Who takes the keywords that ``train`` passes on; where both know one, scvi-tools has the word."""
    return Trainer, ScviTrainer


def plan_arguments() -> tuple[Any, ...]:
    """Who takes ``plan_kwargs``."""

    def ours(lr: Rate, weight_decay: Weight, stage_lr: Rate) -> None:
        """Stand for the keywords whose limits are those of the settings."""

    return TrainingPlan, ours


@dataclass(frozen=True)
class TrainingOptions:
    """Arguments of :meth:`st_gchb.model.STGCHB.train` that a single training needs."""

    max_epochs: int
    batch_size: int
    block_size: int
    early_stopping: bool
    accelerator: str
    devices: Devices
    plan_kwargs: dict[str, Any]
    trainer_kwargs: dict[str, Any]


def run_training(
    model: Any,
    training: TrainingData,
    stage: str,
    *,
    settings: ModelSettings,
    seed: int,
    options: TrainingOptions,
    checkpoints: CheckpointFolder | NoCheckpoints,
) -> None:
    """Fit a network, going on from the checkpoint of its stage where there is one.

    Where the device's memory is too small for a step, the step is halved and the epoch begun anew.

    Parameters
    ----------
    model
        A :class:`~st_gchb.model.STGCHB` or a :class:`~st_gchb.model._crossfit.Trainee`.
    training
        Its training slices.
    stage
        Name of its checkpoint.
    settings, seed
        Of the model.
    options
        How to train.
    checkpoints
        Where to keep the state, and what there is to go on with.
    """
    state = checkpoints.found(stage)
    if state is not None:
        _check_fixed(model.module, state["module"])
        if state["finished"]:
            _take_over(model, state, options)
            return
        options = replace(options, **state["sizes"])
        logger.info("Training of the %s goes on after epoch %d.", stage, state["epoch"])
    while True:
        sizes = {"batch_size": options.batch_size, "block_size": options.block_size}
        extra = {"finished": False, "sizes": sizes}
        progress = Progress(state, keep=lambda taken, extra=extra: checkpoints.put(stage, taken | extra))  # type: ignore[misc]
        data = _data_module(model, training, settings, seed, options)
        out_of_memory = _fit(model, data, settings, seed, options, progress)
        if not out_of_memory:
            break
        options, state = _halved(options, data, progress)
    _check_finite(model, settings, options)
    final = {"module": _state(model), "history": history_points(model.history_ or {}), "epoch": len(_epochs(model))}
    checkpoints.put(stage, final | {"finished": True})


def _check_finite(model: Any, settings: ModelSettings, options: TrainingOptions) -> None:
    """Refuse weights that are no numbers: the last step of an epoch shows in no loss."""
    bad = [key for key, value in model.module.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        lr = options.plan_kwargs.get("lr", settings.lr)
        raise DivergenceError(
            f"Training ended with NaN or infinite weights ({bad[0]} and {len(bad) - 1} more), with the learning rate "
            f"lr={lr}. Train with a lower one; the default is {ModelSettings().lr:g}."
        )


def _data_module(
    model: Any, training: TrainingData, settings: ModelSettings, seed: int, options: TrainingOptions
) -> GraphDataModule:
    return GraphDataModule(
        training,
        n_hops=model.module.network.n_hops,
        batch_size=options.batch_size,
        sampler=settings.sampler,
        validation_share=settings.validation_share,
        seed=seed,
        pretrain_epochs=settings.pretrain_epochs,
        block_size=options.block_size,
    )


def _fit(
    model: Any, data: GraphDataModule, s: ModelSettings, seed: int, options: TrainingOptions, progress: Progress
) -> bool:
    """Train until the end; whether the device's memory was too small for it."""
    plan_arguments: dict[str, Any] = {"optimizer": "AdamW", "lr": s.lr, "weight_decay": s.weight_decay, "eps": 1e-8}
    plan_arguments["stage_lr"] = s.finetune_lr_factor
    plan = STGCHBTrainingPlan(model.module, **(plan_arguments | options.plan_kwargs))
    given = dict(options.trainer_kwargs)
    callbacks = [*given.pop("callbacks", []), StayFinite(), Pretraining(s.pretrain_epochs), progress]
    if data.n_val:
        given.setdefault("check_val_every_n_epoch", 1)
    if options.early_stopping and data.n_val:
        callbacks += [KeepBest(), StopEarly(given.pop("early_stopping_patience", s.patience))]
    given["strategy"] = strategy_for(given.get("strategy", "auto"), options.devices)
    if given["strategy"] not in ("auto", "single_device") and model.module.network.stage is not None:
        raise DeviceError(
            f"devices={options.devices!r} with finetune={s.finetune!r}: every device would pass all maps of a step "
            "through the image encoder's last stage. Pass devices=1, or finetune='none'."
        )
    given.setdefault("logger", history_logger())
    given.setdefault("enable_progress_bar", not bars_disabled())
    epochs = s.pretrain_epochs + options.max_epochs
    # A model that was trained or loaded before is in evaluation mode, and Lightning leaves it there: no dropout.
    model.module.train()
    with (
        others_quiet(),
        torch.random.fork_rng(),
        driver_sought_once(),
        _signals_kept(progress),
        runner_quiet(),
        warnings.catch_warnings(),
    ):
        # The image encoder's last stage is in evaluation mode on purpose.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode", category=UserWarning)
        torch.manual_seed(seed)
        make = partial(TrainRunner, model, plan, data, epochs, options.accelerator, options.devices)
        try:
            runner = _runner(make, callbacks, given)
            progress.prepare(runner.trainer, model.module)
            runner()
        except MisconfigurationException as error:
            raise ArgumentError(f"STGCHB.train: Lightning's Trainer cannot train so: {error}") from error
        except torch.cuda.OutOfMemoryError:
            # One device alone would begin the epoch anew, and the others wait for it for ever.
            if runner.trainer.world_size > 1:
                raise
            return True
    return False


def _runner(make: Callable[..., Any], callbacks: list[Any], given: dict[str, Any]) -> Any:
    """Make scvi-tools' runner. Devices are read by Lightning alone, which knows what this machine has.

    Raises
    ------
    ArgumentError
        Lightning refuses what it was given.
    """
    try:
        return make(callbacks=callbacks, **given)
    except (TypeError, ValueError, OverflowError, ImportError) as error:
        # ImportError of an accelerator whose package is not installed.
        raise ArgumentError(f"STGCHB.train: Lightning's Trainer cannot be made so: {error}") from error


def strategy_for(strategy: Any, devices: Devices) -> Any:
    """Lightning's strategy: as given, for several devices always distributed data parallel.

    Raises
    ------
    DeviceError
        For a strategy that splits the network, or that starts other processes than copies of the script.
    """
    several = len(devices) > 1 if isinstance(devices, list | tuple) else str(devices) not in ("auto", "0", "1")
    if isinstance(strategy, DDPStrategy) or strategy == _DDP:
        return strategy
    if strategy == "ddp" or (several and strategy == "auto"):
        return _DDP
    if strategy in ("auto", "single_device") and not several:
        return strategy
    raise DeviceError(
        f"strategy={strategy!r} with devices={devices!r} is not supported: expected strategy='ddp', in a script "
        "(python train.py), which Lightning starts once for each device."
    )


def _halved(
    options: TrainingOptions, data: GraphDataModule, progress: Progress
) -> tuple[TrainingOptions, dict[str, Any] | None]:
    """Smaller steps, and the state to go on from."""
    state = progress.state
    epoch = 0 if state is None else int(state["epoch"])
    if data.sampler == "slices" or epoch < data.pretrain_epochs:
        largest = max(len(block) for blocks in data.blocks for block in blocks)
        smaller, what = replace(options, block_size=largest // 2), "block_size"
    else:
        largest = options.batch_size
        smaller, what = replace(options, batch_size=largest // 2), "batch_size"
        if state is not None:
            # The loss grows with the number of spots that are contrasted: earlier epochs are no measure any more.
            state = state | {"callbacks": {}}
    if largest // 2 < 2:
        raise DeviceError(
            f"The device's memory is too small even for a step of {largest} spots. Use a larger device, "
            "accelerator='cpu', or a smaller network (n_hidden, n_image_adapter)."
        )
    logger.warning(
        "The device ran out of memory in epoch %d with steps of %d spots: training goes on from that epoch's start "
        "with %s=%d.",
        *(epoch, largest, what, largest // 2),
    )
    return smaller, state


@contextmanager
def _signals_kept(progress: Progress) -> Iterator[None]:
    """Ctrl-C stays a KeyboardInterrupt, and SIGTERM no success: Lightning makes a SystemExit of each.

    After Ctrl-C, Lightning also leaves it switched off.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        # Where a handler of the caller's kept ours out, Lightning ends by its own, whose status is that of success.
        raise Stopped(signal.SIGTERM) from None
    except SystemExit:
        if not progress.interrupted:
            raise
    if progress.interrupted:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt


_OF_TRAINING = (
    "is_trained_",
    "bank_",
    "model_id_",
    "calibration_",
    "rules_",
    "_fitted",
    "_module",
    "_model_summary_string",
)
"""Attributes that fitting and training set."""


@contextmanager
def as_before_on_error(model: Any) -> Iterator[None]:
    """Restore a model where fitting or training ends by an error: half-trained weights are of no use to anyone."""
    before = {name: getattr(model, name) for name in _OF_TRAINING}
    module = before["_module"]
    state = None if module is None else (_state(model), module.training)
    history = None if model.history_ is None else dict(model.history_)
    try:
        yield
    except BaseException:
        with held_back():
            if state is not None:
                module.load_state_dict(state[0])
                module.train(state[1])
                module.pretraining = False
            model.history_ = history
            for name, value in before.items():
                setattr(model, name, value)
        raise


def _state(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.module.state_dict().items()}


def _epochs(model: Any) -> Any:
    return max((model.history_ or {}).values(), key=len, default=())


def _take_over(model: Any, state: dict[str, Any], options: TrainingOptions) -> None:
    """Make of a checkpoint of a finished training what the training would have left."""
    model.module.load_state_dict(state["module"])
    model.module.eval()
    model.history_, model.is_trained_ = history_frames(state["history"]), True
    _, _, device = parse_device_args(options.accelerator, options.devices, return_device="torch")
    model.to_device(device)


def _check_fixed(module: torch.nn.Module, stored: dict[str, torch.Tensor]) -> None:
    """Refuse to go on where the input maps were fitted to other axes, which other libraries or machines may find."""
    fixed = {key: value for key, value in module.state_dict().items() if ".fixed." in key}
    if not all(torch.allclose(value.cpu(), stored[key], rtol=1e-2, atol=1e-4) for key, value in fixed.items()):
        raise CheckpointError(
            "The checkpoint's principal components are not those that were fitted now: it was written on another "
            "machine or with other versions of the libraries. Go on there, or train again without resume=True."
        )
