"""How a model is written to a folder and read from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from st_gchb.model._saving import load_model, read_registry, save_model

if TYPE_CHECKING:
    from typing import Self


class PersistenceMixin(BaseModelClass):
    """Saving and loading of :class:`~st_gchb.model.STGCHB`, without pickle."""

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
        save_model(self, Path(dir_path), overwrite=overwrite, save_anndata=save_anndata, write=anndata_write_kwargs)

    @classmethod
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
        AnnDataManager.view_setup_method_args(PersistenceMixin.load_registry(dir_path))
