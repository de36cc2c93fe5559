"""Layers that several published methods share: attention over spots, positions on the array, and the gene head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from st_gchb.baselines._spots import GRID_ROWS


class Attention(nn.Module):
    """Multi-head attention with heads of any width, of one sequence to itself or to another one.

    Parameters
    ----------
    width
        Width of the tokens.
    n_heads, head_width
        Number of heads, and width of each.
    dropout
        Dropout after the output.
    """

    def __init__(self, width: int, n_heads: int, head_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(width, n_heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * n_heads * head_width, bias=False)
        self.out = nn.Sequential(nn.Linear(n_heads * head_width, width), nn.Dropout(dropout))

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Parameters
        ----------
        x
            Tokens that ask, ``(..., n, width)``.
        context
            Tokens that are asked, ``(..., m, width)``; by default ``x``.
        mask
            True for tokens that may be asked, ``(..., m)``.
        bias
            Added to the scores of each head, ``(n_heads, n, m)``.
        """
        context = x if context is None else context
        query = self.query(x).unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)
        key, value = self.key_value(context).unflatten(-1, (2, self.n_heads, -1)).unbind(-3)
        added = bias
        if mask is not None:
            closed = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, float("-inf"))
            closed = closed[..., None, None, :]
            added = closed if bias is None else closed + bias
        found = nn.functional.scaled_dot_product_attention(
            query, key.transpose(-2, -3), value.transpose(-2, -3), attn_mask=added
        )
        return self.out(found.transpose(-2, -3).flatten(-2))


class PreNormBlock(nn.Module):
    """Transformer block with layer norm before attention and perceptron, and a residual around each.

    Parameters
    ----------
    width
        Width of the tokens.
    n_heads, head_width
        Number of heads, and width of each.
    hidden
        Width of the perceptron.
    dropout
        Dropout in attention and perceptron.
    """

    def __init__(self, width: int, n_heads: int, head_width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, n_heads, head_width, dropout)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Transform tokens ``(..., n, width)``; arguments as for :class:`Attention`, with one norm for both."""
        asked = None if context is None else self.norm(context)
        x = x + self.attention(self.norm(x), asked, mask=mask, bias=bias)
        return x + self.perceptron(x)


class ArrayPositions(nn.Module):
    """Learned embedding of the position on the array: one table for x and one for y, which are added.

    Parameters
    ----------
    width
        Width of the tokens.
    scale
        Standard deviation with which the tables start.
    """

    def __init__(self, width: int, scale: float = 0.02) -> None:
        super().__init__()
        self.x, self.y = (nn.Embedding(GRID_ROWS, width) for _ in range(2))
        for table in (self.x, self.y):
            nn.init.normal_(table.weight, std=scale)

    def forward(self, grid: Tensor) -> Tensor:
        """Embed positions ``(n_spots, 2)``, int64, as ``(n_spots, width)``."""
        return self.x(grid[:, 0]) + self.y(grid[:, 1])


def gene_head(width: int, mean: Tensor) -> nn.Linear:
    """Make a linear layer to genes that starts at their training mean: weights 0, bias ``mean``, ``(n_genes,)``."""
    layer = nn.Linear(width, len(mean))
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(mean)
    return layer
