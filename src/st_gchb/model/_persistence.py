"""How a model is written to a folder and read from it."""

from __future__ import annotations

import importlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from st_gchb._arguments import checked
from st_gchb._compat import parse_device_args
from st_gchb._errors import InputError, ModelFileError, NotTrainedError, STGCHBError
from st_gchb._signals import held_back
from st_gchb.model._confidence import Calibration
from st_gchb.model._features import LinearProjection
from st_gchb.model._fit import Fitted, network_settings
from st_gchb.model._loading import read_model, read_registry
from st_gchb.model._module import STGCHBModule
from st_gchb.model._query import Preprocessor, check_training_data
from st_gchb.model._saving import SavedModel, write_model
from st_gchb.model._settings import ModelSettings
from st_gchb.model._validation import Registered
from st_gchb.pp.patches import stage_without_weights
from st_gchb.retrieval import ReferenceBank


class PersistenceMixin(BaseModelClass):
    """Saving and loading of :class:`~st_gchb.model.STGCHB`, without pickle."""

    preset: str
    seed: int
    settings: ModelSettings
    rules_: Preprocessor | None
    bank_: ReferenceBank | None
    calibration_: Calibration | None
    model_id_: str | None
    _fitted: Fitted

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle of a model holds: all but the trainer of a training that is over.

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
        self._trained_bank("save")
        if self.rules_ is None or self.bank_ is None:
            raise NotTrainedError("save needs a trained model. Call model.train() first.")
        saved = SavedModel(
            preset=self.preset,
            seed=self.seed,
            settings=asdict(self.settings),
            registry=self.registry_,
            state=self.module.state_dict(),
            rules=self.rules_,
            bank=self.bank_,
            calibration=self.calibration_,
            history=self.history_ or {},
            model_id=self.model_id_ or "",
        )
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
        try:
            model._restore(saved)
        except STGCHBError:
            raise
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            # So torch calls weights that are absent or of another shape.
            raise ModelFileError(
                f"{dir_path}: the network's weights do not fit its settings ({error}). Copy the model again."
            ) from error
        _, _, chosen = parse_device_args(accelerator, device, return_device="torch", validate_single_device=True)
        model.to_device(chosen)
        model.module.eval()
        return model

    def _restore(self, saved: SavedModel) -> None:
        """Take over everything that was read from a folder."""
        self.rules_, self.bank_, self.calibration_ = saved.rules, saved.bank, saved.calibration
        self.history_, self.model_id_, self.is_trained_ = saved.history, saved.model_id, True
        image_map = LinearProjection(
            *(saved.state[f"network.image.fixed.{name}"].numpy() for name in ("offset", "matrix"))
        )
        rule = saved.rules.features
        with torch.random.fork_rng():
            stage = None if rule is None or not rule.feature_maps else stage_without_weights(rule)
            sizes = network_settings(saved.rules, image_map, self.settings)
            self.module = STGCHBModule(sizes, self.settings.loss, stage)
        self.module.load_state_dict(saved.state)
        if self._adata is not None:
            # Fitted anew, components may differ in the last digit or in sign from those that the network knows.
            self._fitted = replace(self._fitted, rules=saved.rules, image_map=image_map)
        self._describe()

    @staticmethod
    @checked
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """The registry saved with a model."""
        return read_registry(Path(dir_path))

    @staticmethod
    @checked
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of the setup call of a saved model."""
        # scvi-tools uses it without importing it.
        importlib.import_module("rich.pretty")
        AnnDataManager.view_setup_method_args(PersistenceMixin.load_registry(dir_path))

    def _describe(self) -> None:
        """Fill in the line that ``repr`` shows."""
        if self.rules_ is not None:
            self._model_summary_string = (
                f"STGCHB, preset {self.preset!r}: {len(self.rules_.expression.genes)} genes, "
                f"{self.rules_.n_features} patch features, embedding of {self.settings.n_embedding}"
            )
