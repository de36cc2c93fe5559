"""The model class: registration, training, prediction, saving, in the manner of scvi-tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from anndata import AnnData
from spatialdata import SpatialData

from st_gchb._arguments import Count, Limits, Megabytes, PixelSize, Seed, checked
from st_gchb._constants import Keys
from st_gchb._errors import NotTrainedError, QueryError
from st_gchb._settings import settings as package_settings
from st_gchb.model._confidence import Calibration
from st_gchb.model._features import context_of
from st_gchb.model._fit import Fitted, build_module, fit
from st_gchb.model._inference import Predictor, check_delivery, deliver, embed, predict, seen_context
from st_gchb.model._learning import TrainingMixin
from st_gchb.model._persistence import PersistenceMixin
from st_gchb.model._query import Preprocessor, panel_expression, prepare_query
from st_gchb.model._registration import RegistrationMixin
from st_gchb.model._settings import ModelSettings, Preset, check_k, settings_for
from st_gchb.pp.patches import MEMORY_MB, FeatureRows
from st_gchb.retrieval import ReferenceBank, Search, Weighting, check_search

QueryData = Annotated[
    AnnData | SpatialData,
    Limits("an AnnData or SpatialData (st_gchb.io.read_section reads one from files)", error=QueryError),
]


class STGCHB(RegistrationMixin, TrainingMixin, PersistenceMixin):
    """Joint embedding of image patches and expression, from which expression is predicted for slides with H&E alone.

    Graph contrastive learning in each modality, HSIC bottleneck, cross-modal alignment, retrieval from the reference.

    Parameters
    ----------
    adata
        AnnData registered by :meth:`setup_anndata`, or SpatialData registered by :meth:`setup_spatialdata`. All its
        slices are training slices.
    preset
        ``"default"``; ``"paper"``, the published equations and settings to the letter; ``"bleep"``, no graph, no deep
        graph infomax, no bottleneck.
    panel
        Genes to predict; by default the ``n_top_genes`` most variable ones.
    seed
        Seed of all that is random in fitting and training; by default ``st_gchb.settings.seed``.
    registry
        For loading without data.
    settings
        Any field of :class:`~st_gchb.model.ModelSettings`, such as ``n_top_genes=1000``. The paper's ablations are
        ``bottleneck=0`` (A), ``n_expression_components=None`` (B), ``dgi_image=0`` (C), ``dgi_expression=0`` (D).

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.model import STGCHB
    >>> ref = st_gchb.datasets.synthetic_tissue(2, n_rows=9, n_cols=9, n_genes=40)
    >>> st_gchb.pp.embed_patches(ref, encoder="texture", cache=False)
    >>> STGCHB.setup_anndata(ref, slice_key="slice")
    >>> model = STGCHB(ref, n_top_genes=30)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict(ref).layers["st_gchb"].shape == (ref.n_obs, 30)
    True
    """

    @checked(keywords=lambda: ModelSettings)
    def __init__(
        self,
        adata: AnnData | SpatialData | None = None,
        preset: Preset = "default",
        *,
        panel: Sequence[str] | None = None,
        seed: Seed | None = None,
        registry: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if adata is not None:
            adata = self._set_up(adata)
        super().__init__(adata, registry)
        self.preset, self.seed = preset, package_settings.seed if seed is None else seed
        self.settings = settings_for(preset, settings)
        self.rules_: Preprocessor | None = None
        self.bank_: ReferenceBank | None = None
        self.calibration_: Calibration | None = None
        self.model_id_: str | None = None
        if adata is not None:
            genes = None if panel is None else list(panel)
            check_k(self.settings, preset, adata.n_obs)
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self._fitted: Fitted = fit(adata, self._where, self.settings, genes, self.seed)
                self.module = build_module(self._fitted, self.settings)
            self.rules_ = self._fitted.rules
            self._describe()
        self.init_params_ = self._get_init_params(locals())

    def _trained_bank(self, what: str) -> ReferenceBank:
        if not self.is_trained_ or self.bank_ is None:
            raise NotTrainedError(
                f"{what} needs a trained model. Call model.train() first, or STGCHB.load a trained one."
            )
        return self.bank_

    @checked(apart=("layer",))
    def predict(
        self,
        query: QueryData,
        *,
        layer: str | None = None,
        k: Count | None = None,
        weighting: Weighting | None = None,
        search: Search = "auto",
        slice_key: str | None = None,
        return_neighbors: bool = False,
        image: Any = None,
        image_key: str | None = None,
        um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
        weights: str | Path | None = None,
        table: str | None = None,
        shapes: str | None = None,
        memory_mb: Megabytes = MEMORY_MB,
        key_added: str = Keys.TABLE,
        write: bool = False,
    ) -> AnnData:
        """Predict expression for spots that have H&E alone.

        Parameters
        ----------
        query
            AnnData with positions and an image (no genes are needed), or SpatialData with image and spots. It is not
            changed, but for a SpatialData the result is added as ``sdata.tables[key_added]``.
        layer
            Table of the reference to predict: a layer, an ``obsm`` entry, ``"all_genes"``; by default the panel.
        k
            Reference spots that are retrieved for a query spot; by default the preset's, at most all.
        weighting
            ``"softmax"`` or ``"mean"``; by default the preset's.
        search
            ``"exact"``, or ``"index"``: by an index with a stated recall (extra ``faiss``), made once and saved with
            the model; ``"auto"``: by an index from a million reference spots on, where FAISS is installed.
        slice_key
            Column of the query's ``obs`` that tells its slices apart.
        return_neighbors
            Keep the retrieved reference spots in ``obsm["st_gchb_neighbors"]`` (rows of the reference),
            ``obsm["st_gchb_neighbor_weights"]``, and the reference's names, slices and positions in
            ``uns["st_gchb"]["reference"]``.
        image, image_key, um_per_px, table, shapes
            Where the query's image and spots are, as :func:`~st_gchb.pp.embed_patches` takes them.
        weights
            Path of the encoder's weights file, where it has moved since training.
        memory_mb
            Bound of the decoded pixels that are held, MB; see :func:`~st_gchb.pp.read_patches`.
        key_added
            For a SpatialData: name of the table. An earlier result of that name is replaced.
        write
            For a SpatialData that is backed by a store: also write the table into it, as
            :func:`st_gchb.io.write_elements` does, with the shapes that it annotates where the store lacks them.

        Returns
        -------
        AnnData, one row per query spot and one column per gene of the panel (or of the table): ``layers["st_gchb"]``,
        ``X`` (measured where the query has it, else predicted), ``obsm["X_st_gchb"]``, ``obs["st_gchb_confidence"]``,
        ``obs["st_gchb_outlier"]``, ``var["st_gchb_expected_pcc"]`` and provenance in ``uns["st_gchb"]``. Spots whose
        pixels cannot be decoded have no row: their names are in ``uns["st_gchb"]["excluded"]``, and a warning says
        where they are.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        QueryError, InputError, MissingKeyError, MissingFileError
            Or a subclass, where the query cannot be used.
        StoreError
            The table could not be written into the store. It is in ``sdata`` then, unless the store was found to be
            read-only before anything was computed.
        """
        bank = self._trained_bank("predict")
        # Patches take minutes: what is wrong with the question is told before.
        check_delivery(query, key_added, write=write)
        bank.table(layer)
        check_search(len(bank), 1 if k is None else k, weighting or self.settings.weighting, search)
        prepared = prepare_query(
            query,
            cast("Preprocessor", self.rules_),
            slice_key=slice_key,
            image=image,
            image_key=image_key,
            um_per_px=um_per_px,
            weights=weights,
            table=table,
            shapes=shapes,
            memory_mb=memory_mb,
            on_damage="nan",
        )
        predictor = Predictor(
            self.module, cast("Preprocessor", self.rules_), bank, self.calibration_, self.settings, search
        )
        result = predict(predictor, prepared, layer, k, weighting, return_neighbors)
        result.uns[Keys.UNS] |= {"model_id": self.model_id_, "preset": self.preset, "seed": self.seed}
        if len(prepared.excluded):
            result.uns[Keys.UNS]["excluded"] = prepared.excluded
        if isinstance(query, SpatialData):
            deliver(query, result, prepared.link, key_added, write=write)
        return result

    @checked
    def get_latent_representation(
        self,
        adata: QueryData | None = None,
        modality: Literal["expression", "image"] = "expression",
        *,
        slice_key: str | None = None,
        image: Any = None,
        image_key: str | None = None,
        um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
        weights: str | Path | None = None,
        table: str | None = None,
        shapes: str | None = None,
        memory_mb: Megabytes = MEMORY_MB,
    ) -> np.ndarray:
        """Joint embedding of spots, L2-normalized.

        Parameters
        ----------
        adata
            Spots to embed; by default the training slices.
        modality
            ``"expression"`` embeds measured expression, ``"image"`` embeds patches.
        slice_key, image, image_key, um_per_px, weights, table, shapes, memory_mb
            As :meth:`predict` takes them.

        Returns
        -------
        ``(n_spots, n_embedding)``.
        """
        bank = self._trained_bank("get_latent_representation")
        if adata is None:
            return np.array(bank.keys if modality == "expression" else bank.image_keys)
        rules = cast("Preprocessor", self.rules_)
        query = prepare_query(
            adata,
            rules,
            slice_key=slice_key,
            image=image,
            image_key=image_key,
            um_per_px=um_per_px,
            weights=weights,
            table=table,
            shapes=shapes,
            memory_mb=memory_mb,
        )
        if modality == "image":
            features, where_spots = FeatureRows(query.features), (query.adjacency, query.slices)
            context = context_of(rules.context, features, *where_spots)
            seen = seen_context(self.module, rules.context, context, features, where_spots)
            return embed(self.module, seen, query.adjacency, "image")
        values = panel_expression(query.source, rules.expression)
        return embed(self.module, values, query.adjacency, "expression")
