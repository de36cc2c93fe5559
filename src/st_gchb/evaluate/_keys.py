"""What a run depends on: its file is an answer for nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from st_gchb import __version__
from st_gchb._constants import Keys
from st_gchb.evaluate._describe import describe
from st_gchb.evaluate._folds import Fold
from st_gchb.evaluate._protocol import Plan
from st_gchb.pp._cache import content_key
from st_gchb.pp._device import choose_device
from st_gchb.pp._expression import as_csr
from st_gchb.pp._made import pixel_sizes
from st_gchb.pp._positions import spot_centers
from st_gchb.pp._rule import stained_versions
from st_gchb.pp._sections import sections_of


@dataclass(frozen=True)
class RunKey:
    """One fold, method and seed, and all that its result depends on.

    Parameters
    ----------
    fold, method, seed
        Which run.
    depends_on
        Package version, data, protocol, method and device, as JSON takes them.
    """

    fold: str
    method: str
    seed: int
    depends_on: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Hash of the key."""
        return content_key(**self.record)

    @property
    def record(self) -> dict[str, Any]:
        """The key as the file holds it."""
        return {"fold": self.fold, "method": self.method, "seed": self.seed, **self.depends_on}

    @property
    def stem(self) -> str:
        """Name of the run's file without its ending: readable, and its own by the hash at the end."""
        words = (re.sub(r"[^A-Za-z0-9]+", "_", name)[:40] for name in (self.fold, self.method))
        return "-".join([*words, f"seed{self.seed}", self.sha256[:12]])


def keys_of(plan: Plan) -> dict[tuple[str, str, int], RunKey | None]:
    """The key of every run in the order of the table; ``None`` for a method that cannot be described."""
    protocol = plan.protocol
    methods = {name: describe(method) for name, method in plan.methods.items()}
    data = data_sha256(plan.adata, protocol.slice_key, protocol.features_key)
    # A GPU's sums are not a CPU's to the last bit.
    device = choose_device({"gpu": "cuda"}.get(protocol.device, protocol.device)).type
    keys: dict[tuple[str, str, int], RunKey | None] = {}
    for fold in plan.folds:
        shared = {
            "package": __version__,
            "data": data,
            "protocol": _protocol(plan, fold),
            "device": device,
        }
        for name, described in methods.items():
            for seed in protocol.seeds:
                known = None if described is None else RunKey(fold.name, name, seed, shared | {"described": described})
                keys[fold.name, name, seed] = known
    return keys


def _protocol(plan: Plan, fold: Fold) -> dict[str, Any]:
    protocol = plan.protocol
    return {
        "by": protocol.by,
        "n_top_genes": protocol.n_top_genes,
        "markers": list(protocol.markers or []),
        "panel": content_key(genes=plan.panel(fold)),
        "spots": content_key(train=fold.train, test=fold.test),
    }


def data_sha256(adata: AnnData, slice_key: str, features_key: str) -> str:
    """Hash of what the methods of the package read of a table: counts, genes, features, positions, slices, graph."""
    counts = as_csr(adata.X)
    parts: dict[str, Any] = _matrix("counts", counts) | {
        "genes": [str(gene) for gene in adata.var_names],
        "features": np.asarray(adata.obsm[features_key], dtype=np.float32),
        "positions": spot_centers(adata),
        "slices": [str(name) for name in adata.obs[slice_key]],
        "um_per_px": _sizes(adata, slice_key, features_key),
    }
    # Not named where there are none: runs that were kept before there were any are found again.
    parts |= {f"stain{i}": features for i, features in enumerate(stained_versions(adata, features_key))}
    if Keys.CONNECTIVITIES in adata.obsp:
        # The model takes a graph that is there already.
        parts |= _matrix("graph", as_csr(adata.obsp[Keys.CONNECTIVITIES]))
        stem = Keys.CONNECTIVITIES.removesuffix("_connectivities")
        parts["graph_rule"] = plain(dict(adata.uns.get(f"{stem}_neighbors", {}).get("params", {})))
    return content_key(**parts)


def _sizes(adata: AnnData, slice_key: str, features_key: str) -> float | dict[str, float] | None:
    """Known sizes of pixels, in the form in which they were always hashed."""
    sizes = pixel_sizes(adata, sections_of(adata, slice_key), features_key=features_key)
    known = {name: size for name, size in sizes.items() if size is not None}
    return next(iter(known.values())) if len(known) == 1 else (known or None)


def _matrix(name: str, matrix: Any) -> dict[str, np.ndarray]:
    """The arrays of a sparse matrix in the one form that equal matrices have in common."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    indices, indptr = (part.astype(np.int64) for part in (matrix.indices, matrix.indptr))
    return {f"{name}_values": matrix.data, f"{name}_columns": indices, f"{name}_rows": indptr}


def plain(value: Any) -> Any:
    """A value as JSON takes it."""
    simple = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(simple, dict):
        return {str(key): plain(item) for key, item in simple.items()}
    if isinstance(simple, list | tuple):
        return [plain(item) for item in simple]
    # JSON has no word for what is not a number.
    return None if isinstance(simple, float) and not np.isfinite(simple) else simple
