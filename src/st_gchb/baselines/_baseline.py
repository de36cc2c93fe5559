"""The frame of a published method: presets, training with epochs chosen on an inner slice, prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from st_gchb._errors import DeviceError, DivergenceError, InputError, NotTrainedError
from st_gchb._logging import logger, track
from st_gchb.baselines._spots import Spots
from st_gchb.metrics import pearson
from st_gchb.pp.encoders import choose_device

_INNER_SHARE = 0.25
"""Share of a single slice's spots that is the inner part, on which epochs are chosen."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that every method has.

    Parameters
    ----------
    epochs
        Largest number of passes over the training spots.
    choose_epochs
        Choose the number of epochs on an inner slice of the training slices, up to ``epochs``, and train anew on all.
    patience
        Stop the run that chooses when this many epochs have brought nothing better; None lets it run to its end.
    batch_size
        Number of spots in a step; of methods that take whole slices, the largest number of spots of a part.
    lr
        Learning rate.
    """

    epochs: int = 30
    choose_epochs: bool = True
    patience: int | None = None
    batch_size: int = 32
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if not (value is None and name == "patience") and not value >= 1:
                raise InputError(f"{name}={value!r}: expected a whole number of 1 or more.")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr!r}: expected a learning rate above 0.")


class Baseline(ABC):
    """A published method that predicts expression from H&E.

    Parameters
    ----------
    preset
        ``"small"``, the same architecture in a size that trains on a few slices with two cores in minutes, or
        ``"published"``, the sizes, optimizer and epochs of the publication.
    seed
        Seed of weights, batches, dropout and augmentation.
    device
        ``"auto"`` or the name of a torch device.
    settings
        Fields of the method's settings that differ from the preset's.

    Raises
    ------
    InputError
        Preset or setting is unknown.
    DeviceError
        The published preset of a method that learns from pixels, with ``device="auto"`` on a machine without a GPU.
    """

    name: ClassVar[str]
    """Name in tables, such as ``"st-net"``."""
    presets: ClassVar[Mapping[str, Any]]
    """Settings by preset, instances of a subclass of :class:`TrainingSettings`."""
    needs_pixels: ClassVar[bool] = False
    """Whether the method reads pixels, and not patch features alone."""

    def __init__(self, preset: str = "small", *, seed: int = 0, device: str = "auto", **settings: Any) -> None:
        if preset not in self.presets:
            raise InputError(f"{self.name}: unknown preset {preset!r}. {_nearest(preset, self.presets)}")
        known = [field.name for field in fields(self.presets[preset])]
        for setting in settings:
            if setting not in known:
                raise InputError(f"{self.name}: unknown setting {setting!r}. {_nearest(setting, known)}")
        self.settings: Any = replace(self.presets[preset], **settings)
        self.seed, self.device = seed, choose_device({"gpu": "cuda"}.get(device, device))
        if preset == "published" and self.needs_pixels and device == "auto" and self.device.type == "cpu":
            raise DeviceError(
                f"{self.name}: preset='published' trains for days without a GPU, and there is none here. Pass "
                "preset='small', or device='cpu' if that is meant."
            )
        self.network: nn.Module | None = None
        self.n_epochs = 0

    # ---- What a method defines ----

    @abstractmethod
    def build(self, spots: Spots) -> nn.Module:
        """Build the network for training spots, on the CPU, from torch's current seed."""

    @abstractmethod
    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Iterate over the rows of the batches of an epoch."""

    @abstractmethod
    def loss(self, network: nn.Module, spots: Spots, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Compute the loss of a batch; ``rng`` is for augmentation."""

    @abstractmethod
    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict spots with a network in evaluation mode, ``(n_spots, n_genes)``."""

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer; Adam unless a method says otherwise."""
        return torch.optim.Adam(network.parameters(), lr=self.settings.lr)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Make the schedule of the learning rate, which moves on after each epoch; none unless a method says so."""
        return None

    @property
    def reads_pixels(self) -> bool:
        """Tell whether these settings read pixels; methods that take patch features in some override it."""
        return self.needs_pixels

    def inner(self, spots: Spots) -> list[np.ndarray]:
        """Choose the parts, as rows, that are held out in turn to choose the number of epochs: the last slice alone."""
        return [inner_rows(spots)]

    def goodness(self, measured: np.ndarray, predicted: np.ndarray) -> float:
        """Rate a prediction of an inner part, more is better: by the mean correlation over genes."""
        return float(pearson(measured, predicted).mean())

    def check(self, spots: Spots) -> None:
        """Validate training spots before anything is trained; a method adds what it needs."""
        if spots.targets is None:
            raise InputError(f"{self.name}: the training spots have no expression. Pass targets=.")

    # ---- What all methods share ----

    def fit(self, spots: Spots) -> Self:
        """Train on spots with expression.

        Parameters
        ----------
        spots
            Training spots of one or several slices.

        Raises
        ------
        InputError
            The spots lack what the method needs.
        DivergenceError
            The loss is no longer finite.
        """
        self.check(spots)
        self.n_epochs = self.settings.epochs
        if self.settings.choose_epochs:
            self.n_epochs = self._chosen_epochs(spots)
        self.network = self._trained(spots, self.n_epochs)
        return self

    def predict(self, spots: Spots) -> np.ndarray:
        """Predict log-normalized expression, ``(n_spots, n_genes)`` float32.

        Raises
        ------
        NotTrainedError
            Before :meth:`fit`.
        """
        if self.network is None:
            raise NotTrainedError(f"{self.name} is not trained. Call fit(spots) first.")
        return self._inferred(self.network, spots)

    def _chosen_epochs(self, spots: Spots) -> int:
        """Choose the number of epochs that is best on the inner parts, each rated by its share of the spots."""
        curves = []
        for inner in self.inner(spots):
            others = np.setdiff1d(np.arange(len(spots)), inner)
            if len(others) < 2:
                raise InputError(
                    f"{self.name}: of {len(spots)} training spots, {len(inner)} are held out to choose the number of "
                    "epochs, which leaves too few. Give more spots, or pass choose_epochs=False."
                )
            scores: list[float] = []
            self._trained(spots[others], self.settings.epochs, spots[inner], scores)
            curves.append(len(inner) * np.asarray(scores))
        shortest = min(map(len, curves))
        n_epochs = int(np.argmax(np.sum([curve[:shortest] for curve in curves], axis=0))) + 1
        logger.info("%s: %d epochs are best on the inner part.", self.name, n_epochs)
        return n_epochs

    def _trained(
        self, spots: Spots, n_epochs: int, inner: Spots | None = None, scores: list[float] | None = None
    ) -> nn.Module:
        """Train a new network; with inner spots, note how good their prediction is after each epoch."""
        patience = self.settings.patience
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            rng = np.random.default_rng(self.seed)
            network = self.build(spots).to(self.device)
            optimizer = self.optimizer(network)
            schedule = self.schedule(optimizer)
            for _ in track(range(n_epochs), f"{self.name}, epochs"):
                network.train()
                for rows in self.batches(spots, rng):
                    optimizer.zero_grad()
                    loss = self.loss(network, spots, rows, rng)
                    if not torch.isfinite(loss):
                        raise DivergenceError(
                            f"{self.name}: the training loss is {float(loss)}, with the learning rate "
                            f"lr={self.settings.lr}. Train with a lower one."
                        )
                    loss.backward()
                    optimizer.step()
                if schedule is not None:
                    schedule.step()
                if inner is not None and scores is not None and inner.targets is not None:
                    scores.append(self.goodness(inner.targets, self._inferred(network, inner)))
                    if patience is not None and len(scores) - 1 - int(np.argmax(scores)) >= patience:
                        break
        return network.eval()

    def _inferred(self, network: nn.Module, spots: Spots) -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            return self.infer(network, spots).astype(np.float32)

    def tensor(self, values: np.ndarray) -> Tensor:
        """Copy an array to the device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def inner_rows(spots: Spots) -> np.ndarray:
    """Choose the inner part on which epochs are chosen: the last slice, or the right quarter of a single slice."""
    slices = spots.by_slice
    if len(slices) > 1:
        return slices[-1]
    order = np.argsort(spots.positions[:, 0], kind="stable")
    return np.sort(order[len(order) - max(2, int(_INNER_SHARE * len(order))) :])


def spot_batches(spots: Spots, size: int, rng: np.random.Generator, *, one_slice: bool = False) -> Iterator[np.ndarray]:
    """Iterate over spots in random order, in batches of nearly the same size, of all slices or each of one slice."""
    parts = [rng.permutation(own) for own in spots.by_slice] if one_slice else [rng.permutation(len(spots))]
    batches = [batch for part in parts for batch in np.array_split(part, max(1, round(len(part) / size)))]
    order = rng.permutation(len(batches)) if one_slice else range(len(batches))
    yield from (batches[number] for number in order)


def slice_batches(spots: Spots, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Iterate over whole slices in random order; one of more than ``size`` spots is drawn down to as many."""
    slices = spots.by_slice
    for number in rng.permutation(len(slices)):
        rows = slices[number]
        yield rows if len(rows) <= size else np.sort(rng.permutation(rows)[:size])


def region_batches(spots: Spots, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Iterate over whole slices in random order; of one of more than ``size`` spots, a part that hangs together.

    For methods that ask a spot's neighbors: the part is the ``size`` spots nearest to a random one.
    """
    slices = spots.by_slice
    for number in rng.permutation(len(slices)):
        rows = slices[number]
        if len(rows) > size:
            center = spots.positions[rng.choice(rows)]
            distance = np.linalg.norm(spots.positions[rows] - center, axis=1)
            rows = np.sort(rows[np.argsort(distance, kind="stable")[:size]])
        yield rows


def spread_parts(spots: Spots, size: int) -> Iterator[np.ndarray]:
    """Split each slice into as few parts as hold at most ``size`` spots, each spread over the whole slice."""
    for rows in spots.by_slice:
        n_parts = -(-len(rows) // size)
        ordered = rows[np.lexsort(spots.positions[rows].T)]
        yield from (np.sort(ordered[number::n_parts]) for number in range(n_parts))


def compact_parts(spots: Spots, size: int) -> Iterator[np.ndarray]:
    """Split each slice into compact parts of at most ``size`` spots, by halves along the longer side."""
    waiting = spots.by_slice[::-1]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            yield rows
            continue
        axis = int(np.argmax(np.ptp(spots.positions[rows], axis=0)))
        across, along = spots.positions[rows, 1 - axis], spots.positions[rows, axis]
        halves = np.array_split(rows[np.lexsort((across, along))], 2)
        waiting += [np.sort(half) for half in halves[::-1]]


def _nearest(name: str, known: Any) -> str:
    names = list(known)
    close = get_close_matches(name, names, n=3)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known are {', '.join(map(repr, names))}."
