"""Select the genes of a count table, optionally of one genome, and report features and values that are unsuitable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from st_gchb._counts import counts_elsewhere, why_no_counts
from st_gchb._errors import ExpressionError, MissingKeyError
from st_gchb._genes import GENE, feature_kinds, genomes
from st_gchb._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData


def tell_values(adata: AnnData, where: str) -> None:
    """Warn if ``X`` holds no counts, and name the layer or ``raw`` that does."""
    said = "" if adata.X is None else why_no_counts(adata.X, "it")
    if not said:
        return
    layers, raw = counts_elsewhere(adata, None)
    advice = (
        f"Counts lie in {' and '.join(f'layers[{name!r}]' for name in layers)}: layer= of setup_anndata takes them. "
    )
    advice = advice if layers else ""
    if raw:
        genes = "" if adata.raw.n_vars == adata.n_vars else f" ({adata.raw.n_vars} genes)"
        advice += f"Counts lie in raw.X{genes}: adata = adata.raw.to_adata() takes them. "
    if not advice:
        advice = "The object holds no counts: read a file that does, or set up log1p values with log_normalized=True. "
    logger.warning("%s: X holds no counts: %s %sA query needs none.", where, said, advice)


def others_told(var: pd.DataFrame) -> str:
    """Describe the features that are not genes, by type with number and examples; empty if all are genes."""
    kinds = feature_kinds(var)
    parts = []
    for kind in pd.unique(kinds[kinds != GENE]):
        names = [str(name) for name in var.index[kinds == kind][:3]]
        parts.append(f"{(kinds == kind).sum()} of {str(kind)!r} (such as {', '.join(names)})")
    return ", ".join(parts)


def genomes_of(var: pd.DataFrame) -> dict[str, int]:
    """Count the genes of each genome, in decreasing order; empty if the genomes are not known."""
    names = pd.Series(genomes(var)[feature_kinds(var) == GENE])
    return {str(name): int(n) for name, n in names[names != ""].value_counts().items()}


def genomes_told(adata: AnnData) -> str:
    """Describe the number of genes and the share of counts of each genome; empty for fewer than two genomes."""
    found = genomes_of(adata.var)
    if len(found) < 2:
        return ""
    names = genomes(adata.var)
    sums = None
    if adata.X is not None:
        totals = np.asarray(adata.X.sum(axis=0), dtype=np.float64).ravel()
        sums = {name: float(totals[names == name].sum()) for name in found}
    whole = sum(sums.values()) if sums is not None else 0.0
    parts = []
    for name, n in found.items():
        share = f", {sums[name] / whole:.2%} of the counts" if sums is not None and whole > 0 else ""
        parts.append(f"{name!r} ({n} genes{share}, such as {', '.join(map(str, adata.var_names[names == name][:2]))})")
    return ", ".join(parts)


def keep_genes(adata: AnnData, where: str, genome: str | None) -> AnnData:
    """Keep the features that are genes, optionally of one genome, and report the dropped ones.

    Parameters
    ----------
    adata
        Table of counts, with ``var["feature_types"]`` and ``var["genome"]`` if known.
    where
        Name of the table in messages.
    genome
        Genome to keep; None keeps all, with a warning if there are several.

    Returns
    -------
    AnnData
        The object itself if nothing is dropped, else a copy.

    Raises
    ------
    ExpressionError
        No feature is a gene.
    MissingKeyError
        The table has no genes of that genome.
    """
    keep = feature_kinds(adata.var) == GENE
    others = others_told(adata.var)
    if others and not keep.any():
        raise ExpressionError(f"{where}: no feature is of {GENE!r}; found {others}. Expected genes.")
    if others:
        logger.warning("%s: %d features are no genes and are left out: %s.", where, (~keep).sum(), others)
    if genome is not None:
        known = genomes_of(adata.var)
        if genome not in known:
            raise MissingKeyError(
                f"{where}: has no genes of genome={genome!r}; "
                + (f"expected one of {sorted(known)}." if known else "its genes name no genome. Leave genome= out.")
            )
        of_it = genomes(adata.var) == genome
        if (keep & ~of_it).any():
            logger.info("%s: %d genes of other genomes than %r are left out.", where, (keep & ~of_it).sum(), genome)
        keep = keep & of_it
    kept = adata if keep.all() else adata[:, keep].copy()
    several = genomes_told(kept)
    if several:
        logger.warning(
            "%s: genes of several genomes are in one table: %s. All are kept, and all count in the depth of a spot; "
            "genome= of read_section keeps those of one.",
            where,
            several,
        )
    return kept
