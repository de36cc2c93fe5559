"""How AnnData and SpatialData are registered with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from scvi.model.base import BaseModelClass
from spatialdata import SpatialData

from st_gchb._arguments import PixelSize, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger, others_quiet
from st_gchb._matrices import in_memory
from st_gchb.model._validation import (
    Registered,
    check_names,
    check_training_table,
    complete_spatialdata,
    complete_table,
    guess_patient_key,
    kept_on_error,
    registered_table,
)
from st_gchb.pp.spots import check_object, sections_of


def transfer_arguments(source_registry: dict, extend_categories: bool, allow_missing_labels: bool) -> None:
    """What scvi-tools takes when a model is loaded with data."""


def check_transfer(options: Mapping[str, Any]) -> None:
    """Refuse a registry that is none, and keywords that say how to use one where there is none.

    Raises
    ------
    InputError
        With what ``source_registry`` is expected to hold.
    """
    registry = options.get("source_registry")
    if registry is None and options:
        raise InputError(
            f"{', '.join(f'{name}=' for name in options)} says how source_registry= is used, and there is none. Pass "
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


class RegistrationMixin(BaseModelClass):
    """The setup calls of :class:`~st_gchb.model.STGCHB`."""

    @classmethod
    @checked(keywords=lambda: transfer_arguments)
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        slice_key: str | None = None,
        patient_key: str | None = None,
        log_normalized: bool = False,
        features_key: str = Keys.FEATURES,
        connectivities_key: str = Keys.CONNECTIVITIES,
        **kwargs: Any,
    ) -> None:
        """Register an AnnData whose slices have both H&E and expression.

        Patch features and spot graph are made with the defaults of :func:`~st_gchb.pp.embed_patches` and
        :func:`~st_gchb.pp.spatial_graph` where they are absent, and never a second time.

        Parameters
        ----------
        adata
            Spots of one or more slices, with ``obsm["spatial"]`` in full-resolution px.
        layer
            Layer with the expression; by default ``X``.
        slice_key
            Column of ``obs`` that tells the slices apart; by default ``"slice"`` where there is such a column.
        patient_key
            Column of ``obs`` with the patient; by default ``"patient"`` where there is such a column.
        log_normalized
            The expression is log1p of counts per 10^4 instead of raw counts.
        features_key
            Key in ``obsm`` of the patch features.
        connectivities_key
            Key in ``obsp`` of the spot graph.
        kwargs
            Passed to :meth:`scvi.data.AnnDataManager.register_fields`, such as ``source_registry``.

        Raises
        ------
        InputError, MissingKeyError, MissingFileError
            Or a subclass; the AnnData is then left as it was.

        Examples
        --------
        >>> import st_gchb
        >>> from st_gchb.model import STGCHB
        >>> ref = st_gchb.datasets.synthetic_tissue(1, n_rows=9, n_cols=9, n_genes=40)
        >>> st_gchb.pp.embed_patches(ref, encoder="texture", cache=False)
        >>> STGCHB.setup_anndata(ref)
        """
        check_object(adata)
        if adata.is_view:
            raise InputError(
                "The AnnData is a view of another one. Call adata = adata.copy() first, and set up the copy."
            )
        slice_key = sections_of(adata, slice_key).key
        patient_key = guess_patient_key(adata, patient_key)
        where = Registered(layer, slice_key, patient_key, log_normalized, features_key, connectivities_key)
        check_training_table(adata, where)
        check_transfer(kwargs)
        with kept_on_error(adata):
            complete_table(adata, where)
            cls._register(adata, where, kwargs)

    @classmethod
    def _register(cls, adata: AnnData, where: Registered, options: dict[str, Any]) -> None:
        """Register a table that was checked and completed."""
        setup_method_args = cls._get_setup_method_args(cls=cls, adata=adata, **vars(where))
        fields = [
            # Counts were checked whole; scvi-tools would draw a few values from numpy's global generator.
            LayerField(REGISTRY_KEYS.X_KEY, where.layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, where.slice_key),
            ObsmField("features", where.features_key),
            ObsmField("spatial", Keys.SPATIAL),
        ]
        known = cls._manager_of(adata)
        if known is not None and known.adata is not adata:
            # The original keeps its mark, and what was set up on it.
            del adata.uns[_MARK]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        with others_quiet(), transferring(options):
            manager.register_fields(adata, **options)
        cls.register_manager(manager)

    @classmethod
    @checked(keywords=lambda: RegistrationMixin.setup_anndata)
    def setup_spatialdata(
        cls,
        sdata: SpatialData,
        *,
        table: str | None = None,
        image: str | Mapping[str, str] | None = None,
        shapes: str | None = None,
        um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
        encoder: Any = "resnet50",
        weights: str | Path | None = "default",
        features_key: str = Keys.FEATURES,
        **setup: Any,
    ) -> None:
        """Register the table of a SpatialData whose spots have both H&E and expression.

        Positions are the centers of the table's shapes in px of the image, through their coordinate transformations;
        positions, features and graph are written to the table.

        Parameters
        ----------
        sdata
            Object with an image, spots and a table that annotates them.
        table, image, shapes
            Names of the elements, where there are several.
        um_per_px
            Size of a pixel of the image's finest scale, µm.
        encoder, weights
            As :func:`~st_gchb.pp.embed_patches` takes them, where the table has no features yet.
        features_key, setup
            As :meth:`setup_anndata` takes them.

        Raises
        ------
        InputError, MissingKeyError, MissingFileError
            Or a subclass.
        """
        options = {key: value for key, value in setup.items() if key not in Registered.__dataclass_fields__}
        check_transfer(options)
        with ExitStack() as tables:
            for one in sdata.tables.values():
                tables.enter_context(kept_on_error(one))
            target, where = complete_spatialdata(
                sdata,
                {"table": table, "image": image, "shapes": shapes},
                {"encoder": encoder, "weights": weights, "um_per_px": um_per_px, "key_added": features_key},
                setup,
            )
            # Its own positions may be in other px than those of the image: it was checked with the image's.
            cls._register(target, where, options)

    @classmethod
    def _set_up(cls, data: AnnData | SpatialData) -> AnnData:
        """The table that was set up; a copy, subset or concatenation of such a table is set up the same way.

        Raises
        ------
        InputError
            Neither it nor what it was made of was set up, or it is not what it was then.
        """
        adata = registered_table(data) if isinstance(data, SpatialData) else data
        check_object(adata)
        call = "setup_anndata(adata, slice_key=...) first, with the column of obs that tells its slices apart."
        call = "setup_spatialdata(sdata) first." if isinstance(data, SpatialData) else call
        manager = cls._manager_of(adata)
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
        if isinstance(data, SpatialData):
            cls._register_again(adata, Registered(**arguments))
        else:
            cls.setup_anndata(adata, **arguments)
        logger.info(
            "The AnnData is a copy or a part of one that was set up (%d spots of %d here): it was set up the same way, "
            "%s.",
            adata.n_obs,
            manager.adata.n_obs,
            ", ".join(f"{name}={value!r}" for name, value in arguments.items()),
        )
        return adata

    @classmethod
    def _register_again(cls, table: AnnData, where: Registered) -> None:
        """Register the table of a copied SpatialData. Its own positions may be in other px than those of the image."""
        check_names(table)
        if where.features_key not in table.obsm or where.connectivities_key not in table.obsp:
            raise InputError(
                f"The SpatialData's table is a copy of one that was set up, without obsm[{where.features_key!r}] or "
                f"obsp[{where.connectivities_key!r}]. Call STGCHB.setup_spatialdata(sdata, ...) again."
            )
        cls._register(table, where, {})

    @classmethod
    def _manager_of(cls, adata: AnnData) -> AnnDataManager | None:
        """What was registered under an object's mark, be it for this object or for the one that it is a copy of."""
        mark = adata.uns.get(_MARK)
        return cls._setup_adata_manager_store.get(mark) if isinstance(mark, str) else None
