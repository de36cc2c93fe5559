"""Prediction by a trained model: the call that users make, and a predictor that answers it without training code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
from anndata import AnnData

from st_gchb._arguments import Count, Limits, Megabytes, PixelSize, checked
from st_gchb._constants import Keys
from st_gchb._errors import QueryError
from st_gchb._options import Search, Weighting
from st_gchb.io import check_object, is_spatialdata
from st_gchb.model._inference import check_delivery, deliver, predict
from st_gchb.model._loading import network_of, read_model
from st_gchb.model._query import prepare_query
from st_gchb.model._read_out import TrainedParts
from st_gchb.model._settings import ModelSettings
from st_gchb.pp.encoders import choose_device
from st_gchb.pp.patches import MEMORY_MB, FeatureOptions, encoders_of_set
from st_gchb.pp.spots import resolve_spots
from st_gchb.retrieval import check_search

if TYPE_CHECKING:
    from spatialdata import SpatialData

QUERY = Limits("an AnnData or SpatialData (st_gchb.io.read_section reads one from files)", error=QueryError)


class ExpressionPredictor(ABC):
    """The call that predicts expression: the same of a model that was trained here, and of one that was loaded."""

    @abstractmethod
    def _trained_parts(self, search: Search) -> TrainedParts:
        """Return what a prediction needs.

        Raises
        ------
        NotTrainedError
            The model is not trained.
        """

    @checked(apart=("layer",))
    def predict(
        self,
        query: Annotated[AnnData | SpatialData, QUERY],
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
        weights: str | Path | None | Sequence[str | Path | None] = None,
        table: str | None = None,
        shapes: str | None = None,
        memory_mb: Megabytes = MEMORY_MB,
        key_added: str = Keys.TABLE,
        write: bool = False,
        out: str | Path | None = None,
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
            Path of the encoder's weights file, where it has moved since training. Of several encoders with weights, a
            sequence of one for each, None where it has not moved.
        memory_mb
            Bound of the decoded pixels that are held, MB; see :func:`~st_gchb.pp.read_patches`.
        key_added
            For a SpatialData: name of the table. An earlier result of that name is replaced.
        write
            For a SpatialData that is backed by a store: also write the table into it, as
            :func:`st_gchb.io.write_elements` does, with the shapes that it annotates where the store lacks them.
        out
            For an AnnData: file (``.h5ad``) to which the result is written as it is made, so that memory does not grow
            with spots times genes. ``X`` and ``layers`` of what is returned are arrays of dask that read from it, and
            ``to_memory()`` loads them. The file is there as a whole or not at all.

        Returns
        -------
        AnnData
            One row per query spot and one column per gene of the panel (or of the table): ``layers["st_gchb"]``,
            ``X`` (measured where the query has it, else predicted), ``obsm["X_st_gchb"]``,
            ``obs["st_gchb_confidence"]``, ``obs["st_gchb_outlier"]``, ``var["st_gchb_expected_pcc"]`` (and
            ``var["st_gchb_retrieval_pcc"]``, that of retrieval without the heads) and provenance
            in ``uns["st_gchb"]``. Spots whose pixels cannot be decoded have no row: their names are in
            ``uns["st_gchb"]["excluded"]``, and a warning says where they are.

        Raises
        ------
        NotTrainedError
            Before :meth:`train`.
        QueryError, InputError, MissingKeyError, MissingFileError
            Or a subclass, where the query cannot be used.
        StoreError
            The table could not be written into the store. It is in ``sdata`` then, unless the store was found to be
            read-only before anything was computed. Or ``out`` cannot be written.
        """
        parts = self._trained_parts(search)
        # Patches take minutes: what is wrong with the question is told before.
        check_delivery(query, key_added, out, write=write)
        parts.bank.table(layer)
        check_search(len(parts.bank), 1 if k is None else k, weighting or parts.settings.weighting, search)
        check_object(query, spatialdata=True, error=QueryError)
        prepared = prepare_query(
            resolve_spots(query, table, image, shapes, thumbnails=is_spatialdata(query)),
            parts.rules,
            slice_key=slice_key,
            image_key=image_key,
            um_per_px=um_per_px,
            encoding=FeatureOptions(
                build=partial(encoders_of_set, weights=weights), memory_mb=memory_mb, on_damage="nan"
            ),
        )
        result = predict(parts, prepared, layer, k, weighting, return_neighbors, None if out is None else Path(out))
        if is_spatialdata(query):
            deliver(query, result, prepared.link, key_added, write=write)
        return result


class Predictor(ExpressionPredictor):
    """A saved model that predicts and does nothing else; :func:`st_gchb.load_predictor` reads one.

    It predicts what :class:`~st_gchb.model.STGCHB` predicts, bit for bit, and starts in about half of the time, since
    neither scvi-tools nor Lightning, scanpy or squidpy are imported. squidpy is imported by a model whose spot graph is
    one of nearest neighbors, a triangulation or a grid, which squidpy builds.

    Parameters
    ----------
    parts
        Network, rules, reference bank and calibration of the model.

    See Also
    --------
    st_gchb.load_predictor : Read a predictor from a folder, with an example.
    """

    def __init__(self, parts: TrainedParts) -> None:
        self.parts = parts

    @property
    def model_id(self) -> str:
        """Identity of the trained model."""
        return str(self.parts.origin["model_id"])

    @property
    def genes(self) -> pd.Index:
        """Genes of the panel, in the order in which they are predicted."""
        return self.parts.rules.expression.genes

    def _trained_parts(self, search: Search) -> TrainedParts:
        return replace(self.parts, search=search)

    def __repr__(self) -> str:
        bank = self.parts.bank
        spots = f"{len(bank)} reference spots of {len(set(bank.slices))} slices"
        return f"Predictor, model {self.model_id}: {len(self.genes)} genes, {spots}"


@checked
def load_predictor(folder: str | Path, *, device: str | int | torch.device = "auto") -> Predictor:
    """Read a saved model for prediction alone: quick to start, small in memory. Nothing of the files is run as code.

    Parameters
    ----------
    folder
        Folder written by :meth:`STGCHB.save <st_gchb.model.STGCHB.save>`.
    device
        Device of the network: ``"cpu"``, ``"cuda:1"``, the number of a GPU, or ``"auto"`` for a GPU where there is one.

    Returns
    -------
    Predictor
        The model, ready to predict.

    Raises
    ------
    MissingFileError
        If there is no such folder, or a file of it is gone.
    ModelFileError
        If a file is damaged, or was written by another kind of model.
    InputError
        If there is no such device.

    Examples
    --------
    >>> import tempfile, st_gchb
    >>> from st_gchb.model import STGCHB
    >>> ref = st_gchb.datasets.synthetic_tissue(2, n_rows=9, n_cols=9, n_genes=40)
    >>> st_gchb.pp.embed_patches(ref, encoder="texture", patch_um=150, n_views=1, cache=False)
    >>> STGCHB.setup_anndata(ref, slice_key="slice")
    >>> model = STGCHB(ref, n_top_genes=30)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model")
    ...     predictor = st_gchb.load_predictor(f"{folder}/model")
    >>> predictor.predict(ref).layers["st_gchb"].shape == (ref.n_obs, 30)
    True
    """
    folder = Path(folder)
    saved = read_model(folder)
    settings = ModelSettings(**saved.settings)
    network = network_of(saved, settings, folder).to(network_device(device)).eval()
    origin = {"model_id": saved.model_id, "preset": saved.preset, "seed": saved.seed}
    return Predictor(TrainedParts(network, saved.rules, saved.bank, saved.calibration, settings, origin=origin))


def network_device(device: str | int | torch.device) -> torch.device:
    """Choose the device of a network: ``"auto"`` is a GPU of CUDA where there is one, as in scvi-tools, or the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return choose_device(device)
