"""Whether a reference is searched exactly or by its index."""

from __future__ import annotations

from st_gchb._arguments import Count, checked
from st_gchb._logging import logger
from st_gchb.retrieval._bank import ReferenceBank
from st_gchb.retrieval._faiss import SearchIndex, has_faiss
from st_gchb.retrieval._search import Search

INDEX_FROM = 1_000_000
"""Reference spots from which on the index is used without being asked for."""
LEAST_RECALL = 0.95
"""An index that finds a smaller share of the nearest spots is not used without being asked for."""


@checked
def index_for(bank: ReferenceBank, k: Count, search: Search = "auto") -> SearchIndex | None:
    """The index of a bank's keys that a search is to use; made at the first call, and then kept by the bank.

    Parameters
    ----------
    bank
        The reference.
    k
        Neighbors that are looked for: an index that was tuned for fewer is tuned anew.
    search
        ``"exact"``: none. ``"index"``: one. ``"auto"``: one from a million reference spots on, where FAISS is installed
        and the index finds 95 % of what an exact search finds.

    Raises
    ------
    MissingExtraError
        If an index is asked for and FAISS is not installed.
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
