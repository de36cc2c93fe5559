"""Register AnnData and SpatialData with the model: what scvi-tools stores of a set-up call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from scvi.model.base import BaseModelClass

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger, others_quiet
from st_gchb._matrices import in_memory
from st_gchb.io import check_object, is_spatialdata
from st_gchb.model._validation import (
    Registered,
    check_names,
    registered_table,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData


def transfer_arguments(
    *, source_registry: dict | None = None, extend_categories: bool = False, allow_missing_labels: bool = False
) -> None:
    """Stand for the keywords that scvi-tools takes when a model is loaded with data."""


def check_transfer(options: Mapping[str, Any]) -> None:
    """Refuse a registry that is none, and keywords that say how to use one where there is none.

    Raises
    ------
    InputError
        With what ``source_registry`` is expected to hold.
    """
    registry = options.get("source_registry")
    others = [name for name in options if name != "source_registry"]
    if registry is None and others:
        raise InputError(
            f"{', '.join(f'{name}=' for name in others)} says how source_registry= is used, and there is none. Pass "
            "source_registry=STGCHB.load_registry(folder), or leave it out."
        )
    if registry is not None and not isinstance(registry.get("field_registries"), Mapping):
        raise InputError(
            f"source_registry holds {sorted(map(str, registry))[:6]}; expected the registry of a model, with "
            "'field_registries'. Pass source_registry=STGCHB.load_registry(folder)."
        )


@contextmanager
def transferring(options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what scvi-tools raises of another registry into an error that names it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if not options:
            raise
        raise InputError(
            f"source_registry does not fit the AnnData ({type(error).__name__}: {error}). Pass that of a model that "
            "was set up the same way, or leave it out."
        ) from error


_MARK = "_scvi_uuid"
"""Key in ``uns`` by which scvi-tools knows an object that was set up; copies carry it too."""


def register(cls: type[BaseModelClass], adata: AnnData, where: Registered, options: dict[str, Any]) -> None:
    """Register a table that was checked and completed."""
    setup_method_args = cls._get_setup_method_args(cls=cls, adata=adata, **vars(where))
    fields = [
        # Counts were checked whole; scvi-tools would draw a few values from numpy's global generator.
        LayerField(REGISTRY_KEYS.X_KEY, where.layer, is_count_data=False),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, where.slice_key),
        ObsmField("features", where.features_key),
        ObsmField("spatial", Keys.SPATIAL),
    ]
    known = _manager_of(cls, adata)
    if known is not None and known.adata is not adata:
        # The original keeps its mark, and what was set up on it.
        del adata.uns[_MARK]
    manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
    with others_quiet(), transferring(options):
        manager.register_fields(adata, **options)
    cls.register_manager(manager)


def table_set_up(cls: type[BaseModelClass], data: AnnData | SpatialData) -> AnnData:
    """Find the table that was set up; set up a copy, subset or concatenation of one the same way.

    Raises
    ------
    InputError
        Neither it nor what it was made of was set up, or it is not what it was then.
    """
    adata = registered_table(data) if is_spatialdata(data) else data
    check_object(adata)
    call = "setup_anndata(adata, slice_key=...) first, with the column of obs that tells its slices apart."
    call = "setup_spatialdata(sdata) first." if is_spatialdata(data) else call
    manager = _manager_of(cls, adata)
    if manager is None:
        found = "was set up in another session, or for another class" if _MARK in adata.uns else "was not set up"
        raise InputError(
            f"The {type(data).__name__} {found}: what was set up is kept in the running Python session alone. Call "
            f"STGCHB.{call}"
        )
    if manager.adata is adata:
        return adata
    arguments = dict(manager.registry["setup_args"])
    adata = in_memory(adata) if adata.is_view else adata
    if is_spatialdata(data):
        _register_again(cls, adata, Registered(**arguments))
    else:
        cls.setup_anndata(adata, **arguments)
    logger.info(
        "The AnnData is a copy or a part of one that was set up (%d spots of %d here): it was set up the same way, %s.",
        adata.n_obs,
        manager.adata.n_obs,
        ", ".join(f"{name}={value!r}" for name, value in arguments.items()),
    )
    return adata


def _register_again(cls: type[BaseModelClass], table: AnnData, where: Registered) -> None:
    """Register the table of a copied SpatialData. Its own positions may be in other px than those of the image."""
    check_names(table)
    if where.features_key not in table.obsm or where.connectivities_key not in table.obsp:
        raise InputError(
            f"The SpatialData's table is a copy of one that was set up, without obsm[{where.features_key!r}] or "
            f"obsp[{where.connectivities_key!r}]. Call STGCHB.setup_spatialdata(sdata, ...) again."
        )
    register(cls, table, where, {})


def _manager_of(cls: type[BaseModelClass], adata: AnnData) -> AnnDataManager | None:
    """Find the manager registered under an object's mark, for this object or for the one that it is a copy of."""
    mark = adata.uns.get(_MARK)
    return cls._setup_adata_manager_store.get(mark) if isinstance(mark, str) else None
