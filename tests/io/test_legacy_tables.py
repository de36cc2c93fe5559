"""Tables of legacy ST as they are found: any separator, encoding and orientation, refined names, gaps, two arrays."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from st_gchb._errors import CoordinateError, ExpressionError, InputError, MissingFileError, ScaleError, STGCHBError
from st_gchb.io import read_section
from st_gchb.io.sections import find_layout, read_rows

from .conftest import GENES, counts_of, he_image, write_legacy

SPOTS = "A1_selection.tsv"


def spot_table(folder):
    return pd.read_csv(folder / SPOTS, sep="\t")


def write_spots(folder, table, name=SPOTS, **options):
    table.to_csv(folder / name, **{"sep": "\t", "index": False, **options})


def count_table(folder):
    return pd.read_csv(folder / "A1.tsv.gz", sep="\t", index_col=0)


def write_counts(folder, table, name="A1.tsv", **options):
    (folder / "A1.tsv.gz").unlink(missing_ok=True)
    table.to_csv(folder / name, **{"sep": "\t", **options})


@pytest.fixture
def folder(tmp_path):
    write_legacy(tmp_path)
    return tmp_path


def assert_read(folder, n_spots=42, **arguments):
    adata = read_section(folder, **arguments)
    places = spot_places()
    assert adata.n_obs == n_spots
    assert set(adata.var_names) == set(GENES)
    found = np.asarray(adata[:, GENES].X.toarray())
    expected = {tuple(place): row for place, row in zip(places, counts_of(len(places)), strict=True)}
    for place, row in zip(adata.obsm["spatial"], found, strict=True):
        np.testing.assert_array_equal(row, expected[tuple(place)])
    return adata


def spot_places():
    rows, columns = (axis.ravel() for axis in np.mgrid[3:10, 5:11])
    return np.column_stack([50.0 + (columns - 5) * 60, 40.0 + (rows - 3) * 60])


def bytes_of(table, encoding="utf-8", **options):
    return table.to_csv(None, **{"sep": "\t", **options}).encode(encoding)


WRITTEN = {
    "commas": ("A1.csv", {"sep": ","}),
    "semicolons": ("A1.csv", {"sep": ";"}),
    "blanks": ("A1.txt", {"sep": " ", "index_label": "spot"}),
    "quotes": ("A1.csv", {"sep": ",", "quoting": 1}),
    "upper-case ending": ("A1.TSV", {}),
    "byte order mark": ("A1.tsv", {"encoding": "utf-8-sig"}),
    "UTF-16": ("A1.tsv", {"encoding": "utf-16"}),
    "Windows lines": ("A1.tsv", {"lineterminator": "\r\n"}),
    "no cell above the names": ("A1.tsv", {"index_label": False}),
    "long name": ("A1_stdata.tsv", {}),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITTEN)
def test_tables_as_programs_write_them(folder, kind, packed):
    name, options = WRITTEN[kind]
    tables = [(count_table(folder), name, True), (spot_table(folder), f"A1_spots{name[-4:]}", False)]
    (folder / "A1.tsv.gz").unlink()
    (folder / SPOTS).unlink()
    for table, path, index in tables:
        wanted = {key: value for key, value in options.items() if index or key != "index_label"}
        content = bytes_of(table, **{"index": index, "encoding": "utf-8", **wanted})
        path = folder / (f"{path}.gz" if packed else path)
        path.write_bytes(gzip.compress(content) if packed else content)
    assert_read(folder)


def test_compression_is_seen_by_the_content(folder):
    packed = (folder / "A1.tsv.gz").read_bytes()
    (folder / "A1.tsv.gz").write_bytes(gzip.decompress(packed))
    (folder / SPOTS).write_bytes(gzip.compress((folder / SPOTS).read_bytes()))
    assert_read(folder)


def test_decimal_commas(folder):
    table = spot_table(folder)
    table["pixel_x"] += 0.5
    write_spots(folder, table, sep=";", decimal=",")
    np.testing.assert_array_equal(read_section(folder).obsm["spatial"][:, 0], table["pixel_x"])


@pytest.mark.parametrize("form", ["{x}x{y}", "{x}_{y}", "X{x}x{y}", "A1_{x}x{y}", "{x:03d}x{y:03d}", "{x}.0x{y}.0"])
@pytest.mark.parametrize("genes_in_rows", [False, True])
def test_names_of_spots(folder, form, genes_in_rows):
    table, spots = count_table(folder), spot_table(folder)
    table.index = [form.format(x=x, y=y) for x, y in zip(spots["x"], spots["y"], strict=True)]
    write_counts(folder, table.T if genes_in_rows else table)
    adata = assert_read(folder)
    assert adata.obs_names[0] == f"A1_{table.index[0]}"
    assert adata.obs["array_col"].tolist() == spots["x"].tolist()


def test_refined_positions_as_names(folder):
    table, spots = count_table(folder), spot_table(folder)
    spots["new_x"], spots["new_y"] = spots["x"] - 0.017, spots["y"] + 0.4
    table.index = [f"{x:.3f}x{y:.3f}" for x, y in zip(spots["new_x"], spots["new_y"], strict=True)]
    write_counts(folder, table)
    write_spots(folder, spots)
    adata = assert_read(folder)
    assert adata.obs["array_row"].tolist() == spots["y"].tolist()


def test_spots_named_by_their_rows(folder):
    spots = spot_table(folder)
    named = spots[["pixel_x", "pixel_y"]].set_axis(["X", "Y"], axis=1)
    named.index = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    (folder / SPOTS).unlink()
    named.to_csv(folder / "spots_A1.csv.gz")
    assert_read(folder)


def test_files_of_one_section_may_have_any_names(folder):
    for old, new in {"A1.tsv.gz": "GSM42 counts.v2.tsv.gz", SPOTS: "detected.txt", "A1.jpg": "scan.jpg"}.items():
        (folder / old).rename(folder / new)
    assert set(assert_read(folder).obs["slice"]) == {"GSM42 counts.v2"}
    assert set(read_section(folder, name="left").obs["slice"]) == {"left"}


@pytest.mark.parametrize("name", ["P1.2", "MOB rep 1", "10x", "A1"])
def test_any_name_of_a_section_among_others(folder, name):
    write_legacy(folder, "B7")
    for file in sorted(folder.glob("A1*")):
        file.rename(file.with_name(file.name.replace("A1", name)))
    assert set(read_section(folder, name=name).obs["slice"]) == {name}
    # An image of another section is not taken for it.
    next(folder.glob(f"{name}.jpg")).unlink()
    with pytest.raises(MissingFileError, match=r"no image of section .*B7\.jpg.*image="):
        read_section(folder, name=name)


def test_labels_beside_the_spots_are_not_taken_for_them(folder):
    labels = spot_table(folder).drop(columns="selected").iloc[:5].assign(label="tumor")
    write_spots(folder, labels, "A1_labeled_coordinates.tsv")
    assert_read(folder)


# Rows that vanish.


@pytest.mark.parametrize("column", ["x", "y", "pixel_x", "pixel_y", "selected"])
@pytest.mark.parametrize("value", ["", "nan", "inf", "ü"])
def test_a_gap_in_the_spots_is_told(folder, caplog, column, value):
    table = spot_table(folder).astype(object)
    table.loc[7, column] = value
    write_spots(folder, table)
    assert_read(folder, 41)
    assert "1 of 42 rows of A1_selection.tsv have gaps or were cut off" in caplog.text
    assert "2.4%" in caplog.text


def test_a_file_that_was_cut_is_told(folder, caplog):
    lines = (folder / SPOTS).read_text().splitlines()
    (folder / SPOTS).write_text("\n".join([*lines[:-2], lines[-2][:6]]))
    assert_read(folder, 40)
    assert "2 of 42 spots of A1.tsv.gz have no row in A1_selection.tsv (4.8%, such as '9x9', '10x9')" in caplog.text
    assert "1 of 41 rows" in caplog.text


@pytest.mark.parametrize("side", ["counts", "spots"])
def test_a_misspelled_name_is_told_on_either_side(folder, caplog, side):
    if side == "counts":
        table = count_table(folder)
        write_counts(folder, table.rename(index={"5x3": "5xx3"}), "A1.tsv")
    else:
        table = spot_table(folder)
        table.loc[0, "x"] = 50
        write_spots(folder, table)
    assert_read(folder, 41)
    assert "1 of 42 spots under tissue in A1_selection.tsv have no counts" in caplog.text
    assert "have no row in A1_selection.tsv (2.4%, such as '5x" in caplog.text


def test_a_loss_above_a_tenth_is_refused_unless_it_is_asked_for(folder, caplog):
    write_spots(folder, spot_table(folder).iloc[:30])
    with pytest.raises(CoordinateError, match=r"12 of 42 spots of A1\.tsv\.gz.*28\.6%.*allow_missing=True"):
        read_section(folder)
    assert_read(folder, 30, allow_missing=True)
    assert "12 of 42" in caplog.text


def test_spots_outside_the_tissue_are_no_loss(folder, caplog):
    table = spot_table(folder)
    table.loc[:19, "selected"] = 0
    write_spots(folder, table)
    assert_read(folder, 22)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_few_spots_that_are_not_selected_are_told(folder, caplog):
    """A table of selected spots holds no others, but by a slip."""
    table = spot_table(folder)
    table.loc[3, "selected"] = 0
    write_spots(folder, table)
    assert_read(folder, 41)
    assert "1 of 42 spots with counts" in caplog.text
    assert "selected = 0" in caplog.text


def test_tables_that_cannot_be_used(folder):
    table = count_table(folder)
    write_counts(folder, pd.concat([table, table.iloc[:1]]))
    with pytest.raises(ExpressionError, match="a spot is listed twice"):
        read_section(folder)
    write_counts(folder, table + 0.5)
    with pytest.raises(ExpressionError, match="expected raw counts"):
        read_section(folder)
    write_counts(folder, table.rename(index=lambda name: f"{name}0"))
    with pytest.raises(InputError, match=r"no spot is in both.*'5x3'.*'5x30'"):
        read_section(folder)
    write_counts(folder, table)
    write_spots(folder, pd.concat([spot_table(folder)] * 2))
    with pytest.raises(CoordinateError, match=r"A1_selection\.tsv.*listed twice, such as '5x3'"):
        read_section(folder)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e30, 9999.0])
def test_a_position_that_does_not_fit_the_array_is_told(folder, caplog, value):
    """Left in, it would also shift the size of a pixel."""
    table = spot_table(folder)
    table.loc[11, "pixel_x"] = value
    write_spots(folder, table)
    adata = assert_read(folder, 41)
    assert "1 of 42 spots of A1_selection.tsv lie elsewhere than their x, y in the array say" in caplog.text
    assert adata.uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / 60)


# The size of a pixel, by the array.


def write_array(folder, array, step, keep=slice(None)):
    array = np.asarray(array)
    places = array * np.asarray(step, dtype=float)
    table = pd.DataFrame(np.column_stack([array, places]), columns=["x", "y", "pixel_x", "pixel_y"]).iloc[keep]
    table = table.astype({"x": int, "y": int}).assign(selected=1)
    folder.mkdir(exist_ok=True)
    write_spots(folder, table)
    names = [f"{x}x{y}" for x, y in zip(table["x"], table["y"], strict=True)]
    counts = pd.DataFrame(counts_of(len(names)), columns=GENES, index=names)
    write_counts(folder, counts)
    side = int(places.max()) + 40
    Image.fromarray(he_image(side)).save(folder / "A1.png")
    return folder


GRID = np.array([(x, y) for x in range(1, 15) for y in range(1, 13)])
CHESS = GRID[GRID.sum(axis=1) % 2 == 0]


def test_square_and_staggered_arrays(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "st_gchb"):
        for name, array, step, um in (
            ("square", GRID, (50, 50), 200 / 50),
            ("uneven", GRID, (50, 53), 200 / (50 * 53) ** 0.5),
            ("staggered", CHESS, (21, 24), 141 / np.hypot(21, 24)),
            ("few of the square", GRID[::17], (50, 50), 200 / 50),
            ("shifted", CHESS + [1, 0], (21, 24), 141 / np.hypot(21, 24)),
        ):
            adata = read_section(write_array(tmp_path / name, array, step))
            assert adata.uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == pytest.approx(um, rel=0.01)
    assert "on squares of 200 µm" in caplog.text
    assert "staggered, 141 µm" in caplog.text


@pytest.mark.parametrize(
    ("array", "step"),
    [
        pytest.param(CHESS[:9], (20, 20), id="few"),
        pytest.param(CHESS, (20, 35), id="hexagonal"),
        pytest.param(2 * GRID, (20, 20), id="every other"),
        pytest.param(GRID, (20, 40), id="oblong"),
    ],
)
def test_an_array_that_cannot_be_told_asks_for_the_size(tmp_path, array, step):
    folder = write_array(tmp_path / "st", array, step)
    with pytest.raises(ScaleError, match=r"cannot be told.*Pass um_per_px="):
        read_section(folder)
    adata = read_section(folder, um_per_px=3.0)
    assert adata.uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == 3.0


@pytest.mark.tissue
def test_real_arrays(her2st_path, caplog):
    shared = her2st_path.parent
    for folder, name, n_spots, um in (
        ("her2st", "C3", 180, 0.69),
        ("mob_st", None, 267, 3.43),
        ("mob_st2k", "MOB1", 379, 4.45),
        ("mob_st2k", "MOB3", 438, 4.45),
    ):
        adata = read_section(shared / folder, name=name)
        (library,) = adata.uns["spatial"].values()
        assert adata.n_obs == n_spots
        assert adata.n_vars > 0
        assert np.isfinite(adata.obsm["spatial"]).all()
        assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(um, rel=0.01)
    assert "2 of 182 spots under tissue" in caplog.text
    assert "11 of 1934 spots" in caplog.text


# Whatever a table holds, it is read, or refused in the package's own words.

CELLS = st.one_of(
    st.text(alphabet=st.characters(exclude_characters="\n\r\0"), max_size=6),
    st.integers(-5, 500).map(str),
    st.floats().map(str),
    st.sampled_from(["", "nan", "1,5", '"', '""', "5x3", "10_12", "x", "1e400", "0x10", "\t", ";", "\ufeff"]),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.sampled_from([SPOTS, "A1.tsv.gz"]),
    row=st.integers(0, 42),
    column=st.integers(0, 7),
    cell=CELLS,
    how=st.sampled_from(["cell", "cut row", "long row", "drop row", "double row", "drop column", "cut file"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]),
)
def test_any_change_of_a_table_is_told(tmp_path_factory, caplog, where, row, column, cell, how, encoding):
    folder = tmp_path_factory.mktemp("st")
    write_legacy(folder)
    path = folder / where
    packed = path.read_bytes()
    rows = [
        line.split("\t") for line in (gzip.decompress(packed) if where.endswith("gz") else packed).decode().split("\n")
    ]
    at = column % len(rows[row])
    if how == "cell":
        rows[row][at] = cell
    elif how in ("cut row", "long row"):
        rows[row] = rows[row][:at] if how == "cut row" else [*rows[row], cell]
    elif how == "drop row":
        del rows[row]
    elif how == "double row":
        rows.append(rows[row])
    elif how == "drop column":
        rows = [[*cells[:at], *cells[at + 1 :]] for cells in rows]
    text = "\n".join("\t".join(cells) for cells in rows)
    content = text[: len(text) * (row + 1) // 43 if how == "cut file" else None].encode(encoding, errors="replace")
    path.write_bytes(gzip.compress(content, 1) if where.endswith("gz") else content)
    caplog.clear()
    try:
        adata = read_section(folder)
    except STGCHBError:
        return
    assert adata.n_obs == 42 or "left out" in caplog.text
    assert np.isfinite(adata.obsm["spatial"]).all()
    assert (adata.X.data >= 0).all()


LINE = st.text(st.characters(exclude_characters="\r\n"), max_size=60)


@given(LINE, LINE)
def test_any_two_lines_have_a_layout(header, row):
    layout = find_layout(header, row)
    assert all(isinstance(cell, str) for cell in layout.split(row.replace("\0", "")))
    assert len(layout.numbers(layout.split(row))) == len(layout.split(row))


def test_an_empty_table_says_so(tmp_path):
    (tmp_path / "a.tsv").write_text("\n\n")
    with pytest.raises(InputError, match="the table is empty"):
        read_rows(tmp_path / "a.tsv")
