"""Identification of the columns of an expression table that are genes, and of their genome."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from st_gchb._errors import ExpressionError
from st_gchb._logging import logger

if TYPE_CHECKING:
    import pandas as pd

GENE = "Gene Expression"
"""Feature type of a gene, as Space Ranger names it."""

_COLUMNS = ("feature_types", "feature_type", "Type")
"""Columns of ``var`` with feature types, as scanpy, Space Ranger and DropletUtils name them."""

_OTHERS = re.compile(
    r"antibody|crispr|multiplexing|hashtag|^custom$|^peaks$|control|codeword|blank|spike", re.IGNORECASE
)
"""Feature types that are not genes, for tables in which no feature is typed as a gene."""

_NAMES = {
    "Antibody Capture": "[_-]TotalSeq|^(?:ADT|HTO)[_-]|^Hashtag[_-]?[0-9]",
    "control probe": "^(?:NegControl|NegPrb|NegativeControl|SystemControl|FalseCode|BLANK[_-]|Blank[_-]|antisense_"
    "|UnassignedCodeword|DeprecatedCodeword|Intergenic_Region)",
    "spike-in": "^ERCC-[0-9]{5}$",
    "reads without a gene": "^__(?:no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)$"
    "|^N_(?:unmapped|multimapping|noFeature|ambiguous)$",
}
"""Name patterns of features that are not genes, by feature type: TotalSeq antibodies, control probes and codes of
Xenium, CosMx and MERSCOPE, spike-ins, and the unassigned classes of read counters."""

_ANY_NAME = re.compile("|".join(f"(?:{pattern})" for pattern in _NAMES.values()))

_GENOME = re.compile(r"^(GRCh\d+|GRCm\d+|GRCz\d+|hg\d+|mm\d+|rn\d+)_+", re.IGNORECASE)
"""Genome prefix of a gene's name, as Space Ranger writes it for references of two species."""

_LISTED = 6
"""Largest number of features that are listed by name in the suggested code."""

_NEGLIGIBLE = 0.01
"""Share of the counts in other features than genes above which a table is rejected; below it, a warning is given."""


def feature_kinds(var: pd.DataFrame) -> np.ndarray:
    """Determine the feature type of each column of a table, ``(n_columns,)``.

    It is :data:`GENE`, or another type under the table's name for it. A filled column ``feature_types`` takes
    precedence over the features' names.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb._genes import feature_kinds
    >>> feature_kinds(pd.DataFrame(index=["CD3E", "CD3_TotalSeqB"])).tolist()
    ['Gene Expression', 'Antibody Capture']
    """
    kinds = np.full(len(var), GENE, dtype=object)
    for column, name in enumerate(var.index):
        # Names may be of any type here; they are validated elsewhere.
        if isinstance(name, str) and _ANY_NAME.search(name):
            kinds[column] = [kind for kind, pattern in _NAMES.items() if re.search(pattern, name)][-1]
    typed = next((name for name in _COLUMNS if name in var), None)
    if typed is None:
        return kinds
    said = np.array([value.strip() if isinstance(value, str) else "" for value in var[typed]], dtype=object)
    is_gene = np.array([value.lower() in (GENE.lower(), "gex", "rna") for value in said], dtype=bool)
    if is_gene.any():
        told = said != ""
    else:
        told = np.array([_OTHERS.search(value) is not None for value in said], dtype=bool)
    kinds[told] = said[told]
    kinds[is_gene] = GENE
    return kinds


def genomes(var: pd.DataFrame) -> np.ndarray:
    """Determine the genome of each column, ``(n_columns,)``; empty if neither ``var["genome"]`` nor the name gives it.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb._genes import genomes
    >>> genomes(pd.DataFrame(index=["GRCh38_ACTB", "mm10___Actb"])).tolist()
    ['GRCh38', 'mm10']
    """
    if "genome" in var:
        return np.array([value.strip() if isinstance(value, str) else "" for value in var["genome"]], dtype=object)
    found = [_GENOME.match(name) if isinstance(name, str) else None for name in var.index]
    return np.array(["" if one is None else one.group(1) for one in found], dtype=object)


def without_genome(var: pd.DataFrame) -> list[str]:
    """Drop the genome from the names of genes where they begin with it, as for references of two species.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb._genes import without_genome
    >>> without_genome(pd.DataFrame(index=["GRCh38_ACTB", "mm10___Actb", "GAPDH"]))
    ['ACTB', 'Actb', 'GAPDH']
    """
    starts = [f"{genome}_" if genome else None for genome in genomes(var)]
    return [
        name[len(start) :].lstrip("_") if start is not None and name.startswith(start) else name
        for name, start in zip(map(str, var.index), starts, strict=True)
    ]


def check_genes(var: pd.DataFrame, totals: np.ndarray, name: str) -> None:
    """Reject a table in which features other than genes hold a considerable share of the counts.

    Normalization to counts per 10,000 uses all columns, so antibodies, whose counts are a hundred times larger, would
    dominate it.

    Parameters
    ----------
    var
        ``var`` of the table.
    totals
        Sum of each column, ``(n_columns,)``.
    name
        Name of the table in messages.

    Raises
    ------
    ExpressionError
        Features other than genes hold more than 1 % of the counts; the message has the code that removes them.
    """
    kinds = feature_kinds(var)
    others = kinds != GENE
    if others.any() and (others.all() or _share(totals, others) > _NEGLIGIBLE):
        raise ExpressionError(
            f"{_said_of(var, kinds, totals, name)}. Counts per 10,000 would be of all of them. Take the genes alone: "
            f"{_taken_out(var, kinds)}"
        )


def tell_genes(var: pd.DataFrame, totals: np.ndarray, name: str) -> None:
    """Warn about few counts of features other than genes, and about a second genome; see :func:`check_genes`."""
    kinds = feature_kinds(var)
    others = kinds != GENE
    if others.any():
        said = _said_of(var, kinds, totals, name)
        logger.warning("%s. They are taken for genes. To take them out: %s", said, _taken_out(var, kinds))
    _tell_genomes(var, totals, others, name)


def _share(totals: np.ndarray, some: np.ndarray) -> float:
    """Compute the share of the counts that some columns hold."""
    return float(totals[some].sum()) / max(float(totals.sum()), 1e-300)


def _said_of(var: pd.DataFrame, kinds: np.ndarray, totals: np.ndarray, name: str) -> str:
    """Describe the features other than genes: number of each type, examples, and share of the counts."""
    others = kinds != GENE
    listed = ", ".join(f"{int((kinds == kind).sum())} {kind!r}" for kind in dict.fromkeys(kinds[others]))
    return (
        f"{name} has columns that are no genes ({listed}; first: {list(var.index[others][:3])}), with "
        f"{_share(totals, others):.1%} of all counts, beside {int((~others).sum())} genes"
    )


def _taken_out(var: pd.DataFrame, kinds: np.ndarray) -> str:
    """Return a line of code that selects the genes, or a description of the expected table if it has none."""
    others = kinds != GENE
    column = next((one for one in _COLUMNS if one in var), None)
    if others.all():
        return "expected a table of gene counts; where they are genes after all, name them and their feature type so."
    if column is not None and ((var[column] == GENE).to_numpy() == ~others).all():
        return f'adata = adata[:, adata.var["{column}"] == "{GENE}"].copy()'
    patterns = [_NAMES[kind] for kind in dict.fromkeys(kinds[others]) if kind in _NAMES]
    found = var.index.astype(str).str.contains("|".join(patterns) or "$^", case=True)
    if others.sum() > _LISTED and (found == others).all():
        return f"adata = adata[:, ~adata.var_names.str.contains({'|'.join(patterns)!r})].copy()"
    return f"adata = adata[:, ~adata.var_names.isin({[str(name) for name in var.index[others]]})].copy()"


def _tell_genomes(var: pd.DataFrame, totals: np.ndarray, others: np.ndarray, name: str) -> None:
    """Warn about genes of several genomes, all of which enter the counts per 10,000."""
    found = genomes(var)
    found[others] = ""
    names = [one for one in dict.fromkeys(found) if one]
    if len(names) < 2:
        return
    whole = max(float(totals[found != ""].sum()), 1e-300)
    by_share = sorted(names, key=lambda one: -float(totals[found == one].sum()))
    listed = ", ".join(
        f"{one} {int((found == one).sum())} genes with {float(totals[found == one].sum()) / whole:.2%} of the counts"
        for one in by_share
    )
    first = by_share[0]
    kept = (
        f'adata[:, adata.var["genome"] == "{first}"].copy()'
        if "genome" in var
        else f'adata[:, adata.var_names.str.startswith("{first}_")].copy()'
    )
    logger.warning(
        "%s holds genes of %d genomes (%s): counts per 10,000 are of all of them, and any may be predicted. To take "
        "one alone: adata = %s",
        name,
        len(names),
        listed,
        kept,
    )
