"""Checkpoints of a training: taken at each epoch, written from time to time and when the training ends early."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from st_gchb._advice import Fix, advise
from st_gchb._artifacts import (
    DamagedFileError,
    decode,
    digest,
    encode,
    read_hashed_tensors,
    write_hashed_tensors,
)
from st_gchb._compat import History
from st_gchb._errors import CheckpointError
from st_gchb._logging import logger
from st_gchb._signals import check_stopped, held_back
from st_gchb.train._plan import KeepBest, copied_state

FORMAT = 1


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a training to a file, as a whole or not at all.

    Parameters
    ----------
    path
        File to write.
    state
        Dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises
    ------
    OSError
        The disk is full or refuses.
    TypeError
        The state holds a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    record = json.dumps({"format": FORMAT, "state": encode(state, tensors=tensors)})
    write_hashed_tensors(path, tensors, record)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state that :func:`write_checkpoint` was given.

    Raises
    ------
    CheckpointError
        The file is damaged, is no checkpoint, or is of another format.
    """
    try:
        tensors, record = read_hashed_tensors(path, framework="pt")
        if record is None:
            raise DamagedFileError("it has no record")
    except DamagedFileError as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged ({error}). Delete it, and train again from the beginning."
        ) from error
    stored = json.loads(record)
    if stored["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint {path} is of format {stored['format']}, this version of st-gchb reads {FORMAT}. "
            "Go on with the version that wrote it, or delete it and train again."
        )
    state: dict[str, Any] = decode(stored["state"], tensors)
    return state


SECONDS_BETWEEN_WRITES = 10.0
"""Shortest time between two writes: a process that is killed loses at most this much, and one epoch."""

State = dict[str, Any]


class CheckpointFolder:
    """Checkpoints of a call of ``model.train``: one for the network and for each network trained for its calibration.

    Parameters
    ----------
    folder
        Folder of the files, one for each network.
    identity
        Settings and hashes of the data that the training depends on, by name.
    resume
        Continue from the checkpoints in the folder; otherwise they are replaced as the new training proceeds.
    earlier
        The same as earlier versions described it, whose checkpoints are continued from, too.

    Raises
    ------
    CheckpointError
        ``resume`` is True, and a checkpoint is damaged or of another training.
    """

    def __init__(
        self, folder: Path, identity: dict[str, str], *, resume: bool, earlier: Sequence[dict[str, str]] = ()
    ) -> None:
        self.folder, self.identity, self._earlier = folder, identity, list(earlier)
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
        # Versions differ in what they describe, and so in the names.
        known = [self.identity, *self._earlier]
        alike = (own for own in known if own.keys() == stored.keys())
        identity = stored if stored in known else next(alike, self.identity)
        differ = sorted(name for name in stored | identity if stored.get(name) != identity.get(name))
        if differ:
            pairs = "; ".join(f"{one}: {stored.get(one)} there, {identity.get(one)} here" for one in differ)
            raise CheckpointError(
                f"The checkpoint {file} is of another training ({pairs}). Call train with the same model, data and "
                "arguments as then, or without resume=True to start from the beginning."
            )
        return state

    def found(self, stage: str) -> State | None:
        """Return the state that the training of a network continues from, or None."""
        return self._found.get(stage)

    def put(self, stage: str, state: State) -> None:
        """Keep a network's state; write it if :data:`SECONDS_BETWEEN_WRITES` have passed since the last write."""
        self._waiting[stage] = state
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> bool:
        """Write the states that were kept since the last write.

        Errors of the disk are logged once, and the training continues.

        Returns
        -------
        bool
            True if all states were written.
        """
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
        """Write the last states if the block ends with an error or Ctrl-C; delete the checkpoints if it succeeds."""
        try:
            yield
        except BaseException:
            with held_back():
                self._keep()
            raise
        for file in self._files().values():
            file.unlink(missing_ok=True)
        own = {key_of(identity) for identity in (self.identity, *self._earlier)}
        if self.folder.name in own and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _keep(self) -> None:
        """Write the last states, and log how the training is continued."""
        # A training that has not completed an epoch has no state to continue from.
        begun = any(state["epoch"] for state in self._waiting.values()) or self._files()
        if begun and self.write():
            epochs = {stage: int(read_checkpoint(file)["epoch"]) for stage, file in self._files().items()}
            done = ", ".join(f"{stage} {epoch}" for stage, epoch in epochs.items())
            go_on = Fix("resume", "True", "to the same call, which goes on from it")
            advice = advise(go_on, otherwise="The same call goes on from it.")
            logger.warning(
                "Training ended early. The checkpoint is in %s (epochs done: %s). %s", self.folder, done, advice
            )

    def _files(self) -> dict[str, Path]:
        return {file.stem: file for file in sorted(self.folder.glob("*.checkpoint"))}


class NoCheckpoints:
    """Replacement of :class:`CheckpointFolder` that keeps no checkpoints."""

    def found(self, stage: str) -> None:
        """Return None: there is no state to continue from."""

    def put(self, stage: str, state: State) -> None:
        """Discard a state."""

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Let errors pass."""
        yield


def key_of(identity: dict[str, str]) -> str:
    """Compute a short name of a training from what it depends on."""
    return digest(identity)[:16]


class Progress(Callback):
    """Callback that takes the state at the start of every epoch, and restores one when a training is resumed.

    The state is all that the rest of the training depends on: weights, optimizers, random number generators, the
    states of other callbacks, and logged values. The order of the spots depends on the number of the epoch alone.

    Parameters
    ----------
    state
        State taken by an earlier callback of this class, to continue from.
    keep
        Function that is called with each state, on the process of rank 0.
    """

    def __init__(self, state: State | None = None, keep: Callable[[State], None] | None = None) -> None:
        self.state, self.keep = state, keep
        self.interrupted = False
        self._resuming = state is not None

    def prepare(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """Restore the weights and the number of the epoch, before the trainer creates its loaders."""
        if self.state is not None:
            module.load_state_dict(self.state["module"])
            current: Any = trainer.fit_loop.epoch_progress.current
            current.ready = current.started = current.processed = current.completed = int(self.state["epoch"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore optimizers, callbacks and the history."""
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
        record, data = _record(trainer), _history(trainer)
        if isinstance(record, History) and not data:
            record.restore(self.state["history"])
        elif data is not None and not data:
            data.update(history_frames(self.state["history"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random number generators if a training is resumed, else take the state."""
        if self._resuming and self.state is not None:
            self._resuming = False
            _set_random(self.state["random"])
            return
        self.state = self._taken(trainer, pl_module)
        if trainer.is_global_zero and self.keep is not None:
            self.keep(self.state)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Stop if a signal asked for it and the exception was lost in other code."""
        check_stopped()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note Ctrl-C, which Lightning turns into the end of the program."""
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def _taken(self, trainer: Trainer, pl_module: LightningModule) -> State:
        module: Any = pl_module.module
        callbacks = {}
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            state = one.state_dict()
            # What keeps the best weights changes no tensor that it holds.
            callbacks[one.state_key] = state if isinstance(one, KeepBest) else _copied(state)
        record = _record(trainer)
        history = record.points if isinstance(record, History) else history_points(_history(trainer) or {})
        return {
            "epoch": trainer.current_epoch,
            "module": copied_state(module, (self.state or {}).get("module", {})),
            "optimizers": [_copied(optimizer.state_dict()) for optimizer in trainer.optimizers],
            "schedulers": [_copied(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            "callbacks": {key: state for key, state in callbacks.items() if state},
            "random": _random(),
            "history": history,
        }


def history_points(history: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Convert the history of scvi-tools to pairs of epoch and value, by name of the logged value."""
    return {
        name: [[int(epoch), float(value)] for epoch, value in frame[name].items()] for name, frame in history.items()
    }


def history_frames(points: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Restore the history that :func:`history_points` was given."""
    record = History()
    record.restore(points)
    return record.data


def _record(trainer: Trainer) -> Any:
    """Return what the trainer's logger writes to, if it has that."""
    return getattr(trainer.logger, "experiment", None)


def _history(trainer: Trainer) -> dict[str, Any] | None:
    """Return the values kept by the logger of scvi-tools; None with another logger or on another process."""
    data = getattr(_record(trainer), "data", None)
    return data if isinstance(data, dict) else None


def _copied(value: Any) -> Any:
    """Copy nested containers with all tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's moments the memory format of their parameters, which a file does not keep.

    The fused optimizers of torch, which scvi-tools uses from version 1.5, traverse the memory of a parameter and of
    its moments in parallel: for a convolution in channels-last format they would pair the wrong numbers.
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
