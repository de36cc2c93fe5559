"""Cache of finished runs on disk: a file for each fold, method and seed, read only for the same data and settings."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb import __version__
from st_gchb._artifacts import (
    DamagedFileError,
    encode,
    has_own_digest,
    parse_json,
    sha256_of,
    with_digest,
    write_json,
    write_whole,
)
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_SPLIT
from st_gchb.evaluate._describe import describe
from st_gchb.evaluate._folds import Fold
from st_gchb.evaluate._protocol import Plan
from st_gchb.io import sections_of, spot_centers
from st_gchb.pp import FeatureSet
from st_gchb.pp.encoders import choose_device
from st_gchb.pp.expression import as_csr
from st_gchb.pp.patches import content_key, pixel_sizes


@dataclass(frozen=True)
class RunKey:
    """Identity of a run: fold, method, seed, and all that its result depends on.

    Parameters
    ----------
    fold, method, seed
        Names of the fold and of the method, and the seed.
    depends_on
        Package version, data, protocol, method and device, as JSON holds them.
    """

    fold: str
    method: str
    seed: int
    depends_on: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """SHA-256 of the key."""
        return content_key(**self.record)

    @property
    def record(self) -> dict[str, Any]:
        """Key as it is stored in the file."""
        return {"fold": self.fold, "method": self.method, "seed": self.seed, **self.depends_on}

    @property
    def stem(self) -> str:
        """Name of the run's file without its ending: readable, and unique by the hash at its end."""
        words = (re.sub(r"[^A-Za-z0-9]+", "_", name)[:40] for name in (self.fold, self.method))
        return "-".join([*words, f"seed{self.seed}", self.sha256[:12]])


def keys_of(plan: Plan) -> dict[tuple[str, str, int], RunKey | None]:
    """Return the key of every run.

    Parameters
    ----------
    plan
        Data, protocol, methods and folds of the evaluation.

    Returns
    -------
    dict
        By fold, method and seed, in the order of the table; None for a method that cannot be described.
    """
    protocol = plan.protocol
    methods = {name: describe(method) for name, method in plan.methods.items()}
    data = data_sha256(plan.adata, protocol.slice_key, protocol.features_key)
    # Sums on a GPU differ from those on a CPU in the last bit.
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
    # Runs of whole slices are found again by the key that they had before there were blocks.
    split = {} if protocol.split == DEFAULT_SPLIT else {"split": protocol.split}
    depth = {} if protocol.normalize_total else {"normalize_total": False}
    return (
        split
        | depth
        | {
            "by": protocol.by,
            "n_top_genes": protocol.n_top_genes,
            "markers": list(protocol.markers or []),
            "panel": content_key(genes=plan.panel(fold)),
            "spots": content_key(train=fold.train, test=fold.test),
        }
    )


def data_sha256(adata: AnnData, slice_key: str, features_key: str) -> str:
    """Compute the SHA-256 of the data that the package's methods read.

    Parameters
    ----------
    adata
        Counts, genes, features, coordinates, slices and, if there is one, the spot graph.
    slice_key
        Column of ``obs`` with the slices.
    features_key
        Key of ``obsm`` with the patch features.
    """
    counts = as_csr(adata.X)
    parts: dict[str, Any] = _matrix("counts", counts) | {
        "genes": [str(gene) for gene in adata.var_names],
        "features": np.asarray(adata.obsm[features_key], dtype=np.float32),
        "positions": spot_centers(adata),
        "slices": [str(name) for name in adata.obs[slice_key]],
        "um_per_px": _sizes(adata, slice_key, features_key),
    }
    stored = adata.uns.get(features_key)
    if isinstance(stored, Mapping) and np.ndim(stored.get("encoder", "")):
        # Which columns are of which encoder and patch size decides how they are weighted.
        parts["parts"] = FeatureSet.from_uns(stored).names
    if Keys.CONNECTIVITIES in adata.obsp:
        # The model uses an existing graph.
        parts |= _matrix("graph", as_csr(adata.obsp[Keys.CONNECTIVITIES]))
        stem = Keys.CONNECTIVITIES.removesuffix("_connectivities")
        parts["graph_rule"] = encode(dict(adata.uns.get(f"{stem}_neighbors", {}).get("params", {})), strict=True)
    return content_key(**parts)


def _sizes(adata: AnnData, slice_key: str, features_key: str) -> float | dict[str, float] | None:
    """Return the known sizes of pixels in µm, in the form that is hashed: one number if all slices share it."""
    sizes = pixel_sizes(adata, sections_of(adata, slice_key), features_key=features_key)
    known = {name: size for name, size in sizes.items() if size is not None}
    return next(iter(known.values())) if len(known) == 1 else (known or None)


def _matrix(name: str, matrix: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a sparse matrix in canonical form, so that equal matrices have equal arrays."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    indices, indptr = (part.astype(np.int64) for part in (matrix.indices, matrix.indptr))
    return {f"{name}_values": matrix.data, f"{name}_columns": indices, f"{name}_rows": indptr}


_FORMAT = 1
_OURS = re.compile(r"\.?.+-[0-9a-f]{12}(\.[^.]+)?\.(json|npy)(\.damaged\d*)?")
"""Names of the files of runs, including the temporary files that a killed process left."""

_CHECKPOINTS = re.compile(r".+-[0-9a-f]{12}\.checkpoints")
"""Names of the folders with the state of trainings that were interrupted."""


@dataclass(frozen=True)
class Run:
    """Result of a run.

    Parameters
    ----------
    row
        Measures by name.
    genes
        Measures of each gene: index ``gene``, one column for each measure.
    prediction
        Predicted log-normalized expression, ``(n_test, n_genes)``, of the runs that are drawn.
    """

    row: dict[str, float]
    genes: pd.DataFrame
    prediction: np.ndarray | None = None


class RunFolder:
    """Folder of finished runs.

    Parameters
    ----------
    path
        Folder, created if absent.

    Raises
    ------
    InputError
        There is a file of that name, or the folder cannot be created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"runs_dir={str(path)!r} is no folder and cannot be made one ({error}).") from error

    def clear(self) -> None:
        """Delete all runs; files of other names are kept."""
        ours = [path for path in self.path.iterdir() if _OURS.fullmatch(path.name) and path.is_file()]
        for path in ours:
            path.unlink()
        for path in sorted(self.path.glob("*.checkpoints")):
            if _CHECKPOINTS.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
        logger.info("%d files of old runs deleted from %s.", len(ours), self.path)

    def checkpoint_dir(self, key: RunKey) -> Path:
        """Return the folder in which a method may keep the state of a run's training; it need not exist."""
        return self.path / f"{key.stem}.checkpoints"

    def read(self, key: RunKey, *, with_prediction: bool = False) -> Run | None:
        """Read a run.

        Parameters
        ----------
        key
            Identity of the run.
        with_prediction
            Read the predicted expression as well.

        Returns
        -------
        Run | None
            None if there is no such run, or, with a warning, if its file is damaged.
        """
        path = self.path / f"{key.stem}.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            self._put_aside(path, "is a folder")
            return None
        found = parse_run(content, key)
        if isinstance(found, str):
            self._put_aside(path, found)
            return None
        run, prediction_sha256 = found
        if not with_prediction:
            return run
        prediction = self._read_prediction(key, prediction_sha256)
        return None if prediction is None else Run(run.row, run.genes, prediction)

    def write(self, key: RunKey, run: Run) -> None:
        """Write a run; errors of the disk are logged as a warning, since the result is in memory.

        Parameters
        ----------
        key
            Identity of the run.
        run
            Its result.
        """
        record: dict[str, Any] = {
            "format": _FORMAT,
            "key": key.record,
            "key_sha256": key.sha256,
            "row": encode(run.row, strict=True),
            "genes": {"gene": [str(gene) for gene in run.genes.index]}
            | encode({column: run.genes[column].to_numpy() for column in run.genes}, strict=True),
            "prediction_sha256": None,
        }
        path = self.path / f"{key.stem}.json"
        try:
            if run.prediction is not None:
                # The array comes first: a record is written when all files that it names exist.
                with write_whole(path.with_suffix(".npy")) as part:
                    np.save(part, run.prediction.astype(np.float32), allow_pickle=False)
                    record["prediction_sha256"] = sha256_of(part)
            write_json(path, with_digest(record), allow_nan=False)
        except OSError as error:
            logger.warning("Run %s could not be kept (%s): a later call makes it again.", path, error)
            return
        shutil.rmtree(self.checkpoint_dir(key), ignore_errors=True)

    def _read_prediction(self, key: RunKey, expected: str | None) -> np.ndarray | None:
        path = self.path / f"{key.stem}.npy"
        if expected is None:
            logger.info("%s was kept without the prediction that the figure needs: it is made again.", key.stem)
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


def parse_run(content: bytes, key: RunKey) -> tuple[Run, str | None] | str:
    """Decode the file of a run.

    Parameters
    ----------
    content
        Bytes of the file.
    key
        Identity of the expected run.

    Returns
    -------
    tuple or str
        The run and the SHA-256 of its prediction, which is None if there is none; or the reason why the content is
        not that run, to follow the name of the file.
    """
    try:
        record = parse_json(content)
    except DamagedFileError:
        return "is no JSON, or was cut short"
    if not has_own_digest(record):
        return "is damaged or was cut short"
    if record.get("format") != _FORMAT or record.get("key_sha256") != key.sha256:
        return "is the file of another run"
    return _run_of(record)


def _run_of(record: dict[str, Any]) -> tuple[Run, str | None] | str:
    """Build a run from its record; results as :func:`parse`."""
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
