"""Read the tables of legacy Spatial Transcriptomics: counts and spots, and identify the array that the spots lie on."""

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
"""Distance between neighbors on the square array of 33 x 35 spots, and on the staggered one of about 2,000, µm."""
_DIAMETER_UM = {SQUARE_PITCH_UM: 100.0, STAGGERED_PITCH_UM: 55.0}
_FEWEST_SPOTS = 12
"""Minimum number of spots to identify the array. On the staggered array all spots lie on the squares of one color of a
chessboard; fewer spots may do so by chance."""
_FAR, _ROUNDS = 10.0, 5
"""Maximum distance of a spot from the center, in median distances; number of rounds in which outliers are excluded."""
_STRAY = 0.02
"""Share of spots that may lie on the other color because of a wrong position."""
_UNEVEN = 1.25
"""Maximum ratio of the steps in x and y on either array (a hexagonal array has 1.73)."""


@dataclass(frozen=True)
class LegacyArray:
    """The array of a section, inferred from its spots.

    Parameters
    ----------
    size
        Pixel size that follows from the array; None if the array cannot be identified.
    diameter_um
        Spot diameter, µm.
    told
        Description of the array, for messages.
    fits
        ``(n_spots,)`` bool, True for spots that lie within half a step of where their array position predicts.
    """

    size: Size | None
    diameter_um: float
    told: str
    fits: npt.NDArray[np.bool_]


def find_array(array: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], where: str) -> LegacyArray:
    """Distinguish the square array of 200 µm from the staggered array of 141 µm.

    Parameters
    ----------
    array
        Column and row of every known spot, under tissue or not, ``(n_spots, 2)``.
    pixels
        x, y of the same spots, ``(n_spots, 2)``, px.
    where
        Table of the spots, for messages.

    Returns
    -------
    LegacyArray
        The array; its ``size`` is None if it cannot be identified.

    Raises
    ------
    CoordinateError
        The pixel positions do not follow the array positions, for example because all spots lie in one row.

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
        # With few, scattered spots most direct neighbors are absent, so the pitch follows from the fitted steps.
        pitch_px = float(np.hypot(across, along))
    told = f"spots of the legacy array {pitch_px:.4g} px apart, staggered, {STAGGERED_PITCH_UM:g} µm"
    return LegacyArray(
        Size(STAGGERED_PITCH_UM / pitch_px, told), _DIAMETER_UM[STAGGERED_PITCH_UM], f"{seen}, {told}", fits
    )


def _steps(
    array: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], where: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Fit an affine map from array to pixel positions, excluding outliers.

    Returns
    -------
    tuple
        Steps of one column and of one row, ``(2, 2)``, px; and a mask of the spots that the map fits, ``(n_spots,)``.

    Raises
    ------
    CoordinateError
        The map does not fit at least half of the spots.
    """
    design = np.column_stack([array, np.ones(len(array))])
    steps: npt.NDArray[np.floating] = np.zeros((2, 2))
    # A wrong position would distort the fit, so spots far from all others are excluded from the first round.
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
    """Return the greatest common divisor of all differences between values."""
    return int(np.gcd.reduce(np.diff(np.unique(values)).astype(np.int64)))


SPOT_COLUMNS = {"x", "y", "pixel_x", "pixel_y"}
_SPOT_NAME = re.compile(r"(?:.*[_\- ])?X?(\d+(?:[.,]\d+)?)\s*[xX_×:]\s*(\d+(?:[.,]\d+)?)")
"""Names such as ``10x13``, ``15.983x5.973`` (refined position), ``X10x13`` (from R), ``A1_10x13`` (with section)."""
_MOSTLY, _FEW = 0.5, 0.1
_TRUE, _FALSE = {"1", "1.0", "true", "t", "yes"}, {"0", "0.0", "false", "f", "no"}
_DECIMALS = 3


def spot_position(name: str) -> tuple[float, float] | None:
    """Parse the array position from the name of a spot; None for a name of another form.

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
    """Check if most names are spot names."""
    names = names[:200]
    return bool(names) and sum(spot_position(name) is not None for name in names) > _MOSTLY * len(names)


def read_wide_counts(path: Path, *, counts: bool = True) -> ad.AnnData:
    """Read a table of counts, spots x genes or genes x spots, with names of rows and columns.

    Parameters
    ----------
    path
        Plain or gzip-compressed file, with columns separated by tabs, semicolons, commas or blanks.
    counts
        Whether to read the values; without them, the names of rows and columns are read alone.

    Returns
    -------
    AnnData
        ``X``: CSR float32, ``(n_spots, n_genes)``. Columns with the same gene name are summed.

    Raises
    ------
    ExpressionError
        The file is damaged, or its values are not counts.
    """
    with reading(path, "the table of counts", "It may be damaged or incomplete: fetch it again.", ExpressionError):
        columns, names, matrix = _matrix(path, counts)
    if not (np.isfinite(matrix.data) & (matrix.data >= 0) & (matrix.data == np.round(matrix.data))).all():
        raise ExpressionError(f"{path}: found values that are negative, broken or missing; expected raw counts.")
    if are_spots(columns) and not are_spots(names):
        logger.info("%s: genes are in rows, spots in columns.", path)
        columns, names, matrix = names, columns, matrix.T.tocsr()
    if len(set(names)) < len(names):
        raise ExpressionError(f"{path}: a spot is listed twice; expected each once, of one section.")
    if not matrix.shape[1] or not matrix.shape[0]:
        raise ExpressionError(f"{path}: found {matrix.shape[0]} spots and {matrix.shape[1]} genes; expected some.")
    index = pd.Index(columns, dtype=object)
    if not index.is_unique:
        codes, index = pd.factorize(index)
        gather = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
        matrix = sparse.csr_matrix(matrix @ gather)
    var = pd.DataFrame(index=pd.Index(index, dtype=object))
    return ad.AnnData(matrix, obs=pd.DataFrame(index=pd.Index(names, dtype=object)), var=var)


def _matrix(path: Path, counts: bool) -> tuple[list[str], list[str], sparse.csr_matrix]:
    """Read the names of columns and rows and, with ``counts``, the values."""
    with open_text(path) as lines:
        header, first = next(lines, ""), next(lines, "")
        if not first:
            raise ExpressionError(f"{path}: the table of counts has no row; expected one for each spot.")
        layout = find_layout(header, first)
        names, rows = [], []
        columns = layout.split(header)
        # R omits the header cell above the row names.
        if len(columns) == len(layout.split(first)):
            columns = columns[1:]
        # pandas is several times slower on tables this wide, and renames duplicated columns.
        for number, line in enumerate(itertools.chain([first], lines), start=2):
            if not counts:
                names.append(layout.name(line))
                continue
            name, values = layout.counts(line)
            if len(values) != len(columns):
                raise ExpressionError(
                    f"{path}: row {number} ({name[:40]!r}) is damaged or incomplete: found {len(values)} values "
                    f"a row under {len(columns)} names. Fetch the file again."
                )
            names.append(name)
            with np.errstate(over="ignore"):  # values that overflow become infinite, which the caller rejects
                rows.append(sparse.csr_matrix(values.astype(np.float32)))
    if not counts:
        return columns, names, sparse.csr_matrix((len(names), len(columns)), dtype=np.float32)
    return columns, names, sparse.vstack(rows, format="csr")


def read_spots(path: Path) -> pd.DataFrame:
    """Read the table of spots of one section.

    Parameters
    ----------
    path
        Table with the array position ``x``, ``y`` and the pixel position ``pixel_x``, ``pixel_y``; optionally with the
        refined array position ``new_x``, ``new_y`` and with ``selected`` (1: under tissue). Or a table in the format of
        2018, with row names such as ``7x15`` and pixel positions in ``X``, ``Y``.

    Returns
    -------
    pandas.DataFrame
        ``x``, ``y``, ``new_x``, ``new_y``, ``pixel_x``, ``pixel_y`` as numbers, ``selected`` as bool, and ``whole``,
        True for complete rows; indexed by the names of the spots.

    Raises
    ------
    InputError
        The file is damaged, or is not a table of spots.
    """
    with reading(path, "the table of spots", "Fetch it again."):
        layout, (header, *rows) = read_rows(path)
    names = [_column_name(cell) for cell in header]
    if rows and len(rows[0]) == len(names) + 1:
        names = ["", *names]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"{path}: the columns {twice} are there twice; expected each once.")
    # Cells of a truncated row, or of one with a surplus cell, may be in the wrong columns, so all are left empty.
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
    """Convert the columns of a table whose row names are spot names, and whose ``X``, ``Y`` are pixel positions."""
    first = cells[names[0]] if names else []
    if not {"x", "y"} <= set(names) or not are_spots(first):
        return cells
    places = [spot_position(name) or ("", "") for name in first]
    array = {"x": [str(x) for x, _ in places], "y": [str(y) for _, y in places]}
    return {**cells, "pixel_x": cells["x"], "pixel_y": cells["y"], **array}


def read_legacy_spots(
    name: str, counts_path: Path, spots_path: Path, *, allow_missing: bool = False, values: bool = True
) -> tuple[ad.AnnData, LegacyArray]:
    """Read the spots of one section that are under tissue and have counts.

    Parameters
    ----------
    name
        Name of the section, for ``obs["slice"]`` and as prefix of the spot names.
    counts_path
        Table of counts, see :func:`read_wide_counts`; its spots are named by their array position, original or refined.
    spots_path
        Table of spots, see :func:`read_spots`.
    allow_missing
        Keep the spots that are in both tables, however many are missing in one.
    values
        Whether to read the values of the table of counts.

    Returns
    -------
    tuple
        AnnData with counts in ``X``, ``obs``: ``slice``, ``array_row``, ``array_col``, and positions in px in
        ``obsm["spatial"]``; and the :class:`LegacyArray` of the spots.

    Raises
    ------
    ExpressionError, CoordinateError, InputError
        A table is damaged, or the tables do not belong together.
    """
    counts = read_wide_counts(counts_path, counts=values)
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
        # A table of the whole array has many unselected spots; a few in an otherwise selected table may be a mistake.
        few = unselected.sum() <= _FEW * len(of_spots)
        logger.log(
            logging.WARNING if few else logging.INFO,
            "%s: %d of %d spots with counts, such as %s, are left out: selected = 0 in %s says that they are not under "
            "tissue.",
            *(name, unselected.sum(), len(of_spots), list(spots.index[unselected][:3]), spots_path.name),
        )
    # Keep the order of the table of spots.
    order = np.argsort(of_spots, kind="stable")
    keep = order[wanted[of_spots[order]]]
    if not len(keep):
        raise InputError(f"{tables}: no spot under tissue has counts; expected selected = 1 for those under tissue.")
    adata, spots_kept = counts[rows[keep]].copy(), spots.iloc[of_spots[keep]]
    adata.obs_names = [f"{name}_{spot}" for spot in adata.obs_names]
    # On the legacy array, x is the column and y is the row.
    whole = spots_kept[["x", "y"]].round().astype(int)
    adata.obs = pd.DataFrame(
        {Keys.SLICE: name, "array_row": whole["y"].to_numpy(), "array_col": whole["x"].to_numpy()},
        index=adata.obs_names,
    )
    adata.obsm[Keys.SPATIAL] = spots_kept[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata, array


def _join(names: pd.Index, spots: pd.DataFrame, where: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Match rows of the counts with rows of the spots, by the kind of position that matches most names.

    Returns
    -------
    tuple of numpy.ndarray
        Row of the counts and row of the spots for every match, ``(n_matches,)`` each.

    Raises
    ------
    CoordinateError
        A spot is listed twice.
    """
    places = [spot_position(name) for name in names]
    keys = [None if place is None else (round(place[0], _DECIMALS), round(place[1], _DECIMALS)) for place in places]
    best: tuple[list[int], list[int]] = ([], [])
    # Tables of labels hold refined positions in x, y, while the counts may be named by the rounded ones.
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
