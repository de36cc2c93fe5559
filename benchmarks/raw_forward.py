"""The encoder's forward pass by itself, on the very tensors that it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@dataclass
class Caught:
    """A network as it was called: what is nearest to it that can be run without the rest.

    Parameters
    ----------
    module
        The network itself, folded or compiled where the package does so.
    inputs
        Batches as they came: size, type, order in memory, device.
    autocast
        Precision of torch's automatic mixed precision, or None.
    """

    module: nn.Module | None = None
    inputs: list[Tensor] = field(default_factory=list)
    autocast: torch.dtype | None = None

    @property
    def n_patches(self) -> int:
        """Patches in all batches."""
        return sum(len(batch) for batch in self.inputs)

    @torch.inference_mode()
    def forward(self) -> list[Tensor]:
        """The network on all batches, and nothing else."""
        if self.module is None:
            raise RuntimeError("No network was called on images: there is nothing whose rate could be measured.")
        kind = self.inputs[0].device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            return [self.module(batch) for batch in self.inputs]


@contextmanager
def catch_network() -> Iterator[Caught]:
    """Note the outermost network that is called on images, ``(b, 3, h, w)``, and what it is called on.

    It is found by torch's hooks for all modules, so it does not matter what a commit does to the encoder first.
    """
    caught, depth = Caught(), [0]

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        depth[0] += 1
        images = inputs[0] if inputs else None
        if depth[0] == 1 and isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3:
            caught.module = module
            # A copy, in the same order: what it was given may be overwritten by the next batch.
            caught.inputs.append(images.clone(memory_format=torch.preserve_format))
            kind = images.device.type
            caught.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def leave(*_: Any) -> None:
        depth[0] -= 1

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def network_of(call: Callable[[], Any]) -> Caught:
    """The network that a call runs."""
    with catch_network() as caught:
        call()
    return caught
