"""Where the answer to a SpatialData goes: a table that annotates its shapes, in memory and in the store."""

from __future__ import annotations

from anndata import AnnData
from spatialdata import SpatialData

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb.io import write_elements
from st_gchb.io._annotation import link_of
from st_gchb.io._store import check_store, is_stored
from st_gchb.pp import write_table
from st_gchb.pp._tables import check_table_name


def check_delivery(query: object, key_added: str, *, write: bool) -> None:
    """See before anything is computed that the result can go where it is wanted.

    Raises
    ------
    InputError, MissingFileError, StoreError
        The name is taken by something that is no earlier result, or there is no store that can be written to.
    """
    if not isinstance(query, SpatialData):
        if write or key_added != Keys.TABLE:
            raise InputError(
                f"write= and key_added= are for SpatialData; the query is a {type(query).__name__}. An AnnData is "
                "returned: pred.write_h5ad(...) stores it."
            )
        return
    check_table_name(query, key_added)
    if write:
        check_store(query, {key_added: "tables"})


def deliver(query: SpatialData, result: AnnData, link: dict[str, str], key_added: str, *, write: bool) -> None:
    """Add the result to the query, and to its store."""
    earlier = _regions(query.tables.get(key_added))
    write_table(query, result, name=key_added, **link)  # type: ignore[arg-type]
    now = _regions(query.tables[key_added])
    if earlier - now:
        logger.warning(
            "The table %r held the prediction of %s and is replaced. To keep both, pass another key_added=.",
            key_added,
            sorted(earlier - now),
        )
    if write:
        # A table whose shapes are not in the store would annotate nothing there.
        write_elements(query, [*(name for name in sorted(now) if not is_stored(query, name)), key_added])


def _regions(table: AnnData | None) -> set[str]:
    link = None if table is None else link_of(table)
    return set() if link is None else set(link.regions)
