"""The model class: registration, training, prediction, saving, in the manner of scvi-tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField
from scvi.model.base import BaseModelClass
from spatialdata import SpatialData

from st_gchb._constants import Keys
from st_gchb._errors import InputError, NotTrainedError
from st_gchb._logging import logger, others_quiet
from st_gchb.model._calibration import Calibration
from st_gchb.model._fitting import Fitted, build_module, fit
from st_gchb.model._predict import Predictor, embed, predict
from st_gchb.model._presets import Preset, settings_for
from st_gchb.model._query import Rules, panel_expression, prepare_query
from st_gchb.model._saving import load_model, new_model_id, read_registry, save_model
from st_gchb.model._setup import (
    Registered,
    check_training_table,
    complete_spatialdata,
    complete_table,
    guess_patient_key,
    guess_slice_key,
    registered_table,
)
from st_gchb.model._training import build_reference, run_training
from st_gchb.pp import write_table
from st_gchb.retrieval import ReferenceBank, Weighting


class STGCHB(BaseModelClass):
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
        Seed of all that is random in fitting and training.
    registry
        For loading without data.
    settings
        Any field of :class:`~st_gchb.model.ModelSettings`, such as ``n_top_genes=1000``. The paper's ablations are
        ``bottleneck=0`` (A), ``n_expression_components=None`` (B), ``dgi_image=0`` (C), ``dgi_expression=0`` (D).

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.model import STGCHB
    >>> ref = st_gchb.datasets.synthetic_tissue(2, n_spots=60, n_genes=40, seed=0)
    >>> st_gchb.pp.embed_patches(ref, encoder="texture", cache=False)
    >>> STGCHB.setup_anndata(ref, slice_key="slice")
    >>> model = STGCHB(ref, n_top_genes=30)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict(ref).layers["st_gchb"].shape
    (120, 30)
    """

    def __init__(
        self,
        adata: AnnData | SpatialData | None = None,
        preset: Preset = "default",
        *,
        panel: list[str] | None = None,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(adata, SpatialData):
            adata = registered_table(adata)
        super().__init__(adata, registry)
        self.preset, self.seed = preset, int(seed)
        self.settings = settings_for(preset, settings)
        self.rules_: Rules | None = None
        self.bank_: ReferenceBank | None = None
        self.calibration_: Calibration | None = None
        self.model_id_: str | None = None
        if adata is not None:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self._fitted: Fitted = fit(adata, self._where, self.settings, panel, self.seed)
                self.module = build_module(self._fitted, self.settings)
            self.rules_ = self._fitted.rules
            self._describe()
        self.init_params_ = self._get_init_params(locals())

    @classmethod
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

        Raises
        ------
        InputError, MissingKeyError, MissingFileError
            Or a subclass; the AnnData is then left as it was.

        Examples
        --------
        >>> import st_gchb
        >>> from st_gchb.model import STGCHB
        >>> ref = st_gchb.datasets.synthetic_tissue(1, n_spots=60, n_genes=40)
        >>> st_gchb.pp.embed_patches(ref, encoder="texture", cache=False)
        >>> STGCHB.setup_anndata(ref)
        """
        slice_key = guess_slice_key(adata, slice_key)
        patient_key = guess_patient_key(adata, patient_key)
        setup_method_args = cls._get_setup_method_args(**{k: v for k, v in locals().items() if k != "__class__"})
        where = Registered(layer, slice_key, patient_key, log_normalized, features_key, connectivities_key)
        check_training_table(adata, where)
        complete_table(adata, where)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=not log_normalized),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, slice_key),
            ObsmField("features", features_key),
            ObsmField("spatial", Keys.SPATIAL),
        ]
        with others_quiet():
            manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_spatialdata(
        cls,
        sdata: SpatialData,
        *,
        table: str | None = None,
        image: str | dict[str, str] | None = None,
        shapes: str | None = None,
        um_per_px: float | Mapping[str, float] | None = None,
        encoder: Any = "resnet50",
        weights: str | Path | None = "default",
        features_key: str = Keys.FEATURES,
        **setup: Any,
    ) -> None:
        """Register the table of a SpatialData whose spots have both H&E and expression.

        Positions are the centres of the table's shapes in px of the image, through their coordinate transformations;
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
        target, resolved_key = complete_spatialdata(
            sdata,
            {"table": table, "image": image, "shapes": shapes},
            {"encoder": encoder, "weights": weights, "um_per_px": um_per_px, "key_added": features_key},
            setup,
        )
        setup.setdefault("slice_key", resolved_key)
        cls.setup_anndata(target, features_key=features_key, **setup)

    @property
    def _where(self) -> Registered:
        arguments = self.adata_manager.registry["setup_args"]
        names = Registered.__dataclass_fields__
        return Registered(**{name: arguments[name] for name in names})

    def _describe(self) -> None:
        rules = cast("Rules", self.rules_)
        self._model_summary_string = (
            f"STGCHB, preset {self.preset!r}: {len(rules.expression.genes)} genes, {rules.n_features} patch features, "
            f"embedding of {self.settings.n_embedding}"
        )

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int | None = None,
        early_stopping: bool = True,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the network, then embed the reference and calibrate confidence on it.

        Parameters
        ----------
        max_epochs
            Epochs of the joint loss at most; by default the preset's.
        accelerator, devices
            As in Lightning; ``"auto"`` takes a GPU where there is one.
        batch_size
            Spots contrasted in a step; by default the preset's.
        early_stopping
            Stop when the loss on the validation split of the training slices no longer falls, and keep the best
            epoch's weights. Has no effect where ``validation_share`` is 0.
        plan_kwargs
            Passed to the training plan, such as ``{"lr": 1e-4}``.
        trainer_kwargs
            Passed to :class:`scvi.train.Trainer`, such as ``enable_progress_bar=False``.
        """
        if self._adata is None:
            raise InputError("This model was loaded without data, so it cannot be trained. Load it with adata=.")
        run_training(
            self,
            max_epochs or self.settings.max_epochs,
            batch_size or self.settings.batch_size,
            early_stopping=early_stopping,
            accelerator=accelerator,
            devices=devices,
            plan_kwargs=plan_kwargs or {},
            trainer_kwargs=trainer_kwargs,
        )
        self.bank_, self.calibration_ = build_reference(self)
        self.model_id_ = new_model_id(self)
        logger.info("Reference bank: %d spots of %d slices.", len(self.bank_), len(set(self.bank_.slices)))

    def _predictor_of(self, bank: ReferenceBank, calibration: Calibration | None = None) -> Predictor:
        return Predictor(self.module, cast("Rules", self.rules_), bank, calibration, self.settings)

    def _trained_bank(self, what: str) -> ReferenceBank:
        if not self.is_trained_ or self.bank_ is None:
            raise NotTrainedError(
                f"{what} needs a trained model. Call model.train() first, or STGCHB.load a trained one."
            )
        return self.bank_

    def predict(
        self,
        query: AnnData | SpatialData,
        *,
        layer: str | None = None,
        k: int | None = None,
        weighting: Weighting | None = None,
        slice_key: str | None = None,
        return_neighbors: bool = False,
        image: Any = None,
        um_per_px: float | Mapping[str, float] | None = None,
        weights: str | Path | None = None,
        table: str | None = None,
        shapes: str | None = None,
    ) -> AnnData:
        """Predict expression for spots that have H&E alone.

        Parameters
        ----------
        query
            AnnData with positions and an image (no genes are needed), or SpatialData with image and spots. It is not
            changed, but for a SpatialData the result is added as ``sdata.tables["st_gchb"]``.
        layer
            Table of the reference to predict: a layer, an ``obsm`` entry, ``"all_genes"``; by default the panel.
        k
            Reference spots that are retrieved for a query spot; by default the preset's, at most all.
        weighting
            ``"softmax"`` or ``"mean"``; by default the preset's.
        slice_key
            Column of the query's ``obs`` that tells its slices apart.
        return_neighbors
            Keep the retrieved reference spots in ``obsm["st_gchb_neighbors"]`` (rows of the reference),
            ``obsm["st_gchb_neighbor_weights"]``, and the reference's names, slices and positions in
            ``uns["st_gchb"]["reference"]``.
        image, um_per_px, table, shapes
            Where the query's image and spots are, as :func:`~st_gchb.pp.embed_patches` takes them.
        weights
            Path of the encoder's weights file, where it has moved since training.

        Returns
        -------
        AnnData, one row per query spot and one column per gene of the panel (or of the table): ``layers["st_gchb"]``,
        ``X`` (measured where the query has it, else predicted), ``obsm["X_st_gchb"]``, ``obs["st_gchb_confidence"]``,
        ``obs["st_gchb_outlier"]``, ``var["st_gchb_expected_pcc"]`` and provenance in ``uns["st_gchb"]``.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        QueryError, InputError, MissingKeyError, MissingFileError
            Or a subclass, where the query cannot be used.
        """
        bank = self._trained_bank("predict")
        prepared = prepare_query(
            query,
            cast("Rules", self.rules_),
            slice_key=slice_key,
            image=image,
            um_per_px=um_per_px,
            weights=weights,
            table=table,
            shapes=shapes,
        )
        result = predict(self._predictor_of(bank, self.calibration_), prepared, layer, k, weighting, return_neighbors)
        result.uns[Keys.UNS] |= {"model_id": self.model_id_, "preset": self.preset, "seed": self.seed}
        if isinstance(query, SpatialData):
            write_table(query, result, name=Keys.TABLE, table=table, shapes=shapes)
        return result

    def get_latent_representation(
        self, adata: AnnData | SpatialData | None = None, modality: str = "expression", **where: Any
    ) -> np.ndarray:
        """Joint embedding of spots, L2-normalised.

        Parameters
        ----------
        adata
            Spots to embed; by default the training slices.
        modality
            ``"expression"`` embeds measured expression, ``"image"`` embeds patches.
        where
            As :meth:`predict` takes them: ``image``, ``um_per_px``, ``slice_key``, ``weights``, ``table``, ``shapes``.

        Returns
        -------
        ``(n_spots, n_embedding)``.
        """
        if modality not in ("expression", "image"):
            raise InputError(f"modality={modality!r} is unknown; expected 'expression' or 'image'.")
        bank = self._trained_bank("get_latent_representation")
        if adata is None:
            return np.array(bank.keys if modality == "expression" else bank.image_keys)
        rules = cast("Rules", self.rules_)
        query = prepare_query(adata, rules, **where)
        if modality == "image":
            return embed(self.module, query.features, query.adjacency, "image")
        values = panel_expression(query.source, rules.expression)
        return embed(self.module, values, query.adjacency, "expression")

    def save(  # type: ignore[override]
        self, dir_path: str | Path, overwrite: bool = False, save_anndata: bool = False, **anndata_write_kwargs: Any
    ) -> None:
        """Save the model: network, rules, reference bank and calibration, as safetensors, Parquet and JSON.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Replace a folder that is there.
        save_anndata
            Also write the training AnnData as ``adata.h5ad``; prediction does not need it.
        anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`.
        """
        self._trained_bank("save")
        save_model(self, Path(dir_path), overwrite=overwrite, save_anndata=save_anndata, write=anndata_write_kwargs)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> STGCHB:
        """Load a saved model; no training data are needed to predict. Nothing of the files is run as code.

        Parameters
        ----------
        dir_path
            Folder written by :meth:`save`.
        adata
            The training AnnData, to go on training.
        accelerator, device
            Where to put the network.

        Raises
        ------
        MissingFileError
            If there is no such folder, or a file of it is gone.
        ModelFileError
            If a file is damaged, or was written by another kind of model.
        """
        return load_model(cls, Path(dir_path), adata, accelerator, device)

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """The registry saved with a model."""
        return read_registry(Path(dir_path))

    @staticmethod
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of the setup call of a saved model."""
        AnnDataManager.view_setup_method_args(STGCHB.load_registry(dir_path))
