"""Losses of the paper, equations 1 to 7, as pure functions: the printed forms and the package's own variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from st_gchb.nn._bottleneck import LEAST_NORM, CKABottleneck
from st_gchb.nn._kernels import kernel_of

Dependence = Callable[[Tensor, Tensor], Tensor]


def dgi_loss(positive: Tensor, negative: Tensor, reduction: Literal["sum", "mean"] = "mean") -> Tensor:
    r"""Compute the deep graph infomax loss, equation 1.

    .. math:: L_{DGI} = -\sum_{i=1}^n [\log D(Z_i, h) + \log(1 - D(Z'_i, h))]

    Parameters
    ----------
    positive
        Logits of the discriminator for the true nodes, ``(n,)``: :math:`D = \sigma(\text{logit})`.
    negative
        Logits for the corrupted nodes, ``(n,)``.
    reduction
        ``"sum"`` is equation 1; ``"mean"`` divides it by n, so that its weight does not depend on the slice's size.

    Returns
    -------
    Tensor
        The loss, a scalar.

    Examples
    --------
    >>> import torch
    >>> dgi_loss(torch.zeros(4), torch.zeros(4)).item()  # a discriminator that knows nothing: 2 log 2
    1.3862943649291992
    """
    # softplus(-x) = -log sigmoid(x), which stays finite where the sum readout saturates the sigmoid.
    terms = F.softplus(-positive) + F.softplus(negative)
    return terms.sum() if reduction == "sum" else terms.mean()


def hsic(kernel_a: Tensor, kernel_b: Tensor) -> Tensor:
    r"""Compute the Hilbert-Schmidt independence criterion, equation 3.

    .. math:: HSIC(A, B) = \frac{1}{(n-1)^2} Tr(K_A J K_B J), \quad J = I_n - \mathbf{1}/n

    Parameters
    ----------
    kernel_a, kernel_b
        Kernel matrices, ``(n, n)``, n at least 2.

    Returns
    -------
    Tensor
        HSIC, a scalar.

    Raises
    ------
    ValueError
        There are fewer than 2 spots.
    """
    n = len(kernel_a)
    _check_spots(n)
    centered = kernel_a - kernel_a.mean(0, keepdim=True)
    centered = centered - centered.mean(1, keepdim=True)
    # Tr(K_A J K_B J) is the sum of the elements of (J K_A J) * K_B, since both matrices are symmetric.
    return (centered * kernel_b).sum() / (n - 1) ** 2


def _check_spots(n: int) -> None:
    """Refuse to compute HSIC of fewer than 2 spots, where it divides by 0."""
    if n < 2:
        raise ValueError(f"HSIC needs at least 2 spots, found {n}: merge the last mini-batch with the one before.")


def nhsic(kernel_a: Tensor, kernel_b: Tensor) -> Tensor:
    r"""Compute normalized HSIC, equation 4 as printed.

    .. math:: nHSIC(A, B) = \frac{HSIC(A, B)}{\sqrt{(1 + HSIC(A, A))(1 + HSIC(B, B))}}

    HSIC is of the order of 0.01 to 0.1, so the denominator is close to 1 and normalizes little; :func:`cka` does.
    """
    own = (1.0 + hsic(kernel_a, kernel_a)) * (1.0 + hsic(kernel_b, kernel_b))
    return hsic(kernel_a, kernel_b) / own.sqrt()


def cka(kernel_a: Tensor, kernel_b: Tensor) -> Tensor:
    r"""Compute centered kernel alignment: the HSIC of equation 3, normalized so that CKA(A, A) = 1.

    .. math:: CKA(A, B) = \frac{HSIC(A, B)}{\sqrt{HSIC(A, A) HSIC(B, B)}}
    """
    own = hsic(kernel_a, kernel_a) * hsic(kernel_b, kernel_b)
    return hsic(kernel_a, kernel_b) / own.clamp_min(LEAST_NORM).sqrt()


def bottleneck_loss(
    inputs: Tensor, hidden: Tensor, output: Tensor, *, beta: float, dependence: Dependence, sigma: float | None
) -> Tensor:
    r"""Compute the HSIC bottleneck of one branch, equation 5 with the signs as printed.

    .. math:: nHSIC(T_\alpha; T_\rho) - \beta \, nHSIC(T_l; T_\rho)

    The first term compresses: it lowers the dependence of the hidden representation on the input. The second term
    preserves its dependence on the output. The sentence under the equation in the paper names the two pairs the other
    way round; the published code minimizes the printed signs.

    Parameters
    ----------
    inputs, hidden, output
        :math:`T_\alpha`, :math:`T_\rho` and :math:`T_l` of the branch, each ``(n, width)``.
    beta
        Weight of the second term.
    dependence
        :func:`nhsic` (equation 4) or :func:`cka`.
    sigma
        Bandwidth of the kernel; ``None`` takes :func:`median_bandwidth` of each representation.

    Returns
    -------
    Tensor
        The loss, a scalar.
    """
    kernels = [kernel_of(x, sigma) for x in (inputs, hidden, output)]
    if dependence is cka and not inputs.requires_grad:
        _check_spots(len(inputs))
        loss: Tensor = CKABottleneck.apply(*kernels, beta)
        return loss
    return dependence(kernels[0], kernels[1]) - beta * dependence(kernels[2], kernels[1])


def literal_alignment_loss(expression: Tensor, image: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Compute the alignment loss of equations 6 and 7 as printed.

    The embeddings are not L2-normalized, and the temperature applies to the targets alone.

    .. math::
        target = softmax((sim_{img} + sim_{spt}) / 2 \cdot T), \quad
        L = mean(CE(sim_{cro}, target) + CE(sim_{cro}^T, target^T))

    Parameters
    ----------
    expression, image
        Embeddings of the same spots, :math:`T_l` and :math:`G_f`, ``(n, d)``.
    temperature
        The paper's :math:`\mathcal{T}`.

    Returns
    -------
    Tensor
        The loss, a scalar.
    """
    cross = expression @ image.T
    target = torch.softmax((image @ image.T + expression @ expression.T) / 2.0 * temperature, dim=1)
    rows = -(target * F.log_softmax(cross, dim=1)).sum(1)
    columns = -(target.T * F.log_softmax(cross.T, dim=1)).sum(1)
    return (rows + columns).mean()


def alignment_loss(expression: Tensor, image: Tensor, temperature: float, *, soft_targets: bool = True) -> Tensor:
    """Compute the alignment loss on the unit sphere, with one temperature for logits and targets.

    This variant of equations 6 and 7 differs from :func:`literal_alignment_loss` in three ways. Similarities are
    cosines, so that the soft targets are not one-hot. Both directions use the same targets, which are normalized over
    each row and thus sum to 1. No gradient flows through the targets.

    Parameters
    ----------
    expression, image
        Embeddings of the same spots, ``(n, d)``.
    temperature
        Divisor of the similarities.
    soft_targets
        ``False`` takes each spot's own pair as its only target.

    Returns
    -------
    Tensor
        The loss, a scalar.

    Examples
    --------
    >>> import torch
    >>> z = torch.eye(3)
    >>> bool(alignment_loss(z, z, 0.1) < alignment_loss(z, z.roll(1, 0), 0.1))
    True
    """
    expression, image = F.normalize(expression, dim=1), F.normalize(image, dim=1)
    cross = expression @ image.T / temperature
    if not soft_targets:
        target = torch.arange(len(cross), device=cross.device)
        return (F.cross_entropy(cross, target) + F.cross_entropy(cross.T, target)) / 2.0
    with torch.no_grad():
        similarity = (expression @ expression.T + image @ image.T) / 2.0
        soft = torch.softmax(similarity / temperature, dim=1)
    return (F.cross_entropy(cross, soft) + F.cross_entropy(cross.T, soft)) / 2.0
