"""Finished runs on disk: each a file of its own, written whole, read again only where it is the answer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb import __version__
from st_gchb._artifacts import digest, sha256_of, write_whole
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb.evaluate._describe import describe
from st_gchb.evaluate._folds import Fold
from st_gchb.evaluate._protocol import Plan
from st_gchb.pp.encoders import choose_device
from st_gchb.pp.expression import as_csr
from st_gchb.pp.patches import content_key, pixel_sizes
from st_gchb.pp.spots import sections_of, spot_centers


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


_FORMAT = 1
_OURS = re.compile(r"\.?.+-[0-9a-f]{12}(\.[^.]+)?\.(json|npy)(\.damaged\d*)?")
"""Names that this file gives, also to what a killed process left half-written."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Parameters
    ----------
    row
        Its measures.
    genes
        The same gene by gene: index ``gene``, one column a measure.
    prediction
        Predicted log-normalized expression, ``(n_test, n_genes)``, where the picture needs it.
    """

    row: dict[str, float]
    genes: pd.DataFrame
    prediction: np.ndarray | None = None


class RunFolder:
    """A folder of finished runs.

    Parameters
    ----------
    path
        Made if absent.

    Raises
    ------
    InputError
        If there is a file of that name, or the folder cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"runs_dir={str(path)!r} is no folder and cannot be made one ({error}).") from error

    def clear(self) -> None:
        """Delete the runs; files of other names stay."""
        ours = [path for path in self.path.iterdir() if _OURS.fullmatch(path.name) and path.is_file()]
        for path in ours:
            path.unlink()
        logger.info("%d files of old runs deleted from %s.", len(ours), self.path)

    def read(self, key: RunKey, *, with_prediction: bool = False) -> Run | None:
        """A run that was kept; ``None`` where there is none, or the file is damaged (with a warning)."""
        path = self.path / f"{key.stem}.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            self._put_aside(path, "is a folder")
            return None
        found = parse(content, key)
        if isinstance(found, str):
            self._put_aside(path, found)
            return None
        run, prediction_sha256 = found
        if not with_prediction:
            return run
        prediction = self._read_prediction(key, prediction_sha256)
        return None if prediction is None else Run(run.row, run.genes, prediction)

    def write(self, key: RunKey, run: Run) -> None:
        """Keep a run; where the disk refuses, say so and go on: the result is in memory."""
        record: dict[str, Any] = {
            "format": _FORMAT,
            "key": key.record,
            "key_sha256": key.sha256,
            "row": plain(run.row),
            "genes": {"gene": [str(gene) for gene in run.genes.index]}
            | {str(column): plain(run.genes[column].to_numpy()) for column in run.genes},
            "prediction_sha256": None,
        }
        path = self.path / f"{key.stem}.json"
        try:
            if run.prediction is not None:
                # First the array: a record is written when everything that it names is there.
                with write_whole(path.with_suffix(".npy")) as part:
                    np.save(part, run.prediction.astype(np.float32), allow_pickle=False)
                    record["prediction_sha256"] = sha256_of(part)
            record["record_sha256"] = digest(record)
            with write_whole(path) as part:
                part.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        except OSError as error:
            logger.warning("Run %s could not be kept (%s): a later call makes it again.", path, error)

    def _read_prediction(self, key: RunKey, expected: str | None) -> np.ndarray | None:
        path = self.path / f"{key.stem}.npy"
        if expected is None:
            logger.info("%s was kept without the prediction that the picture needs: it is made again.", key.stem)
            return None
        try:
            damaged = sha256_of(path) != expected
        except FileNotFoundError:
            logger.warning("%s is gone: the run is made again.", path)
            return None
        if damaged:
            self._put_aside(path, "is not what was written")
            return None
        values: np.ndarray = np.load(path, allow_pickle=False)
        return values

    def _put_aside(self, path: Path, reason: str) -> None:
        names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in range(10_000))
        aside = next(name for name in names if not name.exists())
        os.replace(path, aside)
        logger.warning("%s %s: it is moved to %s, and the run is made again.", path, reason, aside.name)


def parse(content: bytes, key: RunKey) -> tuple[Run, str | None] | str:
    """A run and the hash of its prediction from the bytes of its file; or what is wrong with them, in words."""
    try:
        record = json.loads(content)
        if not isinstance(record, dict) or record.get("record_sha256") != digest(record):
            return "is damaged or was cut short"
    except (ValueError, RecursionError):
        return "is no JSON, or was cut short"
    if record.get("format") != _FORMAT or record.get("key_sha256") != key.sha256:
        return "is the file of another run"
    return _run_of(record)


def _run_of(record: dict[str, Any]) -> tuple[Run, str | None] | str:
    row, genes, expected = record.get("row"), record.get("genes"), record.get("prediction_sha256")
    if not isinstance(row, dict) or not isinstance(genes, dict) or not isinstance(expected, str | None):
        return "lacks scores"
    columns = list(genes.values())
    even = all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns)
    if "gene" not in genes or not even:
        return "holds no table of genes"
    measures = {name: column for name, column in genes.items() if name != "gene"}
    frame = pd.DataFrame(measures, index=pd.Index(genes["gene"], name="gene"))
    return Run({name: float("nan") if value is None else value for name, value in row.items()}, frame), expected
