"""Counts drawn from known smooth rates on a grid of spots, and what they would be without noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse


@dataclass(frozen=True)
class Tissue:
    """Simulated counts of one slice; all arrays are (n_spots, n_genes) unless said otherwise."""

    shares: np.ndarray
    """Expected share of each gene in the counts of a spot."""
    counts: np.ndarray
    totals: np.ndarray
    """Counts of each spot over all genes, (n_spots,)."""
    graph: sparse.csr_matrix

    @property
    def measured(self) -> np.ndarray:
        return np.log1p(self.counts / self.totals[:, None] * 1e4)

    @property
    def expected(self) -> np.ndarray:
        """Expectation of the measured values, by the sum over all counts that a gene may have."""
        mean, scale = (self.shares * self.totals[:, None]).T, 1e4 / self.totals
        most = mean.max(1)
        last = most + 10 * np.sqrt(most) + 20
        order = np.argsort(-last)  # few genes have large counts
        mean = mean[order]
        probability, result = np.exp(-mean), np.zeros_like(mean)
        for n in range(1, int(last.max())):
            genes = slice(int((last > n).sum()))
            probability[genes] *= mean[genes] / n
            result[genes] += probability[genes] * np.log1p(scale * n)
        return result[np.argsort(order)].T

    def groups(self, n_top: int = 50) -> dict[str, np.ndarray]:
        genes = pd.DataFrame({"HVG": self.measured.var(0), "HEG": self.measured.mean(0)})
        top = {name: genes[name].nlargest(n_top).index.to_numpy() for name in genes}
        return {"AG": np.arange(len(genes)), **top}


def tissue(
    *, side: int = 30, n_genes: int = 300, depth_spread: float = 0.6, flat: float = 0.2, seed: int = 0
) -> Tissue:
    """Draw a tissue whose spots have totals of 6,000 in the middle, log-normal with ``depth_spread``."""
    rng = np.random.default_rng(seed)
    x, y = (axis.ravel() / side for axis in np.meshgrid(np.arange(side), np.arange(side)))
    waves, phases = rng.uniform(1, 40, (3, n_genes)), rng.uniform(0, 7, n_genes)
    fields = np.sin(x[:, None] * waves[0] + y[:, None] * waves[1] + phases)
    amplitude = rng.gamma(2, 0.35, n_genes) * (rng.random(n_genes) > flat)
    level = np.exp(rng.normal(-9.8, 1.6, n_genes))
    shares = level * np.exp(amplitude * fields)
    shares *= 0.6 / max(0.6, shares.sum(1).max())
    totals = np.round(6000 * np.exp(depth_spread * rng.standard_normal(side**2))).astype(int)
    counts = np.empty_like(shares, dtype=int)
    for spot, total in enumerate(totals):
        counts[spot] = rng.multinomial(total, [*shares[spot], 1 - shares[spot].sum()])[:-1]
    line = sparse.diags_array(np.ones((2, side - 1)), offsets=[-1, 1])
    graph = sparse.kronsum(line, line).tocsr()
    return Tissue(shares, counts, totals, graph)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of each column; 0 where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return (a * b).sum(0) / np.where(norm > 1e-12, norm, np.inf)
