"""Gaussian kernels of representations, with the bandwidth of the median heuristic and a gradient in closed form."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def squared_distances(x: Tensor) -> Tensor:
    """Compute squared Euclidean distances between the rows of ``x``, ``(n, n)``."""
    return _differences(x).clamp_min(0.0)


def _differences(x: Tensor) -> Tensor:
    """Compute squared distances that rounding may have left below 0, ``(n, n)``."""
    square = (x * x).sum(1)
    return torch.sub(square[:, None] + square[None, :], x @ x.T, alpha=2)


def median_bandwidth(x: Tensor) -> Tensor:
    """Compute the kernel bandwidth by the median heuristic, without gradient.

    It is the square root of the median squared distance between different rows of ``x``, ``(n, width)``.
    """
    with torch.no_grad():
        return _bandwidth_of(squared_distances(x))


def _bandwidth_of(distances: Tensor) -> Tensor:
    """Compute the root of the median squared distance between different spots, from all of them, ``(n, n)``."""
    pairs = _pairs(len(distances), distances.device)
    return _median(distances.reshape(-1).index_select(0, pairs)).clamp_min(1e-12).sqrt()


def _median(values: Tensor) -> Tensor:
    """Find the median, the lower one of two, and change the order of the values.

    In a mini-batch on a CPU, torch takes as long for it as for the distances, and numpy a third of that.
    """
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64) or not len(values):
        return values.median()
    middle = (len(values) - 1) // 2
    values.numpy().partition(middle)
    return values[middle]


@lru_cache(maxsize=4)
def _pairs(n: int, device: torch.device) -> Tensor:
    """Find the elements above the diagonal of a matrix ``(n, n)``, as positions in its row-major order."""
    rows, columns = torch.triu_indices(n, n, offset=1, device=device)
    return rows * n + columns


def gaussian_kernel(x: Tensor, sigma: float | Tensor) -> Tensor:
    r"""Compute the Gaussian kernel matrix of equation 3, ``(n, n)``.

    .. math:: K_{ij} = \exp(-\|x_i - x_j\|^2 / \sigma^2)

    The paper does not specify the exponent; this one, without the factor 2, is that of the published code.

    Examples
    --------
    >>> import torch
    >>> gaussian_kernel(torch.tensor([[0.0], [1.0]]), sigma=1.0)[0, 1].item()
    0.3678794503211975
    """
    return torch.exp(squared_distances(x) / -(sigma**2))


def kernel_of(x: Tensor, sigma: float | None) -> Tensor:
    """Compute the Gaussian kernel with a given bandwidth, or with that of the median heuristic, ``(n, n)``."""
    # In mixed precision, the matrices of the gradient are of several types.
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if x.requires_grad and not mixed:
        kernel: Tensor = _Kernel.apply(x, sigma)
        return kernel
    distances = squared_distances(x)
    return torch.exp(distances / _divisor(distances.detach(), sigma))


def _divisor(distances: Tensor, sigma: float | None) -> float | Tensor:
    """Compute what distances are divided by in the exponent."""
    return -(sigma**2) if sigma is not None else -(_bandwidth_of(distances) ** 2)


@cache
def _share_at_limit() -> float:
    """Find the share of a gradient that passes ``clamp_min`` at its limit: 1 in torch's earlier versions, then 0.5."""
    with torch.enable_grad():
        at_limit = torch.zeros((), requires_grad=True)
        at_limit.clamp_min(0.0).backward()
    assert at_limit.grad is not None
    return at_limit.grad.item()


class _Kernel(torch.autograd.Function):
    """The Gaussian kernel of a representation, ``(n, width)``.

    The same bit for bit as :func:`gaussian_kernel`, with the gradient of automatic differentiation, which would keep
    every intermediate matrix.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: float | None) -> Tensor:
        """Compute the kernel, ``(n, n)``."""
        kernel = _differences(x)
        sign = kernel.sign()
        kernel.clamp_min_(0.0)
        divisor = _divisor(kernel, sigma)
        kernel.div_(divisor).exp_()
        ctx.save_for_backward(x, kernel, sign)
        ctx.divisor, ctx.share = divisor, _share_at_limit()
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the representation, ``(n, width)``."""
        x, kernel, sign = ctx.saved_tensors
        # 1 for a distance above the limit of 0, and 0 for one below.
        share = (sign + ctx.share).clamp_(0.0, 1.0)
        apart = (gradient * kernel).div_(ctx.divisor).mul_(share)
        of_squares = apart.sum(1).add_(apart.sum(0))[:, None] * x
        product = apart.mul_(-2.0)
        # In the order of automatic differentiation, which goes backward and adds the gradient of a square twice.
        return (product @ x).add_(product.T @ x).add_(of_squares).add_(of_squares), None
