"""The encoder at work: on a device, in a precision, as many patches at once as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from st_gchb._errors import EncoderError, InputError
from st_gchb._logging import logger
from st_gchb.pp.encoders._encoder import Encoder


def choose_device(device: str | torch.device) -> torch.device:
    """Turn ``"auto"`` or torch's name of a device into a device that is there.

    Raises
    ------
    InputError
        There is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device!r} is not usable here ({error}); pass 'auto' or 'cpu'.") from error
    return chosen


def halved(size: int, what: str) -> int:
    """Half of a size for which the device's memory was too small, with a warning.

    Parameters
    ----------
    size
        How many were tried at once, at least 2.
    what
        What goes on with fewer, such as ``"embedding goes on with %d spots at once"``.
    """
    torch.cuda.empty_cache()
    logger.warning(f"The device ran out of memory: {what}.", size // 2)
    return size // 2


Views = Literal[1, 4, 8]
Precision = Literal["float32", "bfloat16", "float16"]
Recolor = Callable[[Tensor], Tensor]
K = TypeVar("K")
Tap = Callable[[nn.Module, nn.Module], AbstractContextManager[list[Tensor]]]
Batch = tuple[K, npt.NDArray[np.uint8], Sequence[Recolor]]

_CPU_BATCH = 8
"""Patches that go through the encoder together on a CPU: feature maps of more do not stay in its caches (64 MobileNetV2
patches take twice the time of 8 times 8)."""


@dataclass(frozen=True)
class Pace:
    """How patches are read and passed on.

    Parameters
    ----------
    batch_size
        Patches at once.
    device
        Where the encoder runs.
    memory_mb
        As :func:`~st_gchb.pp.read_patches` takes it.
    precision
        In which convolutions and products are computed (torch's automatic mixed precision).
    compiled
        Whether the encoder is compiled by torch first.
    """

    batch_size: int
    device: torch.device
    memory_mb: float
    precision: Precision = "float32"
    compiled: bool = False


class Engine:
    """An encoder on a device.

    Batch norm is folded into the convolutions before it, weights and patches lie channels last. On a GPU, patches are
    sent and features fetched while the encoder is busy with the next batch. Where the device's memory is too small, the
    batch is halved, and stays so.

    Parameters
    ----------
    encoder
        The frozen trunk.
    n_views
        1, 4 (rotations) or 8 (and mirrored): features are the mean over them.
    pace
        Where, in which precision, how many at once.
    tap
        From a trunk, and from it as it is used, to a list to which what goes into its last stage is added; None where
        that is not wanted.
    """

    def __init__(self, encoder: Encoder, n_views: int, pace: Pace, tap: Tap | None = None) -> None:
        self.encoder, self.n_views, self.pace, self.tap = encoder, n_views, pace, tap
        self._at_once = _CPU_BATCH if pace.device.type == "cpu" else pace.batch_size

    @property
    def identity(self) -> str:
        """What tells its features from those of any other encoder, part of the key of cached features."""
        whole = self.pace.precision == "float32"
        return self.encoder.identity if whole else f"{self.encoder.identity}-{self.pace.precision}"

    @cached_property
    def _ready(self) -> Encoder:
        """The encoder as it is used; made when the first patches come, since features may all be cached."""
        module: nn.Module = self.encoder.folded.to(self.pace.device)
        if not self.pace.compiled:
            return replace(self.encoder, module=module)
        # With frozen weights, their layout in memory is chosen once, too.
        options: dict[str, Any] | None = {"freezing": True} if self.pace.device.type == "cpu" else None
        ready = replace(self.encoder, module=cast(nn.Module, torch.compile(module, dynamic=False, options=options)))
        side = self.encoder.input_px
        try:
            with self._precise():
                ready(torch.zeros(self._at_once, 3, side, side, dtype=torch.uint8, device=self.pace.device))
        except torch.cuda.OutOfMemoryError:
            # Met again, and dealt with, where patches are encoded.
            return ready
        except RuntimeError as error:
            raise EncoderError(
                f"encoder {self.encoder.name!r} could not be compiled ({error}). torch.compile needs a C++ compiler on "
                "a CPU, and triton on a GPU; leave out compiled=True otherwise."
            ) from error
        return ready

    def run(self, batches: Iterable[Batch[K]], take: Callable[..., None]) -> None:
        """Encode batches in their order.

        Parameters
        ----------
        batches
            What a batch is known by; patches, ``(b, h, w, 3)`` uint8; what is done to their colors first, each
            ``(b, 3, h, w)`` uint8 to the same.
        take
            Called with what a batch is known by and its features, ``(b, n_features)`` float32, and with what was
            tapped of all views, ``(b, n_views, c, h, w)``, where there is a tap. Where the batches end in an error,
            those before have been taken.
        """
        waiting: tuple[K, list[Tensor]] | None = None
        try:
            for name, patches, recolors in batches:
                # The next batch is under way before the last one is fetched: fetching waits for the device.
                last, waiting = waiting, (name, self._start(patches, recolors))
                if last is not None:
                    take(last[0], *(one.cpu().numpy() for one in last[1]))
        finally:
            if waiting is not None:
                take(waiting[0], *(one.cpu().numpy() for one in waiting[1]))

    def _start(self, patches: npt.NDArray[np.uint8], recolors: Sequence[Recolor]) -> list[Tensor]:
        tensor = self._sent(torch.from_numpy(patches)).permute(0, 3, 1, 2)
        for recolor in recolors:
            tensor = recolor(tensor)
        found: list[list[Tensor]] = []
        start = 0
        while start < len(tensor):
            part = tensor[start : start + self._at_once]
            try:
                found.append(self._answer(part))
            except torch.cuda.OutOfMemoryError:
                if len(part) < 2:
                    raise
                self._at_once = halved(len(part), "encoding goes on with %d patches at once")
                continue
            start += len(part)
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _answer(self, patches: Tensor) -> list[Tensor]:
        """Features, the mean over the views, and what is tapped of each view."""
        with nullcontext() if self.tap is None else self.tap(self.encoder.module, self._ready.module) as seen:
            features = torch.stack([self._encode(view) for view in views_of(patches, self.n_views)]).mean(0)
        return [features] if seen is None else [features, torch.stack(seen, dim=1)]

    def _sent(self, patches: Tensor) -> Tensor:
        if self.pace.device.type != "cuda":
            return patches.to(self.pace.device)
        return patches.pin_memory().to(self.pace.device, non_blocking=True)

    def _encode(self, patches: Tensor) -> Tensor:
        n_patches = len(patches)
        if self.pace.compiled:
            # What is compiled takes one shape: another would be compiled anew.
            patches = nn.functional.pad(patches, (0, 0) * 3 + (0, self._at_once - n_patches))
        with self._precise():
            return self._ready(patches)[:n_patches]

    def _precise(self) -> AbstractContextManager[Any]:
        if self.pace.precision == "float32":
            return nullcontext()
        return torch.autocast(self.pace.device.type, getattr(torch, self.pace.precision))


def views_of(patches: Tensor, n_views: int) -> list[Tensor]:
    """A batch of patches as it is, rotated, and mirrored: as many of these eight as asked for."""
    rotated = [torch.rot90(patches, turns, dims=(2, 3)) for turns in range(min(n_views, 4))]
    return rotated + [view.flip(3) for view in rotated] if n_views == 8 else rotated
