"""Running an encoder on a device: choice of the device, numeric precision, batching and views of the patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from st_gchb._errors import EncoderError, InputError
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_PRECISION, Precision
from st_gchb.pp.encoders._encoder import Encoder


def choose_device(device: str | int | torch.device) -> torch.device:
    """Choose a torch device and validate that it is available.

    Parameters
    ----------
    device
        ``"auto"`` for CUDA, MPS or CPU, whichever is available first; or a device, its name, or the number of a GPU.

    Returns
    -------
    torch.device
        Device that is available.

    Raises
    ------
    InputError
        The device is not available.
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
    """Halve a batch size after the device ran out of memory, with a warning.

    Parameters
    ----------
    size
        Batch size that was too large, at least 2.
    what
        Continuation of the warning, with a placeholder for the new size, such as ``"embedding goes on with %d spots at
        once"``.

    Returns
    -------
    int
        The new batch size.
    """
    torch.cuda.empty_cache()
    logger.warning(f"The device ran out of memory: {what}.", size // 2)
    return size // 2


Recolor = Callable[[Tensor], Tensor]
K = TypeVar("K")
Recorder = Callable[[nn.Module, nn.Module], AbstractContextManager[list[Tensor]]]
Batch = tuple[K, npt.NDArray[np.uint8], Sequence[Recolor]]
RunnerBatch = tuple["EncoderRunner", K, npt.NDArray[np.uint8], Sequence[Recolor]]

_CPU_BATCH = 8
"""Batch size on a CPU: the feature maps of larger batches exceed its caches (with MobileNetV2, one batch of 64 patches
takes twice as long as 8 batches of 8)."""


@dataclass(frozen=True)
class EncodingOptions:
    """Settings by which patches are read and encoded.

    Parameters
    ----------
    batch_size
        Patches per batch.
    device
        Device on which the encoder runs.
    memory_mb
        Bound of the decoded pixels in memory, MB, as in :func:`~st_gchb.pp.read_patches`.
    precision
        Precision of convolutions and matrix products (torch's automatic mixed precision).
    compiled
        Whether the encoder is compiled with :func:`torch.compile`.
    """

    batch_size: int
    device: torch.device
    memory_mb: float
    precision: Precision = DEFAULT_PRECISION
    compiled: bool = False


class EncoderRunner:
    """An encoder on a device.

    Batch norm is folded into the preceding convolutions, and tensors are in channels-last memory format. On a GPU,
    transfers overlap with the computation of other batches. If the device runs out of memory, the batch size is halved
    for the rest of the run.

    Parameters
    ----------
    encoder
        Frozen encoder.
    n_views
        Number of views over which features are averaged: 1, 4 (rotations) or 8 (and mirrored rotations).
    options
        Device, precision and batch size.
    recorder
        Context manager that, given the image encoder and the module that is actually called, collects the inputs of
        the last stage in a list; None to collect nothing.
    """

    def __init__(
        self, encoder: Encoder, n_views: int, options: EncodingOptions, recorder: Recorder | None = None
    ) -> None:
        self.encoder, self.n_views, self.options, self.recorder = encoder, n_views, options, recorder
        self._at_once = _CPU_BATCH if options.device.type == "cpu" else options.batch_size

    @property
    def identity(self) -> str:
        """Identifier of the features, distinct for each encoder and precision; part of the key of cached features."""
        whole = self.options.precision == "float32"
        return self.encoder.identity if whole else f"{self.encoder.identity}-{self.options.precision}"

    @cached_property
    def _ready(self) -> Encoder:
        """The encoder on the device, optionally compiled; prepared on first use, since all features may be cached."""
        module: nn.Module = self.encoder.folded.to(self.options.device)
        if not self.options.compiled:
            return replace(self.encoder, module=module)
        # Freezing makes the weights constants, so that the compiler also optimizes their memory layout.
        compiler: dict[str, Any] | None = {"freezing": True} if self.options.device.type == "cpu" else None
        ready = replace(self.encoder, module=cast(nn.Module, torch.compile(module, dynamic=False, options=compiler)))
        side = self.encoder.input_px
        try:
            with self._precise():
                ready(torch.zeros(self._at_once, 3, side, side, dtype=torch.uint8, device=self.options.device))
        except torch.cuda.OutOfMemoryError:
            # The same error occurs when patches are encoded, and is handled there by a smaller batch.
            return ready
        except RuntimeError as error:
            raise EncoderError(
                f"encoder {self.encoder.name!r} could not be compiled ({error}). torch.compile needs a C++ compiler on "
                "a CPU, and triton on a GPU; leave out compiled=True otherwise."
            ) from error
        return ready

    def run(self, batches: Iterable[Batch[K]], take: Callable[..., None]) -> None:
        """Encode batches in order.

        Parameters
        ----------
        batches
            Batches as tuples: an identifier, patches ``(b, h, w, 3)`` uint8, and color transformations to apply first,
            each from ``(b, 3, h, w)`` uint8 to the same.
        take
            Callback that receives the identifier of a batch, its features ``(b, n_features)`` float32 and, with a
            recorder, the collected maps of all views ``(b, n_views, c, h, w)``. If iterating over ``batches`` raises,
            it has been called for all batches before.
        """
        self.run_all(((self, name, patches, recolors) for name, patches, recolors in batches), take)

    @staticmethod
    def run_all(batches: Iterable[RunnerBatch[K]], take: Callable[..., None]) -> None:
        """Encode batches in order, each with a runner of its own.

        Parameters
        ----------
        batches
            Batches as for :meth:`run`, each preceded by the runner that encodes it.
        take
            As for :meth:`run`.
        """
        waiting: tuple[K, list[Tensor]] | None = None
        try:
            for runner, name, patches, recolors in batches:
                # Start the next batch before fetching the last one, because fetching waits for the device.
                last, waiting = waiting, (name, runner._start(patches, recolors))
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
        """Compute the features, averaged over the views, and the collected maps of each view if there is a recorder."""
        with nullcontext() if self.recorder is None else self.recorder(self.encoder.module, self._ready.module) as seen:
            features = torch.stack([self._encode(view) for view in views_of(patches, self.n_views)]).mean(0)
        return [features] if seen is None else [features, torch.stack(seen, dim=1)]

    def _sent(self, patches: Tensor) -> Tensor:
        if self.options.device.type != "cuda":
            return patches.to(self.options.device)
        return patches.pin_memory().to(self.options.device, non_blocking=True)

    def _encode(self, patches: Tensor) -> Tensor:
        n_patches = len(patches)
        if self.options.compiled:
            # Pad the last batch to the compiled shape: another shape would trigger a recompilation.
            patches = nn.functional.pad(patches, (0, 0) * 3 + (0, self._at_once - n_patches))
        with self._precise():
            return self._ready(patches)[:n_patches]

    def _precise(self) -> AbstractContextManager[Any]:
        if self.options.precision == "float32":
            return nullcontext()
        return torch.autocast(self.options.device.type, getattr(torch, self.options.precision))


def views_of(patches: Tensor, n_views: int) -> list[Tensor]:
    """Rotate and mirror a batch of patches.

    Parameters
    ----------
    patches
        Patches, ``(b, c, h, w)``.
    n_views
        1: the patches themselves; 4: their rotations by multiples of 90°; 8: and these mirrored.

    Returns
    -------
    list of torch.Tensor
        The views, each ``(b, c, h, w)``.
    """
    rotated = [torch.rot90(patches, turns, dims=(2, 3)) for turns in range(min(n_views, 4))]
    return rotated + [view.flip(3) for view in rotated] if n_views == 8 else rotated
