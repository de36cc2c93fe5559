"""How far a training has come: kept in memory from epoch to epoch, on disk from time to time and when it ends early."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from st_gchb._artifacts import write_whole
from st_gchb._compat import history_logger
from st_gchb._errors import CheckpointError
from st_gchb._logging import logger
from st_gchb._signals import check_stopped, held_back

FORMAT = 1


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state to a file, whole or not at all.

    Parameters
    ----------
    path
        The file.
    state
        Dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises
    ------
    OSError
        If the disk is full or refuses.
    """
    tensors: dict[str, Tensor] = {}
    record = json.dumps({"format": FORMAT, "state": _plain(state, tensors)})
    with write_whole(path) as part:
        try:
            save_file(tensors, part, metadata={"record": record, "sha256": _digest(record, tensors)})
        except SafetensorError as error:
            # So it calls a full disk; what it cannot hold has been refused before.
            raise OSError(f"{path} could not be written: {error}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that :func:`write_checkpoint` was given.

    Raises
    ------
    CheckpointError
        If the file is cut short, changed, or no checkpoint.
    """
    damaged = f"The checkpoint {path} is damaged ({{}}). Delete it, and train again from the beginning."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(damaged.format(error)) from error
    record = metadata.get("record", "")
    if metadata.get("sha256") != _digest(record, tensors):
        raise CheckpointError(damaged.format("its hash is not that of what it holds"))
    stored = json.loads(record)
    if stored["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint {path} is of format {stored['format']}, this version of st-gchb reads {FORMAT}. "
            "Go on with the version that wrote it, or delete it and train again."
        )
    state: dict[str, Any] = _restored(stored["state"], tensors)
    return state


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON: what JSON does not know is marked, tensors are put aside."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy each: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        # As pairs: keys may be numbers, and the order of an optimizer's parameters counts.
        return {"pairs": [[_plain(key, tensors), _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_plain(item, tensors) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint cannot hold a {type(value).__name__}.")


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_restored(item, tensors) for item in value["tuple"])
    return {_restored(key, tensors): _restored(item, tensors) for key, item in value["pairs"]}


def _digest(record: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(tensors[name].reshape(-1).view(torch.uint8).numpy()).data)
    return sha.hexdigest()


SECONDS_BETWEEN_WRITES = 10.0
"""An epoch may take milliseconds: what a process loses that is killed is this long at most, and one epoch."""

State = dict[str, Any]


class CheckpointFolder:
    """Checkpoints of one call of ``model.train``: of the network, and of those that are trained to calibrate it.

    Parameters
    ----------
    folder
        Where they lie, one file for each network.
    identity
        What the training depends on, by name: settings and hashes of the data.
    resume
        Go on with those that are there. Otherwise they are replaced as the new training comes along.

    Raises
    ------
    CheckpointError
        If a checkpoint is there to go on with, and is damaged or of another training.
    """

    def __init__(self, folder: Path, identity: dict[str, str], *, resume: bool) -> None:
        self.folder, self.identity = folder, identity
        self._found: dict[str, State] = {}
        self._waiting: dict[str, State] = {}
        self._written = time.monotonic()
        self._quiet = False
        files = sorted(folder.glob("*.checkpoint"))
        if resume:
            self._found = {file.stem: self._read(file) for file in files}
            if not files:
                logger.warning("There is no checkpoint in %s: training starts from the beginning.", folder)
        elif files:
            logger.warning(
                "%s holds a checkpoint of a training that did not end; it is replaced. model.train(resume=True) would "
                "have gone on from it.",
                folder,
            )

    def _read(self, file: Path) -> State:
        state = read_checkpoint(file)
        stored = state["identity"]
        differ = sorted(name for name in stored | self.identity if stored.get(name) != self.identity.get(name))
        if differ:
            pairs = "; ".join(f"{one}: {stored.get(one)} there, {self.identity.get(one)} here" for one in differ)
            raise CheckpointError(
                f"The checkpoint {file} is of another training ({pairs}). Call train with the same model, data and "
                "arguments as then, or without resume=True to start from the beginning."
            )
        return state

    def found(self, stage: str) -> State | None:
        """What there is to go on with, and None where there is nothing."""
        return self._found.get(stage)

    def put(self, stage: str, state: State) -> None:
        """Take a state; it is written if the last one was some time ago."""
        self._waiting[stage] = state
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> bool:
        """Write what is waiting; where the disk refuses, say so once and go on."""
        try:
            for stage in list(self._waiting):
                state = self._waiting[stage] | {"identity": self.identity}
                write_checkpoint(self.folder / f"{stage}.checkpoint", state)
                del self._waiting[stage]
        except (OSError, TypeError) as error:
            if not self._quiet:
                logger.warning("The checkpoint could not be written to %s (%s); training goes on.", self.folder, error)
            self._quiet = True
        self._written = time.monotonic()
        return not self._waiting

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Write what is waiting where the block ends by an error or Ctrl-C, and say how to go on; else clean up."""
        try:
            yield
        except BaseException:
            with held_back():
                self._keep()
            raise
        for file in self._files().values():
            file.unlink(missing_ok=True)
        if self.folder.name == self.key and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _keep(self) -> None:
        """Write what is waiting, and say how to go on."""
        # Of a training that has not gone through an epoch there is nothing to go on from.
        begun = any(state["epoch"] for state in self._waiting.values()) or self._files()
        if begun and self.write():
            epochs = {stage: int(read_checkpoint(file)["epoch"]) for stage, file in self._files().items()}
            logger.warning(
                "Training ended early. The checkpoint is in %s (epochs done: %s); the same call with resume=True "
                "goes on from it.",
                *(self.folder, ", ".join(f"{stage} {epoch}" for stage, epoch in epochs.items())),
            )

    @property
    def key(self) -> str:
        """Name of the training, by what it depends on."""
        return key_of(self.identity)

    def _files(self) -> dict[str, Path]:
        return {file.stem: file for file in sorted(self.folder.glob("*.checkpoint"))}


class NoCheckpoints:
    """Stands for a :class:`CheckpointFolder` where none are kept."""

    def found(self, stage: str) -> None:
        """Nothing is there to go on with."""

    def put(self, stage: str, state: State) -> None:
        """Let a state go."""

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Do nothing about errors."""
        yield


def key_of(identity: dict[str, str]) -> str:
    """Short name of a training, by what it depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Progress(Callback):
    """Takes the state at the start of every epoch, and puts one back.

    All that the rest of the training depends on: weights, optimizer, random numbers, what the other callbacks have
    counted, and what was logged. The order of the spots depends on the epoch's number alone.

    Parameters
    ----------
    state
        What an earlier callback of this kind has taken, to go on from there.
    keep
        Called with each state that is taken, on the process that writes.
    """

    def __init__(self, state: State | None = None, keep: Callable[[State], None] | None = None) -> None:
        self.state, self.keep = state, keep
        self.interrupted = False
        self._resuming = state is not None

    def prepare(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """Put weights and the epoch's number back, before the trainer makes its loaders."""
        if self.state is not None:
            module.load_state_dict(self.state["module"])
            current: Any = trainer.fit_loop.epoch_progress.current
            current.ready = current.started = current.processed = current.completed = int(self.state["epoch"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put optimizers, callbacks and the history back."""
        if self.state is None:
            return
        for optimizer, stored in zip(trainer.optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
            _lay_out(optimizer)
        for config, stored in zip(trainer.lr_scheduler_configs, self.state["schedulers"], strict=True):
            config.scheduler.load_state_dict(stored)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback.state_key in self.state["callbacks"]:
                callback.load_state_dict(self.state["callbacks"][callback.state_key])
        data = _history(trainer)
        if data is not None and not data:
            data.update(history_frames(self.state["history"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the random numbers back where a training goes on; else take the state."""
        if self._resuming and self.state is not None:
            self._resuming = False
            _set_random(self.state["random"])
            return
        self.state = self._taken(trainer, pl_module)
        if trainer.is_global_zero and self.keep is not None:
            self.keep(self.state)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """End here where a signal told so, and something below has lost the exception."""
        check_stopped()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note Ctrl-C: Lightning turns it into the end of the whole program."""
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def _taken(self, trainer: Trainer, pl_module: LightningModule) -> State:
        module: Any = pl_module.module
        callbacks = {one.state_key: one.state_dict() for one in trainer.callbacks}  # type: ignore[attr-defined]
        history = _history(trainer) or {}
        return {
            "epoch": trainer.current_epoch,
            "module": _copied(module.state_dict()),
            "optimizers": [_copied(optimizer.state_dict()) for optimizer in trainer.optimizers],
            "schedulers": [_copied(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            "callbacks": {key: _copied(value) for key, value in callbacks.items() if value},
            "random": _random(),
            "history": history_points(history),
        }


def history_points(history: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Logged values of scvi-tools' history as pairs of epoch and value."""
    return {
        name: [[int(epoch), float(value)] for epoch, value in frame[name].items()] for name, frame in history.items()
    }


def history_frames(points: dict[str, list[list[float]]]) -> dict[str, Any]:
    """What :func:`history_points` was given."""
    log = history_logger().experiment
    for name, values in points.items():
        for epoch, value in values:
            log.log_metrics({"epoch": epoch, name: value})
    frames: dict[str, Any] = log.data
    return frames


def _history(trainer: Trainer) -> dict[str, Any] | None:
    """Values that scvi-tools' logger has kept on this process; None with another logger or on another process."""
    data = getattr(getattr(trainer.logger, "experiment", None), "data", None)
    return data if isinstance(data, dict) else None


def _copied(value: Any) -> Any:
    """The same with copies of all tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimizer's moments out in memory like their parameters, which a file does not keep.

    torch's fused optimizers, which scvi-tools takes from 1.5 on, walk through the memory of a parameter and of its
    moments side by side: of a convolution that is held channels last, they would pair the wrong numbers.
    """
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                moments[name] = like.copy_(value)


def _random() -> State:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random(state: State) -> None:
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
