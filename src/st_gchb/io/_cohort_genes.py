"""Genes that all samples of a cohort have, and which samples cost how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from st_gchb._errors import ExpressionError
from st_gchb._logging import logger

_MOSTLY = 0.8
"""Share of names from which on they are taken for those of one organism."""
_CHANCE = 0.05
"""Share of a sample's genes up to which names that two organisms have in common are chance."""
_COSTLY = 0.1
"""Share of the common genes of all others that a single sample may cost before a warning names it."""
_LOOKED_AT = 2000


@dataclass(frozen=True, eq=False)
class GeneList:
    """The genes of one sample.

    Parameters
    ----------
    label
        The sample, for messages.
    names
        Names of the genes, each once.
    """

    label: str
    names: pd.Index

    def told(self) -> str:
        """Describe number and kind of the names."""
        kind = look_of(self.names)
        examples = ", ".join(map(str, self.names[:3]))
        return f"{self.label}: {len(self.names)} genes such as {examples}{f', which look like {kind}' if kind else ''}"


def look_of(names: pd.Index) -> str:
    """Describe the names of genes by their form: symbols or Ensembl ids, of human or mouse; empty for others.

    Examples
    --------
    >>> import pandas as pd
    >>> [look_of(pd.Index(names)) for names in (["GAPDH", "C1orf43"], ["Gapdh", "Xkr4"], ["ENSG01"], ["1", "2"])]
    ['human symbols', 'mouse symbols', 'human Ensembl ids', '']
    """
    some = [str(name) for name in names[:: max(1, len(names) // _LOOKED_AT)]]
    for start, kind in (("ENSMUSG", "mouse Ensembl ids"), ("ENSG", "human Ensembl ids"), ("ENS", "Ensembl ids")):
        if sum(name.startswith(start) for name in some) >= _MOSTLY * len(some):
            return kind
    # The first two letters tell: GAPDH, C1QA and MT-CO1 of human, Gapdh and C1qa of mouse. C1orf43 is of human, too.
    starts = ["".join(letter for letter in name.replace("orf", "ORF") if letter.isalpha())[:2] for name in some]
    starts = [start for start in starts if len(start) == 2]
    if not starts:
        return ""
    if sum(start.isupper() for start in starts) >= _MOSTLY * len(starts):
        return "human symbols"
    if sum(start[0].isupper() and start[1].islower() for start in starts) >= _MOSTLY * len(starts):
        return "mouse symbols"
    return ""


def common_genes(lists: Sequence[GeneList]) -> pd.Index:
    """Find the genes that all samples have, in the order of the first sample.

    Parameters
    ----------
    lists
        Genes of each sample.

    Returns
    -------
    pandas.Index
        Names of the common genes.

    Raises
    ------
    ExpressionError
        There are none, or hardly any between names of different kinds, as of two organisms.
    """
    distinct: dict[tuple[str, ...], GeneList] = {}
    for one in lists:
        distinct.setdefault(tuple(one.names), one)
    several = list(distinct.values())
    common = several[0].names
    for one in several[1:]:
        common = common[common.isin(one.names)]
    fewest = min(len(one.names) for one in several)
    kinds: dict[str, GeneList] = {}
    for one in several:
        kinds.setdefault(look_of(one.names), one)
    mixed = len(kinds.keys() - {""}) > 1
    if len(common) == 0 or (mixed and len(common) <= _CHANCE * fewest):
        raise ExpressionError(_nothing_common(several, kinds, len(common), len(lists), mixed=mixed))
    _warn_of_costly(lists, common)
    return common


def _nothing_common(
    several: list[GeneList], kinds: dict[str, GeneList], n_common: int, n_samples: int, *, mixed: bool
) -> str:
    shown = list(kinds.values()) if mixed else [several[0], *_first_apart(several)]
    count = "no gene is" if n_common == 0 else f"{n_common} genes alone are"
    same = mixed and len({kind.split(" ")[0] for kind in kinds} - {""}) > 1
    remedy = "Train on samples of one organism." if same else "Name their genes alike, by symbols or by Ensembl ids."
    return f"{count} common to the {n_samples} samples. " + "; ".join(one.told() for one in shown) + f". {remedy}"


def _first_apart(several: list[GeneList]) -> list[GeneList]:
    """Find the first sample that has no gene in common with those before it."""
    common = several[0].names
    for one in several[1:]:
        common = common[common.isin(one.names)]
        if len(common) == 0:
            return [one]
    return several[1:2]


def _warn_of_costly(lists: Sequence[GeneList], common: pd.Index) -> None:
    """Warn of samples that alone lack many genes of all others."""
    if len(lists) < 3:
        return
    present = pd.Series(0, index=pd.Index(np.unique(np.concatenate([one.names.to_numpy(object) for one in lists]))))
    for one in lists:
        present.loc[one.names] += 1
    lacked_once = present.index[present == len(lists) - 1]
    for one in lists:
        cost = int((~lacked_once.isin(one.names)).sum())
        if cost > _COSTLY * (len(common) + cost):
            logger.warning(
                "%s: %d genes that all other samples have are dropped since it lacks them, of %d. Without it, %d genes "
                "are common.",
                *(one.label, cost, len(common) + cost, len(common) + cost),
            )
