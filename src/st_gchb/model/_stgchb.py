"""The model class: registration, training, prediction, saving, in the manner of scvi-tools."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from uuid import uuid4

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass
from spatialdata import SpatialData

from st_gchb._arguments import Epochs, Megabytes, Pair, PixelSize, Seed, check_keywords, checked
from st_gchb._compat import parse_device_args
from st_gchb._constants import Keys
from st_gchb._errors import InputError, NotTrainedError, QueryError
from st_gchb._logging import logger, track_steps
from st_gchb._options import DEFAULT_ENCODERS, Preset, Search
from st_gchb._settings import settings as package_settings, without_bars
from st_gchb._signals import ended_by_signal, held_back
from st_gchb.io import check_object, sections_of
from st_gchb.model._confidence import Calibration
from st_gchb.model._crossfit import cross_fit, embed_reference
from st_gchb.model._features import context_of
from st_gchb.model._fit import N_STEPS, Fitted, build_module, default_block_size, fit, training_data
from st_gchb.model._inference import embed, seen_context
from st_gchb.model._loading import network_of, read_model, read_registry
from st_gchb.model._model_card import CardFacts, model_card
from st_gchb.model._module import STGCHBModule
from st_gchb.model._predictor import QUERY, ExpressionPredictor
from st_gchb.model._projections import LinearProjection
from st_gchb.model._query import Preprocessor, check_training_data, panel_expression, prepare_query
from st_gchb.model._read_out import TrainedParts
from st_gchb.model._registration import check_transfer, register, table_set_up, transfer_arguments
from st_gchb.model._saving import SavedModel, new_model_id, write_model
from st_gchb.model._settings import ModelSettings, check_k, settings_for
from st_gchb.model._sharing import pull, push, write_card
from st_gchb.model._training import (
    Devices,
    TrainingOptions,
    as_before_on_error,
    checkpoint_folder,
    earlier_identity,
    plan_arguments,
    run_training,
    trainers,
    training_identity,
)
from st_gchb.model._validation import (
    Registered,
    check_rule,
    check_training_table,
    complete_spatialdata,
    complete_table,
    guess_patient_key,
    kept_on_error,
)
from st_gchb.pp.encoders import choose_device
from st_gchb.pp.expression import check_panel
from st_gchb.pp.patches import MEMORY_MB, FeatureOptions, FeatureRows, encoders_of_set
from st_gchb.pp.spots import resolve_spots
from st_gchb.retrieval import ReferenceBank, index_for
from st_gchb.train import CheckpointFolder, NoCheckpoints

QueryData = Annotated[AnnData | SpatialData, QUERY]


class STGCHB(ExpressionPredictor, BaseModelClass):
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
        Any field of :class:`~st_gchb.model.ModelSettings`, such as ``n_top_genes=1000``; by default the preset's. The
        signature shows the values of ``"default"``. The paper's ablations are
        ``bottleneck=0`` (A), ``n_expression_components=None`` (B), ``dgi_image=0`` (C), ``dgi_expression=0`` (D).

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.model import STGCHB
    >>> ref = st_gchb.datasets.synthetic_tissue(2, n_rows=9, n_cols=9, n_genes=40)
    >>> st_gchb.pp.embed_patches(ref, encoder="texture", patch_um=150, n_views=1, cache=False)
    >>> STGCHB.setup_anndata(ref, slice_key="slice")
    >>> model = STGCHB(ref, n_top_genes=30)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict(ref).layers["st_gchb"].shape == (ref.n_obs, 30)
    True
    """

    _module: STGCHBModule | None = None

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
        >>> st_gchb.pp.embed_patches(ref, encoder="texture", patch_um=150, n_views=1, cache=False)
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
        check_rule(adata, where)
        check_transfer(kwargs)
        with kept_on_error(adata):
            complete_table(adata, where)
            register(cls, adata, where, kwargs)

    @classmethod
    # The class has no name yet, by which the method above could be found.
    @checked(keywords=lambda setup=setup_anndata: setup.__func__)  # type: ignore[misc]
    def setup_spatialdata(
        cls,
        sdata: SpatialData,
        *,
        table: str | None = None,
        image: str | Mapping[str, str] | None = None,
        shapes: str | None = None,
        um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
        encoder: Any = DEFAULT_ENCODERS,
        weights: str | Path | None | Sequence[str | Path | None] = "default",
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
            register(cls, target, where, options)

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
            adata = table_set_up(type(self), adata)
        super().__init__(adata, registry)
        self.preset, self.seed = preset, package_settings.seed if seed is None else seed
        self.settings = settings_for(preset, settings)
        self._panel = None if panel is None else list(panel)
        self._network_device = torch.device("cpu")
        self._fitted: Fitted | None = None
        self.rules_: Preprocessor | None = None
        self.bank_: ReferenceBank | None = None
        self.calibration_: Calibration | None = None
        self.model_id_: str | None = None
        if adata is not None:
            check_k(self.settings, preset, adata.n_obs)
            if self._panel is not None:
                check_panel(self._panel, adata.var_names)
        self._describe()
        # scvi-tools looks for each parameter of the signature, which names the settings.
        self.init_params_ = self._get_init_params(settings | locals())

    @property
    def module(self) -> STGCHBModule:
        """Network, which is built when training begins, since the training slices determine its sizes.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        """
        if self._module is None:
            raise NotTrainedError(
                "The model has no module yet: the training slices determine the sizes of the network, which is built "
                "when training begins. Call model.train() first, or STGCHB.load a trained model."
            )
        return self._module

    @module.setter
    def module(self, module: STGCHBModule) -> None:
        self._module = module

    @property
    def device(self) -> torch.device:
        """Device of the network; before training, the one that :meth:`to_device` chose, or the CPU."""
        return self._network_device if self._module is None else self._module.device

    @checked
    def to_device(self, device: str | int | torch.device) -> None:
        """Move the network to a device.

        Before training, where it is built; training then moves it to the device of its ``accelerator``.

        Parameters
        ----------
        device
            Name of a device such as ``"cpu"`` or ``"cuda:1"``, number of a GPU, or a device of torch.

        Raises
        ------
        InputError
            There is no such device, or it is not available.
        """
        chosen = choose_device(device)
        if self._module is None:
            self._network_device = chosen
        else:
            self._module.to(chosen)

    @property
    def _where(self) -> Registered:
        arguments = self.adata_manager.registry["setup_args"]
        names = Registered.__dataclass_fields__
        return Registered(**{name: arguments[name] for name in names})

    @checked(keywords=trainers)
    def train(
        self,
        max_epochs: Epochs | None = None,
        *,
        accelerator: str = "auto",
        devices: Devices = "auto",
        batch_size: Pair | None = None,
        early_stopping: bool = True,
        calibrate: bool = True,
        block_size: Pair | None = None,
        enable_checkpointing: bool = True,
        checkpoint_dir: str | Path | None = None,
        resume: bool = False,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the network, then embed the reference and calibrate confidence on it.

        Where it ends early, by an error, Ctrl-C or a signal that ends the process, the model is as before the call, and
        a checkpoint of the last epoch is kept, from which the same call goes on with ``resume=True``.

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
        calibrate
            Also train without each reference slice in turn (at most five times), to learn how confident a prediction
            can be. Without it, predictions carry no confidence, outlier flag and expected correlation.
        block_size
            Spots beyond which a slice is cut into spatial blocks, where a step would else hold a whole slice; by
            default 20,000, and with ``finetune`` as many as have feature maps of 1 GiB.
        enable_checkpointing
            Keep checkpoints; without them, a training that was interrupted begins anew.
        checkpoint_dir
            Folder of the checkpoints; by default one in the cache folder, named by data and settings. They are
            removed when training has ended.
        resume
            Go on from the checkpoint that is there, with the same result as if nothing had come between.
        plan_kwargs
            Passed to the training plan, such as ``{"lr": 1e-4}``.
        trainer_kwargs
            Passed to :class:`scvi.train.Trainer`, such as ``enable_progress_bar=False``.

        Raises
        ------
        CheckpointError
            If the checkpoint to go on from is damaged, or of other data or settings.
        ArgumentError
            If an argument is unknown, or is not what it is expected to be.
        DeviceError
            If several devices cannot be used this way, or the memory is too small for the smallest step.
        TerminatedError
            If the process is told to end by SIGTERM or SIGHUP, and the caller handles neither. Ctrl-C is a
            KeyboardInterrupt.
        """
        if self._adata is None:
            raise InputError("This model was loaded without data, so it cannot be trained. Load it with adata=.")
        if resume and not enable_checkpointing:
            raise InputError("resume=True goes on from a checkpoint, and enable_checkpointing=False keeps none.")
        plan = check_keywords(plan_kwargs or {}, plan_arguments(), "STGCHB.train(plan_kwargs=...)")
        advice = "The model is as before the call; resume=True goes on from its last checkpoint, where one was kept."
        bars = nullcontext() if trainer_kwargs.get("enable_progress_bar", True) else without_bars()
        with ended_by_signal("Training", advice), as_before_on_error(self), bars:
            fitted = self._fit()
            options = TrainingOptions(
                max_epochs=max_epochs or self.settings.max_epochs,
                batch_size=batch_size or self.settings.batch_size,
                block_size=block_size or default_block_size(fitted),
                early_stopping=early_stopping,
                accelerator=accelerator,
                devices=devices,
                plan_kwargs=plan,
                trainer_kwargs=trainer_kwargs,
            )
            checkpoints: CheckpointFolder | NoCheckpoints = NoCheckpoints()
            if enable_checkpointing:
                identity = training_identity(self.adata, fitted, self.settings, self.seed, vars(options))
                earlier = [earlier_identity(identity, self.adata, fitted)] if resume else []
                folder = checkpoint_folder(checkpoint_dir, identity, *earlier)
                checkpoints = CheckpointFolder(folder, identity, resume=resume, earlier=earlier)
            with checkpoints.kept_on_error():
                self._train(fitted, options, checkpoints, calibrate=calibrate)

    def _train(
        self,
        fitted: Fitted,
        options: TrainingOptions,
        checkpoints: CheckpointFolder | NoCheckpoints,
        *,
        calibrate: bool,
    ) -> None:
        """Train the network on what was fitted, embed the reference, and calibrate confidence."""
        where = self._where
        run = partial(run_training, settings=self.settings, seed=self.seed, checkpoints=checkpoints)
        run(self, training_data(fitted, self.adata), "network", options=options)
        self.bank_ = embed_reference(self.module.network, fitted, self.adata, where)
        self.model_id_ = new_model_id(self.module, fitted.rules.expression.genes, self.bank_)
        self.calibration_ = None
        index_for(self.bank_, min(self.settings.k, len(self.bank_)))
        logger.info("Reference bank: %d spots of %d slices.", len(self.bank_), len(set(self.bank_.slices)))
        if calibrate:
            logger.info("Calibration: training without each reference slice in turn.")
            quiet = replace(options, trainer_kwargs=options.trainer_kwargs | {"enable_progress_bar": False})
            once_more = partial(run, options=quiet)
            self.calibration_ = cross_fit(self.adata, where, self.settings, fitted, self.seed, once_more)

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
        weights: str | Path | None | Sequence[str | Path | None] = None,
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
        numpy.ndarray
            Embedding, ``(n_spots, n_embedding)``.
        """
        bank = self._trained_bank("get_latent_representation")
        if adata is None:
            return np.array(bank.keys if modality == "expression" else bank.image_keys)
        rules = cast("Preprocessor", self.rules_)
        check_object(adata, spatialdata=True, error=QueryError)
        query = prepare_query(
            resolve_spots(adata, table, image, shapes),
            rules,
            slice_key=slice_key,
            image_key=image_key,
            um_per_px=um_per_px,
            encoding=FeatureOptions(build=partial(encoders_of_set, weights=weights), memory_mb=memory_mb),
        )
        if modality == "image":
            features, where_spots = FeatureRows(query.features), (query.adjacency, query.slices)
            context = context_of(rules.context, features, *where_spots)
            seen = seen_context(self.module.network, rules.context, context, features, where_spots)
            return embed(self.module.network, seen, query.adjacency, "image")
        values = panel_expression(query.source, rules.expression)
        return embed(self.module.network, values, query.adjacency, "expression")

    @checked(keywords=lambda: AnnData.write_h5ad)
    def save(
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
        saved = self._content("save")
        adata = self.adata if save_anndata else None
        with held_back():
            write_model(saved, Path(dir_path), overwrite=overwrite, adata=adata, write=anndata_write_kwargs)

    @classmethod
    @checked
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Load a saved model; no training data are needed to predict. Nothing of the files is run as code.

        Parameters
        ----------
        dir_path
            Folder written by :meth:`save`.
        adata
            The training AnnData with its patch features, to go on training.
        accelerator, device
            Where to put the network.

        Raises
        ------
        MissingFileError
            If there is no such folder, or a file of it is gone.
        ModelFileError
            If a file is damaged, or was written by another kind of model.
        InputError, MissingKeyError
            If ``adata`` is not what the model was trained on; it is then left as it was.
        """
        saved = read_model(Path(dir_path))
        arguments: dict[str, Any] = dict(preset=saved.preset, seed=saved.seed, **saved.settings)
        if adata is None:
            model = cls(registry=saved.registry, **arguments)
        else:
            setup = {name: saved.registry["setup_args"][name] for name in Registered.__dataclass_fields__}
            check_training_data(adata, saved.rules, saved.bank, setup["slice_key"])
            cls.setup_anndata(adata, **setup)
            model = cls(adata, panel=list(saved.rules.expression.genes), **arguments)
        model._restore(saved, Path(dir_path))
        _, _, chosen = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        model.to_device(chosen)
        model.module.eval()
        return model

    @classmethod
    @checked
    def from_pretrained(
        cls,
        repo_id_or_folder: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Load a model from the Hugging Face hub, or from a folder. Nothing of the files is run as code.

        Parameters
        ----------
        repo_id_or_folder
            Repository, as ``"owner/name"``, or a folder written by :meth:`save`. A folder of that name goes first.
        revision
            Branch, tag or commit of the repository; by default the main branch. A commit always gives the same model.
        token
            Token of the hub; by default the one with which you are logged in, or ``HF_TOKEN``. False: none.
        cache_dir
            Folder in which files are kept; by default the hub's own cache.
        local_files_only
            Take what is in the cache, without asking the hub.
        adata, accelerator, device
            As :meth:`load` takes them.

        Returns
        -------
        STGCHB
            The model, ready to predict.

        Raises
        ------
        HubAccessError
            The repository asks for a login or for the acceptance of terms; the message says how to go about it.
        HubNotFoundError, MissingFileError
            There is no such repository, revision or folder.
        HubError
            The hub cannot be reached and the cache has no copy, or the connection broke off. Nothing is loaded, and a
            second call fetches what is missing.
        ModelFileError
            The repository holds no model of this class, or a file of it is damaged.
        InputError, MissingKeyError
            As in :meth:`load`.

        Examples
        --------
        >>> from st_gchb.model import STGCHB
        >>> model = STGCHB.from_pretrained("my-lab/her2-breast", revision="v1")  # doctest: +SKIP
        """
        folder = pull(
            repo_id_or_folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls.load(folder, adata=adata, accelerator=accelerator, device=device)

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        *,
        license_info: str = "",
        training_data: str = "",
        training_data_url: str | None = None,
        tissues: Sequence[str] = (),
        description: str = "",
        references: str = "",
        card: str | Path | None = None,
        private: bool = True,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Share the model on the Hugging Face hub: the folder of :meth:`save` and a model card, in one commit.

        The model contains the measured expression of its reference spots: share it only where these may be shared.

        Parameters
        ----------
        repo_id
            Repository, as ``"owner/name"``; it is made if there is none.
        license_info, training_data, training_data_url, tissues, description, references
            As :meth:`write_model_card` takes them.
        card
            Path of a card, instead of these: one that :meth:`write_model_card` wrote and you edited.
        private
            Whether a repository that is made is seen by its owner alone. One that is there stays as it is.
        revision
            Branch to write to, which is made if there is none; by default the main branch.
        create_pr
            Open a pull request instead, for a repository of others.
        commit_message
            Message of the commit.
        token
            Token of the hub, with the right to write; by default the one with which you are logged in.

        Returns
        -------
        str
            Address of the repository's page, or of the pull request.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        ModelCardError
            License or training data are not named, or the card lacks them.
        ArgumentError
            ``repo_id`` has not the form ``owner/name``.
        HubAccessError
            Nobody is logged in, or this account may not write there.
        HubError
            The hub refused or could not be reached. The repository holds what it held before: a commit is whole or
            not there.

        Examples
        --------
        >>> model.push_to_hub(  # doctest: +SKIP
        ...     "my-lab/her2-breast",
        ...     license_info="cc-by-4.0",
        ...     training_data="HER2+ breast tumors, legacy Spatial Transcriptomics, doi:10.5281/zenodo.3957257.",
        ... )
        'https://huggingface.co/my-lab/her2-breast'
        """
        content = self._content("push_to_hub")
        facts = CardFacts(license_info, training_data, training_data_url, tissues, description, references)
        return push(
            content,
            model_card(content, facts, repo_id) if card is None else Path(card),
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=commit_message or f"STGCHB model {self.model_id_}",
            token=token,
        )

    @checked
    def write_model_card(
        self,
        path: str | Path,
        *,
        license_info: str,
        training_data: str,
        training_data_url: str | None = None,
        tissues: Sequence[str] = (),
        description: str = "",
        references: str = "",
        repo_id: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the card that goes with the model: data, genes, encoder, expected correlations, limits, license.

        Parameters
        ----------
        path
            File to write, or a folder that is there, for ``README.md`` in it.
        license_info
            License under which the model is shared, by its identifier on the hub, such as ``"cc-by-4.0"``.
        training_data
            What the model was trained on: tissue, donors, platform, where the data are published.
        training_data_url
            Address of the data.
        tissues
            Tissues, by which the model is found.
        description, references
            Further text.
        repo_id
            Repository, for the line of code that loads the model.
        overwrite
            Replace a file that is there.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        ModelCardError
            License or training data are empty.
        InputError, StoreError
            The file is there already, or cannot be written.

        Examples
        --------
        >>> model.write_model_card(  # doctest: +SKIP
        ...     "README.md", license_info="cc-by-4.0", training_data="Eight Visium slides of breast tumors."
        ... )
        """
        content = self._content("write_model_card")
        facts = CardFacts(license_info, training_data, training_data_url, tissues, description, references)
        return write_card(model_card(content, facts, repo_id), Path(path), overwrite=overwrite)

    @staticmethod
    @checked
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """Read the registry saved with a model."""
        return read_registry(Path(dir_path))

    @staticmethod
    @checked
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of the setup call of a saved model."""
        # scvi-tools uses it without importing it.
        importlib.import_module("rich.pretty")
        AnnDataManager.view_setup_method_args(STGCHB.load_registry(dir_path))

    def _fit(self) -> Fitted:
        """Fit panel, normalization, principal components and input maps on the training slices, once.

        A model that was loaded keeps the numbers with which its network was trained: fitted anew, components may differ
        in the last digit or in sign.
        """
        if self._fitted is not None:
            return self._fitted
        logger.info("Fitting panel, principal components and heads to %d spots.", self.adata.n_obs)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            with track_steps("Fitting", N_STEPS) as begin:
                fitted = fit(self.adata, self._where, self.settings, self._panel, self.seed, begin=begin)
            if self.rules_ is None:
                self.module = build_module(fitted, self.settings).to(self._network_device)
        if self.rules_ is None:
            self.rules_ = fitted.rules
            self._describe()
        else:
            fixed = self.module.network.image.fixed
            image_map = LinearProjection(fixed.offset.cpu().numpy(), fixed.matrix.cpu().numpy())
            fitted = replace(fitted, rules=self.rules_, image_map=image_map)
        self._fitted = fitted
        return fitted

    def _restore(self, saved: SavedModel, folder: Path) -> None:
        """Take over everything that was read from a folder."""
        self.rules_, self.bank_, self.calibration_ = saved.rules, saved.bank, saved.calibration
        self.history_, self.model_id_, self.is_trained_ = saved.history, saved.model_id, True
        self.module = STGCHBModule(network_of(saved, self.settings, folder), self.settings.loss)
        self._describe()

    def _content(self, what: str) -> SavedModel:
        """Gather what a model folder holds; ``what`` needs it."""
        bank = self._trained_bank(what)
        return SavedModel(
            preset=self.preset,
            seed=self.seed,
            settings=asdict(self.settings),
            registry=self.registry_,
            state=self.module.state_dict(),
            rules=cast("Preprocessor", self.rules_),
            bank=bank,
            calibration=self.calibration_,
            history=self.history_ or {},
            model_id=self.model_id_ or "",
        )

    def _trained_parts(self, search: Search) -> TrainedParts:
        bank, rules = self._trained_bank("predict"), cast("Preprocessor", self.rules_)
        origin = {"model_id": self.model_id_, "preset": self.preset, "seed": self.seed}
        return TrainedParts(self.module.network, rules, bank, self.calibration_, self.settings, search, origin)

    def _trained_bank(self, what: str) -> ReferenceBank:
        if not self.is_trained_ or self.bank_ is None:
            raise NotTrainedError(
                f"{what} needs a trained model. Call model.train() first, or STGCHB.load a trained one."
            )
        return self.bank_

    def _describe(self) -> None:
        """Fill in the line that ``repr`` shows."""
        known = ""
        if self.rules_ is not None:
            known = f"{len(self.rules_.expression.genes)} genes, {self.rules_.n_features} patch features, "
        self._model_summary_string = f"STGCHB, preset {self.preset!r}: {known}embedding of {self.settings.n_embedding}"

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy or a pickle everything but the trainer of a training that is over.

        The trainer holds callbacks, loggers and the training data once more; no prediction and no further training
        asks for it.

        Raises
        ------
        InputError
            The training data lie in a file that is open.
        """
        if self._adata is not None and self._adata.isbacked:
            raise InputError(
                f"The model's AnnData is backed by the open file {self._adata.filename}, which cannot be copied or "
                "pickled. Set up adata.to_memory() instead; or write the trained model by model.save(folder) and read "
                "it by STGCHB.load(folder)."
            )
        return {name: value for name, value in vars(self).items() if name != "trainer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # scvi-tools knows models by their id, and tables in the running session alone.
        self.id = str(uuid4())
        manager = self._adata_manager
        if manager is not None:
            self._register_manager_for_instance(manager)
            self._setup_adata_manager_store.setdefault(manager.adata_uuid, manager)
