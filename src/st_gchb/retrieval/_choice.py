"""The choice between exact search and the approximate index of a reference."""

from __future__ import annotations

from st_gchb._arguments import Count, checked
from st_gchb._logging import logger
from st_gchb._options import Search
from st_gchb.retrieval._bank import ReferenceBank
from st_gchb.retrieval._faiss import SearchIndex, has_faiss

INDEX_FROM = 1_000_000
"""Number of reference spots from which ``search="auto"`` uses the index."""
LEAST_RECALL = 0.95
"""Recall below which ``search="auto"`` does not use an index."""


@checked
def index_for(bank: ReferenceBank, k: Count, search: Search = "auto") -> SearchIndex | None:
    """Return the search index to use for a reference bank, or ``None`` for exact search.

    The index is built at the first call that needs it and is stored in the bank.

    Parameters
    ----------
    bank
        The reference.
    k
        Number of neighbors to search for. An index that was tuned for fewer is tuned again.
    search
        ``"exact"`` uses no index, ``"index"`` always uses one. ``"auto"`` uses one from a million reference spots on
        if FAISS is installed and the index finds 95 % of the neighbors that an exact search finds.

    Returns
    -------
    SearchIndex or None
        The index, tuned for at least ``k`` neighbors, or ``None`` for exact search.

    Raises
    ------
    MissingExtraError
        An index is requested and FAISS is not installed.
    """
    if search == "exact" or (search == "auto" and len(bank) < INDEX_FROM):
        return None
    if search == "auto" and not has_faiss():
        logger.info(
            "All %d reference spots are compared with each query spot; with FAISS (pip install 'st-gchb[faiss]') an "
            "index would be used.",
            len(bank),
        )
        return None
    if bank.index is None:
        logger.info("A search index of %d reference spots is made, which takes about a minute a million.", len(bank))
        bank.index = SearchIndex.build(bank.keys, bank.image_keys, k)
    elif bank.index.k < k:
        bank.index = bank.index.tuned(bank.image_keys, k)
    if search == "auto" and bank.index.recall < LEAST_RECALL:
        logger.info("The index finds %.0f %% of the nearest spots: the search is exact.", 100 * bank.index.recall)
        return None
    return bank.index
