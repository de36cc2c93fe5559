"""One fold as a method sees it, and the type of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from st_gchb._arguments import Seed, checked
from st_gchb._constants import Keys
from st_gchb.evaluate._folds import hide_expression
from st_gchb.model import NeighborhoodAggregator
from st_gchb.pp import slices_of, spatial_graph
from st_gchb.pp.expression import log_values_of
from st_gchb.pp.patches import PatchPixels, cache_folder


@checked
@dataclass(frozen=True)
class Task:
    """One fold as a method sees it: the training spots, and the held-out spots without expression.

    :func:`evaluate` makes one for each fold and seed. Both tables have ``obsm["spatial"]`` in full-resolution px, patch
    features in ``obsm[features_key]``, and the slices in ``obs[slice_key]``; images are in ``uns["spatial"]``.

    Parameters
    ----------
    train
        Spots of the training slices, with raw counts in ``X``, ``(n_train, n_all_genes)``. It is not to be changed:
        all methods of a fold get the same one.
    test
        Held-out spots, ``(n_test, 0)``: no genes.
    panel
        Genes to predict, chosen on the training slices.
    features_key
        Key in ``obsm`` of the patch features.
    slice_key
        Column of ``obs`` that tells the slices apart.
    seed
        Seed of the method.
    device
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``.
    normalize_total
        Whether expression is log1p of counts per 10,000; otherwise log1p of the counts as they are.
    checkpoint_dir
        Folder in which a method may keep the state of a long training, from which the same run goes on after an
        interruption. It is there if something was kept, and deleted when the run has ended. None where runs are not
        kept.

    Raises
    ------
    ArgumentError
        An argument is of another type.

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.evaluate import Task
    >>> adata = st_gchb.datasets.synthetic_tissue(2, n_rows=6, n_cols=6, n_genes=20)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    >>> train, test = (adata[adata.obs["slice"] == name].copy() for name in ("S1", "S2"))
    >>> task = Task(train, test, list(adata.var_names[:5]), "X_patch", "slice", seed=0)
    >>> task.targets().shape
    (36, 5)
    """

    train: AnnData
    test: AnnData
    panel: list[str]
    features_key: str
    slice_key: str
    seed: Seed
    device: str = "auto"
    normalize_total: bool = True
    checkpoint_dir: Path | None = None

    def targets(self) -> np.ndarray:
        """Log-normalize the training spots and select the panel; without ``normalize_total``, take log1p of the counts.

        Returns
        -------
        numpy.ndarray
            ``(n_train, n_genes)`` float32, columns in the order of ``panel``.
        """
        log_values = log_values_of(self.train.X, normalize_total=self.normalize_total)
        return log_values[:, self.train.var_names.get_indexer(self.panel)].toarray()

    def features(self, *, neighbors: bool) -> tuple[np.ndarray, np.ndarray]:
        """Get the patch features of the training and of the held-out spots.

        Parameters
        ----------
        neighbors
            Whether the mean features of each spot's neighbors in the spot graph are appended to its own.

        Returns
        -------
        tuple
            ``(n_train, n_features)`` and ``(n_test, n_features)``, float32; twice as wide with ``neighbors``.
        """
        tables = (self.train, self.test)
        plain = [np.asarray(table.obsm[self.features_key], dtype=np.float32) for table in tables]
        if not neighbors:
            return plain[0], plain[1]
        graphs = [self.graph(table) for table in tables]
        slices = [table.obs[self.slice_key].astype(str).to_numpy() for table in tables]
        look = NeighborhoodAggregator(n_rings=1)
        return look(plain[0], graphs[0], slices[0]), look(plain[1], graphs[1], slices[1])

    def patches(
        self, table: AnnData, *, out_px: int, patch_um: float = 0.0, patch_px: float | None = None
    ) -> PatchPixels:
        """Get the pixels of the patches of ``train`` or ``test``, which are read when they are first taken.

        They are kept in files in the cache, by the content of image and positions, so that all methods, seeds and folds
        read a slide once.

        Parameters
        ----------
        table
            ``train`` or ``test``.
        out_px
            Side of the patches that are returned, px.
        patch_um
            Side of the patches on the tissue, µm.
        patch_px
            Side in px of the full-resolution image, instead.

        Returns
        -------
        PatchPixels
            Indexed by rows of the table: ``(n, out_px, out_px, 3)`` uint8.

        Raises
        ------
        ImageError, MissingFileError
            A slice has no image to read from.
        ScaleError
            The size of a pixel is not known, or a patch is larger than a slide.
        """
        slices = slices_of(table, slice_key=self.slice_key)
        sizes: dict[str, Any] = {"out_px": out_px, "patch_um": patch_um, "patch_px": patch_px}
        return PatchPixels(slices, **sizes, folder=cache_folder())

    def graph(self, table: AnnData) -> sparse.csr_matrix:
        """Build the spot graph of ``train`` or ``test``.

        Parameters
        ----------
        table
            Spots with positions, ``(n_spots, 0)`` or with genes.

        Returns
        -------
        scipy.sparse.csr_matrix
            ``(n_spots, n_spots)``, without edges between slices.
        """
        probe = hide_expression(table, self.features_key)
        spatial_graph(probe, slice_key=self.slice_key, features_key=self.features_key)
        return probe.obsp[Keys.CONNECTIVITIES].tocsr()


Method = Callable[[Task], np.ndarray]
"""A function of a :class:`Task` that returns predicted log-normalized expression of the held-out spots.

The result is ``(n_test, n_genes)``, finite, its rows in the order of ``task.test``, its columns in that of
``task.panel``. :func:`evaluate` takes methods by name, ``methods={"mine": function}``, and refuses other results with
an :class:`~st_gchb.errors.InputError`. Functions at the top of a file, partials of them and dataclasses with
``__call__`` are identified by their source, so that ``runs_dir`` keeps their runs.
"""
