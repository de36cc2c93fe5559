"""Read the folder of HEST-Bench: tasks with their folds, genes, expression and patches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.evaluate._folds import Fold
from st_gchb.io import HestPatches, load_anndata, open_hest_patches, reading
from st_gchb.pp.expression import as_csr

GENES_FILE = "var_50genes.json"
OTHER_GENES = "all other genes"
"""Column with the counts of all genes that are not predicted, so that the totals of the spots stay what they are."""
_COLUMNS = ("sample_id", "patches_path", "expr_path")
_SPLIT = re.compile(r"(train|test)_(\d+)\.csv")
_FETCH = "Fetch the task again from the data set MahmoodLab/hest-bench."


@dataclass(frozen=True)
class SampleFold:
    """One fold of a task, by samples.

    Parameters
    ----------
    name
        Name, such as ``"fold 0"``.
    train, test
        Ids of the samples.
    """

    name: str
    train: list[str]
    test: list[str]


@dataclass(frozen=True)
class BenchTask:
    """A task of HEST-Bench.

    Parameters
    ----------
    name
        Name of its folder, such as ``"IDC"``.
    genes
        Genes to predict.
    splits
        Folds.
    files
        File of patches and file of expression of each sample.
    """

    name: str
    genes: list[str]
    splits: list[SampleFold]
    files: dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class BenchData:
    """Data of a task.

    Parameters
    ----------
    adata
        Spots with a patch: raw counts of the task's genes and of all others together, positions in full-resolution px,
        and the sample of each spot in ``obs["slice"]``.
    patches
        Patches of each sample.
    rows
        Numbers of the patches of each sample's spots, in the order of ``adata``.
    folds
        Rows of the folds, in the order of the samples in the split files.
    """

    adata: AnnData
    patches: dict[str, HestPatches]
    rows: dict[str, np.ndarray]
    folds: list[Fold]


def find_tasks(folder: Path, names: Sequence[str] | None = None) -> list[BenchTask]:
    """Read splits and genes of the tasks of a folder, and validate that all files are there.

    Parameters
    ----------
    folder
        Folder with a subfolder for each task, or the folder of one task.
    names
        Tasks to take; by default all.

    Raises
    ------
    MissingFileError
        The folder, a file of splits or genes, or a sample's file does not exist.
    InputError
        There is no task, a name is unknown, or a file of splits or genes is damaged or contradicts another.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder. Check the path (now in {Path.cwd()}).")
    places = [folder] if (folder / "splits").is_dir() else sorted(p for p in folder.iterdir() if _is_task(p))
    if not places:
        found = sorted(one.name for one in folder.iterdir())[:8]
        raise InputError(
            f"{folder}: found {found or 'nothing in it'}; expected the tasks of HEST-Bench, such as IDC/splits, "
            f"IDC/{GENES_FILE}, IDC/adata and IDC/patches. Fetch the data set MahmoodLab/hest-bench."
        )
    there = {place.resolve().name: place for place in places}
    wanted = list(there) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in there]
    if unknown or not wanted:
        raise InputError(f"{folder}: tasks {unknown} are not there; found {list(there)}. Name at least one of these.")
    return [_read_task(there[name], name) for name in wanted]


def _is_task(path: Path) -> bool:
    return path.is_dir() and ((path / "splits").is_dir() or (path / GENES_FILE).is_file())


def _read_task(folder: Path, name: str) -> BenchTask:
    genes = _read_genes(folder / GENES_FILE)
    files: dict[str, tuple[Path, Path]] = {}
    splits = []
    for number in _numbers(folder / "splits"):
        sides = [folder / "splits" / f"{side}_{number}.csv" for side in ("train", "test")]
        train, test = (_read_side(path, folder, files) for path in sides)
        both = sorted(set(train) & set(test))
        if both:
            raise InputError(f"{sides[1]}: samples {both} are trained on in {sides[0].name}, too. {_FETCH}")
        splits.append(SampleFold(f"fold {number}", train, test))
    return BenchTask(name, genes, splits, files)


def _read_genes(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingFileError(f"{path}: the task's list of genes is missing. {_FETCH}")
    with reading(path, "the list of genes", f'Expected {{"genes": [...]}}. {_FETCH}'):
        genes = json.loads(path.read_text(encoding="utf-8-sig"))["genes"]
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise InputError(f"{path}: 'genes' is {str(genes)[:60]!r}; expected a list of names. {_FETCH}")
    twice = sorted({gene for gene in genes if genes.count(gene) > 1})
    if twice:
        raise InputError(f"{path}: genes {twice[:5]} are named more than once. {_FETCH}")
    return genes


def _numbers(folder: Path) -> list[int]:
    """List the numbers of the folds, for each of which there must be both files."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found: dict[str, set[int]] = {"train": set(), "test": set()}
    for match in filter(None, map(_SPLIT.fullmatch, names)):
        found[match.group(1)].add(int(match.group(2)))
    numbers = sorted(found["train"] | found["test"])
    if not numbers:
        raise MissingFileError(f"{folder}: there are no splits; expected train_0.csv and test_0.csv. {_FETCH}")
    missing = [f"{side}_{n}.csv" for n in numbers for side, there in found.items() if n not in there]
    if missing:
        raise MissingFileError(f"{folder}: {', '.join(missing)} are missing, whose other halves are there. {_FETCH}")
    return numbers


def _read_side(path: Path, folder: Path, files: dict[str, tuple[Path, Path]]) -> list[str]:
    """Read the samples of one half of a fold, and note their files."""
    with reading(path, "the split", _FETCH):
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    missing = [column for column in _COLUMNS if column not in table]
    if missing or not len(table):
        raise InputError(
            f"{path}: found the columns {list(table.columns)} and {len(table)} rows; expected {list(_COLUMNS)} and at "
            f"least one sample. {_FETCH}"
        )
    samples: list[str] = []
    for number, row in enumerate(table[list(_COLUMNS)].itertuples(index=False), start=2):
        where = f"{path}, line {number}"
        if pd.isna(list(row)).any():
            raise InputError(f"{where}: a cell is empty; expected an id and two paths. {_FETCH}")
        name, own = str(row[0]), (folder / str(row[1]), folder / str(row[2]))
        if name in samples:
            raise InputError(f"{where}: sample {name!r} is there twice. {_FETCH}")
        for file in own:
            if not file.is_file():
                raise MissingFileError(f"{where}: {file}, of sample {name!r}, is missing. {_FETCH}")
        if files.setdefault(name, own) != own:
            raise InputError(f"{where}: sample {name!r} has other files than in another split. {_FETCH}")
        samples.append(name)
    return samples


def read_task(task: BenchTask) -> BenchData:
    """Read expression and places of the patches of a task.

    Raises
    ------
    MissingKeyError
        A sample lacks a gene of the task, positions, or expression.
    InputError
        A patch belongs to no spot, or a file is damaged.
    """
    parts, patches, rows = [], {}, {}
    for name, (patch_file, expression) in task.files.items():
        patches[name] = open_hest_patches(patch_file)
        part, rows[name] = _read_sample(name, expression, patches[name], task.genes)
        parts.append(part)
    counts = sparse.vstack([part.X for part in parts], format="csr")
    obs = pd.concat([part.obs for part in parts])
    obs[Keys.SLICE] = pd.Categorical(obs[Keys.SLICE])
    adata = AnnData(counts, obs=obs, var=parts[0].var)
    adata.obsm[Keys.SPATIAL] = np.concatenate([part.obsm[Keys.SPATIAL] for part in parts])
    ends = dict(zip(rows, np.cumsum([len(one) for one in rows.values()]).tolist(), strict=True))
    members = {name: np.arange(end - len(rows[name]), end) for name, end in ends.items()}
    folds = [
        Fold(one.name, *(np.concatenate([members[name] for name in side]) for side in (one.train, one.test)))
        for one in task.splits
    ]
    return BenchData(adata, patches, rows, folds)


def _read_sample(name: str, path: Path, patches: HestPatches, genes: list[str]) -> tuple[AnnData, np.ndarray]:
    """Read the spots of a sample's patches, and the numbers of these patches."""
    table = load_anndata(path)
    if table.X is None or Keys.SPATIAL not in table.obsm:
        raise MissingKeyError(f"{path}: has no counts in X, or no positions in obsm['spatial']. {_FETCH}")
    # Symbols that are not predicted may be there twice, as Space Ranger writes them.
    for axis, names in (("spots", table.obs_names), ("genes", table.var_names[table.var_names.isin(genes)])):
        twice = names[names.duplicated()]
        if len(twice):
            raise InputError(f"{path}: {axis} are named more than once, first {str(twice[0])!r}. {_FETCH}")
    absent = [gene for gene in genes if gene not in table.var_names]
    if absent:
        raise MissingKeyError(
            f"{path}: sample {name!r} lacks {len(absent)} of the task's {len(genes)} genes, such as {absent[:5]}. "
            f"{_FETCH}"
        )
    spots = table.obs_names.get_indexer(pd.Index(patches.barcodes.astype(str)))
    if (spots < 0).any() or not len(spots):
        first = f", first {str(patches.barcodes[spots < 0][0])!r}" if len(spots) else ""
        raise InputError(
            f"{patches.path}: {int((spots < 0).sum())} of {len(spots)} patches{first} are of no spot of {path}; "
            f"expected patches, each of a spot. {_FETCH}"
        )
    counts = as_csr(table.X[spots])
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    panel = counts[:, table.var_names.get_indexer_for(genes)]
    others = totals - np.asarray(panel.sum(axis=1), dtype=np.float64).ravel()
    chosen = np.flatnonzero(totals != 0)
    if len(chosen) < len(spots):
        logger.warning(
            "%s: %d of %d spots have no counts and are left out; HEST-Bench itself keeps them.",
            path,
            len(spots) - len(chosen),
            len(spots),
        )
    both = sparse.hstack([panel, sparse.csr_matrix(others[:, None])], format="csr", dtype=np.float32)[chosen]
    obs = pd.DataFrame({Keys.SLICE: name}, index=[f"{name}_{spot}" for spot in table.obs_names[spots[chosen]]])
    part = AnnData(both, obs=obs, var=pd.DataFrame(index=[*genes, OTHER_GENES]))
    part.obsm[Keys.SPATIAL] = np.asarray(table.obsm[Keys.SPATIAL], dtype=np.float64)[spots[chosen], :2]
    return part, chosen
