"""Simulate counts of synthetic tissue from known expression."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree

from st_gchb._constants import TARGET_SUM
from st_gchb.datasets.synthetic._anatomy import LAYER_NAMES, Anatomy, Field, memberships, smooth_noise
from st_gchb.datasets.synthetic._cells import ENDOTHELIUM, GLIA, PYRAMID, Cells

PROGRAMS: Final = {
    # program: (prefix of gene names, fraction of all genes)
    "layer": ("", 0.34),
    "density": ("ND", 0.10),
    "neuron": ("NEU", 0.08),
    "vessel": ("VES", 0.04),
    "gradient": ("GR", 0.12),
    "hidden": ("HID", 0.14),
    "housekeeping": ("HK", 0.18),
}
"""Covariate that determines a gene's expression. ``hidden`` genes vary smoothly in space, independent of the image."""


@dataclass(frozen=True)
class Genes:
    """Parameters of the genes, shared by all slices of a tissue; arrays are ``(n_genes,)`` unless stated otherwise."""

    names: list[str]
    program: NDArray[np.str_]
    layer: NDArray[np.int_]
    """Index of the layer of which the gene is a marker, -1 for other genes."""
    base: Field
    """Log baseline expression."""
    effect: Field
    """Log fold change per unit of the gene's covariate."""
    hidden: Field
    """Loadings on the hidden fields, ``(n_fields, n_genes)``."""
    dispersion: Field
    """Inverse dispersion of the negative binomial."""

    def frame(self) -> pd.DataFrame:
        """Convert to the columns of ``var``."""
        marked = [LAYER_NAMES[i] if i >= 0 else "" for i in self.layer]
        columns = {"program": pd.Categorical(self.program), "layer": pd.Categorical(marked)}
        return pd.DataFrame(columns, index=pd.Index(self.names))


def draw_genes(n_genes: int, rng: np.random.Generator, n_fields: int = 3) -> Genes:
    """Assign genes to programs and draw their parameters.

    Parameters
    ----------
    n_genes
        Number of genes; at least 20, so that each program has one.
    rng
        Random number generator.
    n_fields
        Number of hidden fields per slice.

    Returns
    -------
    Genes
        Parameters of the genes.
    """
    parts = np.array([part for _, part in PROGRAMS.values()])
    sizes = np.maximum(1, np.floor(parts * n_genes).astype(int))
    sizes[-1] += n_genes - sizes.sum()
    program = np.repeat(list(PROGRAMS), sizes)
    layer = np.full(n_genes, -1)
    marks = program == "layer"
    layer[marks] = np.sort(np.arange(marks.sum()) % len(LAYER_NAMES))
    prefixes = [LAYER_NAMES[i] if i >= 0 else PROGRAMS[name][0] for i, name in zip(layer, program, strict=True)]
    number = pd.Series(prefixes).groupby(prefixes).cumcount() + 1
    names = [f"{prefix}_{i:02d}" for prefix, i in zip(prefixes, number, strict=True)]
    # Log fold changes: per layer, or per standard deviation of a covariate.
    size = {"layer": 1.9, "density": 0.55, "neuron": 0.55, "vessel": 0.6, "gradient": 0.8}
    strength = np.array([size.get(name, 0.0) for name in program]) * rng.uniform(0.5, 1.5, n_genes)
    sign = np.where(program == "gradient", rng.choice([-1.0, 1.0], n_genes), 1.0)
    hidden = rng.normal(0, 0.6, (n_fields, n_genes)) * (program == "hidden")
    base = rng.normal(0, 0.9, n_genes) + np.where(program == "housekeeping", 0.8, 0.0)
    dispersion = rng.uniform(4, 20, n_genes)
    return Genes(names, program, layer, *(p.astype(np.float32) for p in (base, strength * sign, hidden, dispersion)))


@dataclass(frozen=True)
class Spots:
    """Tissue composition under the spots of a slice; arrays are ``(n_spots,)`` unless stated otherwise."""

    x_um: Field
    y_um: Field
    depth: Field
    layers: Field
    """Fraction of each layer, ``(n_spots, n_layers)``."""
    nuclei: Field
    neurons: Field
    endothelium: Field
    covered: Field
    """Fraction of the spot that is covered by tissue."""

    def pick(self, keep: NDArray[np.bool_]) -> Spots:
        """Select spots by a mask."""
        return Spots(*(getattr(self, field.name)[keep] for field in fields(self)))

    def frame(self) -> pd.DataFrame:
        """Convert to the columns of ``obs``."""
        names = np.array(LAYER_NAMES)[self.layers.argmax(axis=1)] if len(self.x_um) else []
        return pd.DataFrame(
            {
                "layer": pd.Categorical(names, categories=list(LAYER_NAMES)),
                "depth": self.depth,
                "n_nuclei": self.nuclei.astype(int),
            }
        )


def look_under(spots_um: NDArray[np.floating], anatomy: Anatomy, cells: Cells, radius_um: float) -> Spots:
    """Measure depth, layers, cells and tissue coverage around each spot.

    Parameters
    ----------
    spots_um
        Spot centers as x, y, ``(n_spots, 2)``, µm.
    anatomy
        Anatomy of the slice.
    cells
        Cells of the slice.
    radius_um
        Radius of the region around each center, µm.

    Returns
    -------
    Spots
        Composition under the spots.
    """
    x, y = spots_um[:, 0].astype(np.float32), spots_um[:, 1].astype(np.float32)
    disc = np.mgrid[-1:1:7j, -1:1:7j].reshape(2, -1)
    disc = disc[:, np.hypot(*disc) <= 1] * radius_um
    inside_x, inside_y = x[:, None] + disc[0], y[:, None] + disc[1]
    depths = anatomy.at(anatomy.depth, inside_x, inside_y)
    covered = anatomy.at(anatomy.tissue, inside_x, inside_y)
    near = KDTree(spots_um).sparse_distance_matrix(
        KDTree(np.stack([cells.x, cells.y], axis=1)), radius_um, output_type="coo_matrix"
    )
    kind = cells.kind[near.col]

    def count(wanted: NDArray[np.bool_]) -> Field:
        return np.bincount(near.row[wanted], minlength=len(x)).astype(np.float32)

    return Spots(
        x_um=x,
        y_um=y,
        depth=depths.mean(axis=1),
        layers=memberships(depths).mean(axis=2).T,
        nuclei=count(kind >= GLIA),
        neurons=count(kind == PYRAMID),
        endothelium=count(kind == ENDOTHELIUM),
        covered=covered.mean(axis=1),
    )


def draw_counts(
    genes: Genes,
    spots: Spots,
    anatomy: Anatomy,
    depth_of_reads: float,
    rng: np.random.Generator,
) -> tuple[sparse.csr_matrix, Field]:
    """Draw counts from a negative binomial, and compute their expected expression.

    Parameters
    ----------
    genes
        Parameters of the genes.
    spots
        Composition under the spots.
    anatomy
        Anatomy of the slice.
    depth_of_reads
        Median counts per spot.
    rng
        Random number generator.

    Returns
    -------
    tuple
        Counts, CSR float32, and expected log-normalized expression (log1p of expected counts per 10^4), both
        ``(n_spots, n_genes)``.
    """
    seen = _follow(genes, spots)
    unseen = unseen_fields(genes.hidden.shape[0], spots, anatomy, rng)
    rate = np.exp(genes.base + seen + unseen @ genes.hidden)
    share = rate / rate.sum(axis=1, keepdims=True)
    # Library size grows with the number of cells and the tissue coverage; the log-normal factor is technical variation.
    amount = spots.covered * np.sqrt((spots.nuclei + 4) / (np.median(spots.nuclei) + 4))
    library = depth_of_reads * amount * np.exp(rng.normal(0, 0.25, len(amount)))
    mean = library[:, None] * share
    counts = rng.poisson(mean * rng.gamma(genes.dispersion, 1 / genes.dispersion, mean.shape))
    return sparse.csr_matrix(counts.astype(np.float32)), np.log1p(TARGET_SUM * share).astype(np.float32)


def _follow(genes: Genes, spots: Spots) -> NDArray[np.floating]:
    """Compute log fold changes of each gene from the visible composition under the spots, ``(n_spots, n_genes)``."""
    # Covariates are scaled by constants instead of statistics of the slice, so that slices are comparable.
    covariates = {
        "density": np.log2((spots.nuclei + 4) / 16),
        "neuron": np.log2((spots.neurons + 1) / 4),
        "vessel": np.log2(spots.endothelium + 1),
        "gradient": (spots.depth - 0.5) / 0.29,
    }
    log_fold = np.zeros((len(spots.x_um), len(genes.names)))
    marks = genes.layer >= 0
    # Markers are also expressed in the adjacent layers, at a lower level.
    beside = 0.25 * (np.eye(len(LAYER_NAMES), k=1) + np.eye(len(LAYER_NAMES), k=-1)) + np.eye(len(LAYER_NAMES))
    log_fold[:, marks] = (spots.layers @ beside)[:, genes.layer[marks]]
    for name, values in covariates.items():
        log_fold[:, genes.program == name] = values[:, None]
    return log_fold * genes.effect


def unseen_fields(n_fields: int, spots: Spots, anatomy: Anatomy, rng: np.random.Generator) -> NDArray[np.floating]:
    """Draw smooth fields of variance 1 without linear dependence on what the image shows, ``(n_spots, n_fields)``."""
    shape = anatomy.tissue.shape
    scale = max(shape) / 5
    smooth = np.stack(
        [anatomy.at(smooth_noise(rng, shape, scale), spots.x_um, spots.y_um) for _ in range(n_fields)], axis=1
    ).astype(np.float64)
    visible = np.column_stack(
        [np.ones_like(spots.depth), spots.depth, spots.depth**2, spots.layers[:, 1:], spots.nuclei, spots.neurons]
    )
    smooth -= visible @ np.linalg.lstsq(visible, smooth, rcond=None)[0]
    return smooth / np.maximum(smooth.std(axis=0), 1e-6)
