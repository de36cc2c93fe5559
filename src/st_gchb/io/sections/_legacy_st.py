"""Tables of legacy Spatial Transcriptomics: counts, and spots."""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, ExpressionError, InputError
from st_gchb._logging import logger
from st_gchb.io._pixel_size import Size
from st_gchb.io._reading import reading
from st_gchb.io.sections._losses import Loss, tell_losses
from st_gchb.io.sections._text_table import find_layout, open_text, read_rows

SQUARE_PITCH_UM, STAGGERED_PITCH_UM = 200.0, 141.0
"""Distance of neighbors on the square array of 33 x 35 spots, and on the staggered one of about 2,000, µm."""
_DIAMETER_UM = {SQUARE_PITCH_UM: 100.0, STAGGERED_PITCH_UM: 55.0}
_FEWEST_SPOTS = 12
"""Fewer spots of one color of the chess board are no evidence: they may be so by chance."""
_FAR, _ROUNDS = 10.0, 5
"""Median distances from the middle that a spot may be away; rounds in which misread positions are told."""
_STRAY = 0.02
"""Share of spots that may be of the other color, by a misread position."""
_UNEVEN = 1.25
"""Steps in x and y that differ by more are of neither array (a hexagonal one has 1.73)."""


@dataclass(frozen=True)
class LegacyArray:
    """The array that a section lies on, as far as its spots tell.

    Parameters
    ----------
    size
        What it says of the size of a pixel; None where the array cannot be told.
    diameter_um
        Of a spot, µm.
    told
        What was seen, for messages.
    fits
        ``(n_spots,)`` whether each spot lies where its place in the array puts it, within half a step.
    """

    size: Size | None
    diameter_um: float
    told: str
    fits: npt.NDArray[np.bool_]


def find_array(array: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], where: str) -> LegacyArray:
    """Tell the square array of 200 µm from the staggered one of 141 µm.

    Parameters
    ----------
    array
        ``(n_spots, 2)`` column and row of every spot that is known, under tissue or not.
    pixels
        ``(n_spots, 2)`` x, y of the same, px.
    where
        Table of the spots, for messages.

    Raises
    ------
    CoordinateError
        The spots lie in one row, or in one place.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io.sections._legacy_st import find_array
    >>> array = np.array([(x, y) for x in range(8) for y in range(8)], dtype=float)
    >>> round(find_array(array, 50 * array, "square").size.um_per_px, 3)
    4.0
    >>> black = array[array.sum(axis=1) % 2 == 0]
    >>> round(find_array(black, 10 * black, "staggered").size.um_per_px, 1)
    10.0
    """
    whole = np.round(array)
    steps, fits = _steps(whole, pixels, where)
    array, whole, pixels = array[fits], whole[fits], pixels[fits]
    across, along = (float(np.linalg.norm(step)) for step in steps)
    seen = f"steps of {across:.4g} px in x and {along:.4g} px in y"
    unknown = LegacyArray(None, _DIAMETER_UM[SQUARE_PITCH_UM], seen, fits)
    if not 1 / _UNEVEN <= across / along <= _UNEVEN or np.abs(array - whole).max() > 0.5:
        return unknown
    odd = float(np.mean((whole.sum(axis=1) % 2) != 0))
    stray = min(odd, 1 - odd)
    if stray > _STRAY or (stray > 0 and len(array) < _FEWEST_SPOTS):
        pitch_px = float(abs(np.linalg.det(steps)) ** 0.5)
        told = f"spots of the legacy array {pitch_px:.4g} px apart on squares of {SQUARE_PITCH_UM:g} µm"
        return LegacyArray(
            Size(SQUARE_PITCH_UM / pitch_px, told), _DIAMETER_UM[SQUARE_PITCH_UM], f"{seen}, {told}", fits
        )
    if len(array) < _FEWEST_SPOTS or any(_common_step(whole[:, axis]) != 1 for axis in (0, 1)):
        return unknown
    nearest = np.asarray(cKDTree(pixels).query(pixels, k=2)[0])[:, 1]
    pitch_px = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else float(np.hypot(across, along))
    if not 0.8 <= pitch_px / np.hypot(across, along) <= 1.25:
        # Few spots with gaps between them: their neighbors on the array are not there.
        pitch_px = float(np.hypot(across, along))
    told = f"spots of the legacy array {pitch_px:.4g} px apart, staggered, {STAGGERED_PITCH_UM:g} µm"
    return LegacyArray(
        Size(STAGGERED_PITCH_UM / pitch_px, told), _DIAMETER_UM[STAGGERED_PITCH_UM], f"{seen}, {told}", fits
    )


def _steps(
    array: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], where: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Step of one column and of one row, px, by the affine map that fits the spots best, and which spots it fits."""
    design = np.column_stack([array, np.ones(len(array))])
    steps: npt.NDArray[np.floating] = np.zeros((2, 2))
    # A position that was misread would draw the map to itself, so those far from all others do not count at first.
    away = np.abs(pixels - np.median(pixels, axis=0)) if len(pixels) else pixels
    usual = float(np.median(away, axis=0).max()) if len(pixels) else 0.0
    fits = np.asarray((away <= _FAR * max(usual, 1.0)).all(axis=1))
    for _ in range(_ROUNDS):
        if fits.sum() < 3 or np.linalg.matrix_rank(design[fits]) < 3:
            break
        fitted = np.linalg.lstsq(design[fits], pixels[fits], rcond=None)[0]
        steps = fitted[:2]
        off = np.hypot(*(pixels - design @ fitted).T)
        fits = off <= max(0.5 * abs(float(np.linalg.det(steps))) ** 0.5, 1.0)
    area = abs(float(np.linalg.det(steps)))
    if fits.sum() < max(3, 0.5 * len(array)) or np.linalg.matrix_rank(design[fits]) < 3 or not area >= 1:
        raise CoordinateError(
            f"{where}: the positions of the {len(array)} spots do not spread over the slide as their x, y in the "
            "array do; expected neighbors a constant number of px apart."
        )
    return np.asarray(steps), np.asarray(fits)


def _common_step(values: npt.NDArray[np.float64]) -> int:
    """Largest whole step that all differences are multiples of."""
    return int(np.gcd.reduce(np.diff(np.unique(values)).astype(np.int64)))


SPOT_COLUMNS = {"x", "y", "pixel_x", "pixel_y"}
_SPOT_NAME = re.compile(r"(?:.*[_\- ])?X?(\d+(?:[.,]\d+)?)\s*[xX_×:]\s*(\d+(?:[.,]\d+)?)")
"""``10x13``; with refined positions ``15.983x5.973``; of R ``X10x13``; with the section before it ``A1_10x13``."""
_MOSTLY, _FEW = 0.5, 0.1
_TRUE, _FALSE = {"1", "1.0", "true", "t", "yes"}, {"0", "0.0", "false", "f", "no"}
_DECIMALS = 3


def spot_position(name: str) -> tuple[float, float] | None:
    """Array position that a spot's name gives; None for a name of another form.

    Examples
    --------
    >>> from st_gchb.io.sections._legacy_st import spot_position
    >>> spot_position("10x13"), spot_position("15.983x5.973"), spot_position("010x013"), spot_position("X7x15")
    ((10.0, 13.0), (15.983, 5.973), (10.0, 13.0), (7.0, 15.0))
    >>> spot_position("A1_10x13"), spot_position("Gapdh")
    ((10.0, 13.0), None)
    """
    found = _SPOT_NAME.fullmatch(name.strip())
    if found is None:
        return None
    x, y = (float(part.replace(",", ".")) for part in found.groups())
    return (x, y)


def are_spots(names: list[str]) -> bool:
    """Whether most names are those of spots."""
    names = names[:200]
    return bool(names) and sum(spot_position(name) is not None for name in names) > _MOSTLY * len(names)


def read_wide_counts(path: Path) -> ad.AnnData:
    """Table of counts, spots x genes or genes x spots, with the names of both.

    Parameters
    ----------
    path
        File, plain or compressed by gzip; columns separated by tabs, semicolons, commas or blanks.

    Returns
    -------
    AnnData
        ``X``: CSR float32, ``(n_spots, n_genes)``. Columns of one gene's name are summed.

    Raises
    ------
    ExpressionError
        The file is damaged, or holds something other than counts.
    """
    with reading(path, "the table of counts", "It may be damaged or incomplete: fetch it again.", ExpressionError):
        columns, names, counts = _matrix(path)
    if not (np.isfinite(counts.data) & (counts.data >= 0) & (counts.data == np.round(counts.data))).all():
        raise ExpressionError(f"{path}: found values that are negative, broken or missing; expected raw counts.")
    if are_spots(columns) and not are_spots(names):
        logger.info("%s: genes are in rows, spots in columns.", path)
        columns, names, counts = names, columns, counts.T.tocsr()
    if len(set(names)) < len(names):
        raise ExpressionError(f"{path}: a spot is listed twice; expected each once, of one section.")
    if not counts.shape[1] or not counts.shape[0]:
        raise ExpressionError(f"{path}: found {counts.shape[0]} spots and {counts.shape[1]} genes; expected some.")
    index = pd.Index(columns, dtype=object)
    if not index.is_unique:
        codes, index = pd.factorize(index)
        gather = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
        counts = sparse.csr_matrix(counts @ gather)
    var = pd.DataFrame(index=pd.Index(index, dtype=object))
    return ad.AnnData(counts, obs=pd.DataFrame(index=pd.Index(names, dtype=object)), var=var)


def _matrix(path: Path) -> tuple[list[str], list[str], sparse.csr_matrix]:
    """Names of columns and rows, and the values between them."""
    with open_text(path) as lines:
        header, first = next(lines, ""), next(lines, "")
        if not first:
            raise ExpressionError(f"{path}: the table of counts has no row; expected one for each spot.")
        layout = find_layout(header, first)
        names, rows = [], []
        columns = layout.split(header)
        # R writes no cell above the rows' names.
        if len(columns) == len(layout.split(first)):
            columns = columns[1:]
        # Not by pandas: it is several times slower on tables this wide, and renames columns that appear twice.
        for number, line in enumerate(itertools.chain([first], lines), start=2):
            cells = layout.split(line)
            if len(cells) - 1 != len(columns):
                raise ExpressionError(
                    f"{path}: row {number} ({cells[0][:40]!r}) is damaged or incomplete: found {len(cells) - 1} values "
                    f"a row under {len(columns)} names. Fetch the file again."
                )
            names.append(cells[0])
            with np.errstate(over="ignore"):  # what is too large is refused below, as infinite
                rows.append(sparse.csr_matrix(layout.numbers(cells[1:]).astype(np.float32)))
    return columns, names, sparse.vstack(rows, format="csr")


def read_spots(path: Path) -> pd.DataFrame:
    """Table of the spots of one section.

    Parameters
    ----------
    path
        Table with the array position ``x``, ``y``, where it is known the refined one ``new_x``, ``new_y``, the place in
        px ``pixel_x``, ``pixel_y``, and where it is known ``selected`` (1: under tissue). Or, as of 2018, one whose
        rows are called ``7x15`` and whose ``X``, ``Y`` are px.

    Returns
    -------
    pandas.DataFrame
        By the spots' names: ``x``, ``y``, ``new_x``, ``new_y``, ``pixel_x``, ``pixel_y`` as numbers, ``selected``, and
        ``whole``: whether the row has all that is needed.

    Raises
    ------
    InputError
        The file is damaged, or is no such table.
    """
    with reading(path, "the table of spots", "Fetch it again."):
        layout, (header, *rows) = read_rows(path)
    names = [_column_name(cell) for cell in header]
    if rows and len(rows[0]) == len(names) + 1:
        names = ["", *names]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"{path}: the columns {twice} are there twice; expected each once.")
    # A row that was cut, or has a cell too many, has its cells in the wrong columns from there on.
    cells = {name: [row[i] if len(row) == len(names) else "" for row in rows] for i, name in enumerate(names)}
    if not set(names) >= SPOT_COLUMNS:
        cells = _named_by_rows(cells, names)
    if not set(cells) >= SPOT_COLUMNS:
        raise InputError(f"{path}: found the columns {header}, expected {sorted(SPOT_COLUMNS)} among them.")
    spots = pd.DataFrame({name: layout.numbers(cells[name]) for name in ("x", "y", "pixel_x", "pixel_y")})
    refined = set(cells) >= {"new_x", "new_y"}
    for name in ("new_x", "new_y"):
        spots[name] = layout.numbers(cells[name]) if refined else np.nan
    flags = pd.Series([cell.lower() for cell in cells.get("selected", ["1"] * len(rows))], dtype=object)
    spots["selected"] = flags.isin(_TRUE).to_numpy()
    known = flags.isin(_TRUE | _FALSE).to_numpy()
    spots["whole"] = np.isfinite(spots[["x", "y", "pixel_x", "pixel_y"]]).all(axis=1).to_numpy() & known
    spots.index = pd.Index(
        [f"{x}x{y}" if x or y else f"row {i + 2}" for i, (x, y) in enumerate(zip(cells["x"], cells["y"], strict=True))],
        dtype=object,
    )
    return spots


def _column_name(cell: str) -> str:
    return re.sub(r"[\s.\-]+", "_", cell.strip().lstrip("#").strip().lower())


def _named_by_rows(cells: dict[str, list[str]], names: list[str]) -> dict[str, list[str]]:
    """Columns of a table whose rows are named by the spots, and whose X, Y are px."""
    first = cells[names[0]] if names else []
    if not {"x", "y"} <= set(names) or not are_spots(first):
        return cells
    places = [spot_position(name) or ("", "") for name in first]
    array = {"x": [str(x) for x, _ in places], "y": [str(y) for _, y in places]}
    return {**cells, "pixel_x": cells["x"], "pixel_y": cells["y"], **array}


def read_legacy_spots(
    name: str, counts_path: Path, spots_path: Path, *, allow_missing: bool = False
) -> tuple[ad.AnnData, LegacyArray]:
    """Spots of one section that are under tissue and have counts.

    Parameters
    ----------
    name
        Of the section: goes into ``obs["slice"]`` and before the spots' names.
    counts_path
        Table of counts, see :func:`read_wide_counts`; its spots are called by their array position, or the refined one.
    spots_path
        See :func:`read_spots`.
    allow_missing
        Read what is in both tables, however much is missing in one.

    Returns
    -------
    tuple
        AnnData with counts in ``X``; ``obs``: ``slice``, ``array_row``, ``array_col``; positions in
        ``obsm["spatial"]``. And the array that the spots lie on.

    Raises
    ------
    ExpressionError, CoordinateError, InputError
        A table is damaged, or the two do not belong together.
    """
    counts = read_wide_counts(counts_path)
    spots = read_spots(spots_path)
    tables = f"{spots_path} and {counts_path.name}"
    rows, of_spots = _join(counts.obs_names, spots, tables)
    if not len(rows):
        raise InputError(
            f"{tables}: no spot is in both; do they belong together? Found spots such as "
            f"{list(spots.index[:3])} and {list(counts.obs_names[:3])}."
        )
    both = of_spots[spots["whole"].to_numpy()[of_spots]]
    array = find_array(
        spots[["x", "y"]].to_numpy()[both], spots[["pixel_x", "pixel_y"]].to_numpy()[both], str(spots_path)
    )
    strayed = np.zeros(len(spots), dtype=bool)
    strayed[both] = ~array.fits
    wanted = (spots["selected"] & spots["whole"]).to_numpy() & ~strayed
    with_counts = np.zeros(len(spots), dtype=bool)
    with_counts[of_spots] = True
    with_row = np.zeros(counts.n_obs, dtype=bool)
    with_row[rows] = True
    losses = [
        Loss(spots.index[~spots["whole"]], len(spots), f"rows of {spots_path.name} have gaps or were cut off"),
        Loss(
            spots.index[strayed],
            len(both),
            f"spots of {spots_path.name} lie elsewhere than their x, y in the array say",
        ),
        Loss(
            spots.index[wanted & ~with_counts],
            int(wanted.sum()),
            f"spots under tissue in {spots_path.name} have no counts in {counts_path.name}",
        ),
        Loss(
            counts.obs_names[~with_row], counts.n_obs, f"spots of {counts_path.name} have no row in {spots_path.name}"
        ),
    ]
    tell_losses(name, losses, allow_missing=allow_missing)
    unselected = (spots["whole"] & ~spots["selected"]).to_numpy() & with_counts
    if unselected.any():
        # A table of the whole array has many; a few among spots that were selected already may be a slip.
        few = unselected.sum() <= _FEW * len(of_spots)
        logger.log(
            logging.WARNING if few else logging.INFO,
            "%s: %d of %d spots with counts, such as %s, are left out: selected = 0 in %s says that they are not under "
            "tissue.",
            *(name, unselected.sum(), len(of_spots), list(spots.index[unselected][:3]), spots_path.name),
        )
    # In the order of the table of spots.
    order = np.argsort(of_spots, kind="stable")
    keep = order[wanted[of_spots[order]]]
    if not len(keep):
        raise InputError(f"{tables}: no spot under tissue has counts; expected selected = 1 for those under tissue.")
    adata, spots_kept = counts[rows[keep]].copy(), spots.iloc[of_spots[keep]]
    adata.obs_names = [f"{name}_{spot}" for spot in adata.obs_names]
    # The legacy array counts columns in x and rows in y.
    whole = spots_kept[["x", "y"]].round().astype(int)
    adata.obs = pd.DataFrame(
        {Keys.SLICE: name, "array_row": whole["y"].to_numpy(), "array_col": whole["x"].to_numpy()},
        index=adata.obs_names,
    )
    adata.obsm[Keys.SPATIAL] = spots_kept[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata, array


def _join(names: pd.Index, spots: pd.DataFrame, where: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the counts and rows of the spots that are the same spot, by whichever position names the counts.

    Raises
    ------
    CoordinateError
        A spot is listed twice.
    """
    places = [spot_position(name) for name in names]
    keys = [None if place is None else (round(place[0], _DECIMALS), round(place[1], _DECIMALS)) for place in places]
    best: tuple[list[int], list[int]] = ([], [])
    # Labels come with refined positions under x, y, and counts under whole ones.
    for x, y, decimals in (("x", "y", _DECIMALS), ("new_x", "new_y", _DECIMALS), ("x", "y", 0)):
        table: dict[tuple[float, float], list[int]] = {}
        for i, place in enumerate(zip(spots[x].round(decimals), spots[y].round(decimals), strict=True)):
            table.setdefault(place, []).append(i)
        found = [(i, table[key]) for i, key in enumerate(keys) if key is not None and key in table]
        if len(found) <= len(best[0]):
            continue
        at_once = pd.Series([at[0] for _, at in found]).duplicated().to_numpy()
        twice = next((names[i] for (i, at), again in zip(found, at_once, strict=True) if again or len(at) > 1), None)
        if twice is not None:
            raise CoordinateError(
                f"{where}: spots are listed twice, such as {twice!r}; expected each of a section once."
            )
        best = ([i for i, _ in found], [at[0] for _, at in found])
    return np.array(best[0], dtype=np.int64), np.array(best[1], dtype=np.int64)
