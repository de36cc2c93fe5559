"""The HSIC bottleneck with CKA, with its gradient in closed form.

Automatic differentiation of the plain formula computes the HSIC of the hidden representation with itself twice, centers
a kernel for each HSIC in which it occurs, and holds all of that for the backward pass. At the sizes of a mini-batch
this is more than half of a training step. Here every matrix is computed once. Terms are added in the order in which
automatic differentiation adds them, so that losses and gradients are the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_NORM = 1e-12
"""Lower limit of the product of the two HSIC by which CKA is normalized."""


class CKABottleneck(torch.autograd.Function):
    """Equation 5 with CKA, ``CKA(inputs, hidden) - beta * CKA(output, hidden)``, of kernel matrices ``(n, n)``.

    The kernel of the inputs gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, output: Tensor, beta: float) -> Tensor:
        """Compute the loss, a scalar."""
        own = [_centered(kernel) for kernel in (inputs, hidden, output)]
        share = (len(inputs) - 1) ** 2
        room = torch.empty_like(inputs)

        pairs = zip((*own, own[0], own[2]), (inputs, hidden, output, hidden, hidden), strict=True)
        sums = [torch.mul(centered, kernel, out=room).sum() for centered, kernel in pairs]
        # HSIC of each with itself, then of the inputs and of the output with the hidden representation.
        inner, cross = (torch.stack(sums) / share).split([3, 2])
        products = inner[::2] * inner[1]
        roots = products.clamp_min(LEAST_NORM).sqrt()
        ctx.beta, ctx.share = beta, share
        ctx.save_for_backward(hidden, output, *own, inner, cross, products, roots)
        of_inputs, of_output = (cross / roots).unbind()
        return of_inputs - beta * of_output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        """Compute the gradients of the kernels of the hidden representation and of the output."""
        hidden, output, own_inputs, own_hidden, own_output, inner, *ratios = ctx.saved_tensors
        to_cross, to_product = _through_ratio(torch.stack([gradient, -gradient * ctx.beta]), *ratios)
        to_cross, to_own = (to_cross / ctx.share).unbind(), ((to_product * inner[::2]) / ctx.share).unbind()
        to_output = (to_product[1] * inner[1]) / ctx.share
        room = torch.empty_like(hidden)
        # The second term first: automatic differentiation goes backward.
        of_hidden = own_output * to_cross[1]
        of_output, shift = _through_centering(to_cross[1], hidden)
        of_output.add_(shift)
        _add_own(of_hidden, to_own[1], own_hidden, hidden, room)
        _add_own(of_output, to_output, own_output, output, room)
        of_hidden.add_(torch.mul(own_inputs, to_cross[0], out=room))
        _add_own(of_hidden, to_own[0], own_hidden, hidden, room)
        return None, of_hidden, of_output, None


def _centered(kernel: Tensor) -> Tensor:
    """Subtract the means of columns and rows, J K J."""
    centered = kernel - kernel.mean(0, keepdim=True)
    return centered.sub_(centered.mean(1, keepdim=True))


def _through_ratio(gradient: Tensor, cross: Tensor, product: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the gradients of both CKA into those of the HSIC above and of the product of two HSIC under the root."""
    under = -gradient * ((cross / root) / root) / (2 * root)
    return gradient / root, torch.where(product >= LEAST_NORM, under, 0.0)


def _through_centering(gradient: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the gradient of an HSIC into that of the kernel that it centers, in two terms that are to be added."""
    n = len(kernel)
    term = gradient * kernel
    term.add_(term.sum(1, keepdim=True).div_(-n))
    return term, term.sum(0, keepdim=True).div_(-n)


def _add_own(total: Tensor, gradient: Tensor, centered: Tensor, kernel: Tensor, room: Tensor) -> None:
    """Add the gradient of the HSIC of a kernel with itself."""
    total.add_(torch.mul(centered, gradient, out=room))
    term, shift = _through_centering(gradient, kernel)
    total.add_(term).add_(shift)
