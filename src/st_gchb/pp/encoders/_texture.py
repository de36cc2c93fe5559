"""Encoder without weights: color and texture statistics of a patch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

TEXTURE_VERSION = "1"
"""Version of the features, to be increased with every change to them; stored features record it."""
TEXTURE_INPUT_PX = 112

# Optical densities of hematoxylin, eosin and a residual in R, G, B (Ruifrok and Johnston 2001).
_STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SCALES = (1, 2, 4, 8)
_DARK = (0.15, 0.3, 0.5)


class Texture(nn.Module):
    """Statistics of the stain, the density of nuclei and the texture of a patch.

    All are averages over the patch of quantities that do not depend on direction or are averaged over directions, so
    that a patch and its mirror image have the same features.

    Examples
    --------
    >>> import torch
    >>> from st_gchb.pp.encoders._texture import Texture
    >>> Texture()(torch.rand(2, 3, 112, 112)).shape
    torch.Size([2, 107])
    """

    unmix: Tensor

    def __init__(self) -> None:
        super().__init__()
        stains = torch.tensor(_STAINS, dtype=torch.float64)
        stains = stains / stains.norm(dim=1, keepdim=True)
        self.register_buffer("unmix", torch.linalg.inv(stains).float())
        # A buffer, so that the version enters the hash of the "weights" by which a query is matched to its reference.
        self.register_buffer("version", torch.tensor(int(TEXTURE_VERSION)))

    def forward(self, rgb: Tensor) -> Tensor:
        """Compute features ``(b, 107)`` of RGB patches ``(b, 3, h, w)`` with values in 0 to 1."""
        density = -torch.log10(rgb.clamp(min=1 / 255))
        stains = torch.einsum("bchw,cs->bshw", density, self.unmix)
        colors = torch.cat([rgb, _hue_saturation(rgb), stains], dim=1)
        hematoxylin, eosin = stains[:, :1], stains[:, 1:2]
        # Brightness is included because necrosis, fat and holes are visible in it but not in the stains.
        grains = torch.cat([rgb.mean(1, keepdim=True), hematoxylin, eosin], dim=1)
        parts = [_moments(colors), _quantiles(stains), _mixing(stains), _dark(hematoxylin), _co_occurrence(grains)]
        parts += [_grain(grains, scale) for scale in _SCALES]
        return torch.cat(parts, dim=1)


def _hue_saturation(rgb: Tensor) -> Tensor:
    """Compute opponent colors (hue without its discontinuity at red) and saturation, ``(b, 3, h, w)``."""
    red, green, blue = rgb.unbind(1)
    high, low = rgb.amax(1), rgb.amin(1)
    return torch.stack([(red - green), (red + green) / 2 - blue, (high - low) / high.clamp(min=1e-3)], dim=1)


def _moments(channels: Tensor) -> Tensor:
    """Compute mean, standard deviation and cube root of the third central moment, ``(b, 3 c)``."""
    flat = channels.flatten(2)
    mean = flat.mean(2, keepdim=True)
    centered = flat - mean
    third = centered.pow(3).mean(2)
    return torch.cat([mean[..., 0], centered.pow(2).mean(2).sqrt(), third.sign() * third.abs().pow(1 / 3)], dim=1)


def _quantiles(channels: Tensor) -> Tensor:
    flat = _ascending(channels.flatten(2))
    last = flat.shape[2] - 1
    return torch.cat([flat[..., round(q * last)] for q in _QUANTILES], dim=1)


def _ascending(values: Tensor) -> Tensor:
    """Sort values along the last axis."""
    whole = values.device.type == "cpu" and values.dtype == torch.float32 and not values.requires_grad
    if whole and not torch.compiler.is_compiling():
        # On one thread of a CPU, several times as fast as torch, and the larger part of the encoder's time there.
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _mixing(stains: Tensor) -> Tensor:
    """Compute the correlation of hematoxylin and eosin over the patch, and the fraction of hematoxylin, ``(b, 2)``."""
    first, second = stains[:, 0].flatten(1), stains[:, 1].flatten(1)
    a, b = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    correlation = (a * b).mean(1) / (a.pow(2).mean(1) * b.pow(2).mean(1)).sqrt().clamp(min=1e-6)
    ratio = first.mean(1) / (first.mean(1).abs() + second.mean(1).abs()).clamp(min=1e-3)
    return torch.stack([correlation, ratio], dim=1)


def _dark(hematoxylin: Tensor) -> Tensor:
    """Compute the fraction of pixels as dark as nuclei and the length of their outline at three levels, ``(b, 6)``."""
    # A soft threshold, because a hard one would make the fraction sensitive to small differences between scans.
    masks = torch.cat([torch.sigmoid((hematoxylin - level) / 0.03) for level in _DARK], dim=1)
    share = masks.flatten(2).mean(2)
    return torch.cat([share, _gradient(masks).flatten(2).mean(2)], dim=1)


def _gradient(channels: Tensor) -> Tensor:
    """Compute the magnitude of the gradient by central differences, ``(b, c, h - 2, w - 2)``."""
    dx = (channels[..., 1:-1, 2:] - channels[..., 1:-1, :-2]) / 2
    dy = (channels[..., 2:, 1:-1] - channels[..., :-2, 1:-1]) / 2
    return (dx.square() + dy.square()).sqrt()


def _co_occurrence(channels: Tensor) -> Tensor:
    """Compute the contrast of pixels 1, 3 and 9 px apart, over both axes, relative to the variance, ``(b, 3 c)``."""
    variance = channels.flatten(2).var(2, correction=0).clamp(min=1e-5)
    parts = []
    for shift in (1, 3, 9):
        across = (channels[..., shift:] - channels[..., :-shift]).square().flatten(2).mean(2)
        along = (channels[..., shift:, :] - channels[..., :-shift, :]).square().flatten(2).mean(2)
        parts.append((across + along) / (4 * variance))
    return torch.cat(parts, dim=1)


def _grain(channels: Tensor, scale: int) -> Tensor:
    """Compute statistics of gradient and Laplacian (edges, blobs, rims) at one scale, px, ``(b, 4 c)``."""
    # Block means followed by differences of neighbors: Gaussian filters of 8 px would take ten times as long.
    small = functional.avg_pool2d(channels, scale) if scale > 1 else channels
    neighbors = small[..., :-2, 1:-1] + small[..., 2:, 1:-1] + small[..., 1:-1, :-2] + small[..., 1:-1, 2:]
    laplacian = (neighbors / 4 - small[..., 1:-1, 1:-1]).flatten(2)
    gradient = _gradient(small).flatten(2)
    above, below = laplacian.clamp(min=0).mean(2), (-laplacian).clamp(min=0).mean(2)
    return torch.cat([gradient.mean(2), gradient.std(2, correction=0), above, below], dim=1)
