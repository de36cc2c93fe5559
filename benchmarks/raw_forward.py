"""Forward pass of an encoder alone, replayed on the tensors that the package passed to it."""

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
    """A network with the inputs of its calls, so that its forward pass can be replayed without reading patches.

    Parameters
    ----------
    module
        Network that was called, folded or compiled as in the package.
    inputs
        Batches with their original size, type, memory format and device.
    autocast
        Precision of torch's automatic mixed precision; None if it was off.
    """

    module: nn.Module | None = None
    inputs: list[Tensor] = field(default_factory=list)
    autocast: torch.dtype | None = None

    @property
    def n_patches(self) -> int:
        """Number of patches in all batches."""
        return sum(len(batch) for batch in self.inputs)

    @torch.inference_mode()
    def forward(self) -> list[Tensor]:
        """Run the network on all batches."""
        if self.module is None:
            raise RuntimeError("No network was called on images: there is nothing whose rate could be measured.")
        kind = self.inputs[0].device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            return [self.module(batch) for batch in self.inputs]


@contextmanager
def catch_network() -> Iterator[Caught]:
    """Record the outermost network that is called on images, ``(b, 3, h, w)``, and its inputs.

    Torch's global module hooks are used, so that this works for every commit, whatever it does to the encoder.
    """
    caught, depth = Caught(), [0]

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        depth[0] += 1
        images = inputs[0] if inputs else None
        if depth[0] == 1 and isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3:
            caught.module = module
            # A copy in the same memory format, because the next batch may overwrite the input.
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
    """Run a call and return the network that it ran, with its inputs."""
    with catch_network() as caught:
        call()
    return caught
