"""Outputs of Space Ranger of any version and in any state: text matrices, the raw matrix, antibodies, lost barcodes."""

from __future__ import annotations

import gzip
import json
import logging
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from PIL import Image
from scipy.io import mmwrite
from scipy.sparse import csc_matrix

from st_gchb._errors import CoordinateError, ExpressionError, ImageError, InputError, MissingKeyError, STGCHBError
from st_gchb.io import read_section
from st_gchb.pp import resolve

from .conftest import GENES, counts_of, he_image, hex_spots, write_10x, write_visium, write_visium_hd

COUNTS = "filtered_feature_bc_matrix.h5"
POSITIONS = "spatial/tissue_positions.csv"
FACTORS = "spatial/scalefactors_json.json"
PLACES = ["pxl_col_in_fullres", "pxl_row_in_fullres"]


@pytest.fixture
def outs(tmp_path):
    write_visium(tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture(scope="module")
def under():
    spots = hex_spots()
    return spots[spots["in_tissue"] == 1]


def table_of(outs, **arguments):
    return read_section(outs, **arguments)["table"]


def assert_whole(table, under, genes=GENES):
    """Counts and positions of every spot are those that were written."""
    assert sorted(table.obs_names) == sorted(under.index)
    assert table.var_names.tolist() == list(genes)
    expected = pd.DataFrame(counts_of(len(under)), index=under.index)
    np.testing.assert_array_equal(table.X.toarray(), expected.loc[table.obs_names])
    np.testing.assert_array_equal(table.obsm["spatial"], under.loc[table.obs_names, PLACES])


def write_mtx(folder, barcodes, counts, *, packed=True, old=False, genes=GENES):
    """A matrix as text, of Space Ranger or of Cell Ranger 2."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"ENSG{i:05d}\t{gene}" + ("" if old else "\tGene Expression") for i, gene in enumerate(genes)]
    mmwrite(folder / "matrix.mtx", csc_matrix(np.asarray(counts).T))
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    (folder / ("genes.tsv" if old else "features.tsv")).write_text("\n".join(names) + "\n")
    if packed:
        for file in sorted(folder.iterdir()):
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_matrix_of_text(outs, under, packed, old):
    (outs / COUNTS).unlink()
    write_mtx(outs / "filtered_feature_bc_matrix", under.index, counts_of(len(under)), packed=packed, old=old)
    assert_whole(table_of(outs), under)


def test_a_matrix_of_cell_ranger_2(outs, under):
    matrix = csc_matrix(counts_of(len(under)).T)
    with h5py.File(outs / COUNTS, "w") as file:
        group = file.create_group("GRCh38")
        group["barcodes"] = np.array(list(under.index), dtype="S")
        group["gene_names"] = np.array(GENES, dtype="S")
        group["genes"] = np.array([f"ENSG{i}" for i in range(len(GENES))], dtype="S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = matrix.shape
    table = table_of(outs)
    assert_whole(table, under)
    assert set(table.var["genome"]) == {"GRCh38"}


@pytest.mark.parametrize("text", [False, True])
def test_of_the_raw_matrix_the_spots_under_tissue_are_read(outs, under, caplog, text):
    spots = hex_spots()
    (outs / COUNTS).unlink()
    counts = pd.DataFrame(7, index=spots.index, columns=GENES)
    counts.loc[under.index] = counts_of(len(under))
    if text:
        write_mtx(outs / "raw_feature_bc_matrix", spots.index, counts)
    else:
        write_10x(outs / "raw_feature_bc_matrix.h5", spots.index, counts)
    with caplog.at_level(logging.INFO, "st_gchb"):
        assert_whole(table_of(outs), under)
    assert f"of {len(spots)} spots with counts, {len(under)} are under tissue (in_tissue)" in caplog.text
    positions = pd.read_csv(outs / POSITIONS).drop(columns="in_tissue")
    positions.to_csv(outs / POSITIONS, index=False)
    with pytest.raises(CoordinateError, match=r"no column in_tissue.*filtered_feature_bc_matrix\.h5"):
        read_section(outs)


@pytest.mark.parametrize("file", ["tissue_positions.csv", "tissue_positions_list.csv"])
@pytest.mark.parametrize("header", [False, True])
def test_positions_with_a_header_or_without_under_either_name(outs, under, file, header):
    spots = hex_spots()
    # Space Ranger 3 writes decimals.
    spots[PLACES] = spots[PLACES] + 0.2581
    (outs / POSITIONS).unlink()
    spots.to_csv(outs / "spatial" / file, header=header)
    shifted = under.copy()
    shifted[PLACES] = under[PLACES] + 0.2581
    assert_whole(table_of(outs), shifted)


def test_columns_are_read_by_their_names(outs, under):
    spots = hex_spots().reset_index()
    spots[spots.columns[::-1]].to_csv(outs / POSITIONS, index=False)
    assert_whole(table_of(outs), under)


def test_files_side_by_side_as_archives_hold_them(outs, under, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for old, new in {
        COUNTS: f"GSM1_A_{COUNTS}",
        POSITIONS: "GSM1_A_tissue_positions_list.csv.gz",
        FACTORS: "GSM1_A_scalefactors_json.json.gz",
        "spatial/tissue_hires_image.png": "GSM1_A_tissue_hires_image.png",
    }.items():
        content = (outs / old).read_bytes()
        (flat / new).write_bytes(gzip.compress(content) if new.endswith(".gz") else content)
    assert_whole(table_of(flat), under)


def test_without_the_lowres_image_and_its_factor(outs, under):
    factors = json.loads((outs / FACTORS).read_text())
    del factors["tissue_lowres_scalef"]
    (outs / FACTORS).write_text(json.dumps(factors))
    (outs / "spatial/tissue_lowres_image.png").unlink()
    sdata = read_section(outs)
    assert list(sdata.images) == ["s_hires_image"]
    assert_whole(sdata["table"], under)


def test_factors_in_the_forms_of_r(outs):
    factors = json.loads((outs / FACTORS).read_text())
    expected = resolve(read_section(outs)).slices()[0].um_per_px
    (outs / FACTORS).write_text(json.dumps({key: [str(value)] for key, value in factors.items()}))
    assert resolve(read_section(outs)).slices()[0].um_per_px == expected


def test_visium_hd_without_the_slice_file_and_under_any_name(tmp_path):
    write_visium_hd(tmp_path / "outs", prefix="D1_")
    assert list(read_section(tmp_path / "outs", name="left").shapes) == ["left_square_008um"]
    (tmp_path / "outs/D1_feature_slice.h5").unlink()
    sdata = read_section(tmp_path / "outs")
    (region,) = sdata.shapes
    assert region == f"{tmp_path.name}_square_008um".replace("-", "-")
    assert sdata.shapes[region].geometry.iloc[0].bounds == (40.0, 40.0, 44.0, 44.0)


def test_images_on_which_nothing_is_seen_are_left_out(outs, caplog):
    blank = np.zeros((120, 120, 4), np.uint8)
    Image.fromarray(blank).save(outs / "spatial/tissue_hires_image.png")
    assert list(read_section(outs).images) == ["s_lowres_image"]
    assert "tissue_hires_image.png: the image is of one color; it is left out" in caplog.text
    Image.fromarray(he_image()[..., 0]).save(outs / "spatial/tissue_lowres_image.png")
    with pytest.raises(ImageError, match=r"nothing is to be seen.*image="):
        read_section(outs)


def test_an_image_with_a_transparent_rim(outs):
    pixels = np.dstack([he_image(120), np.full((120, 120), 255, np.uint8)])
    pixels[:20, :, 3] = 0
    Image.fromarray(pixels).save(outs / "spatial/tissue_hires_image.png")
    found = np.asarray(read_section(outs).images["s_hires_image"].transpose("y", "x", "c"))
    assert (found[:20] == 255).all()
    np.testing.assert_array_equal(found[20:], pixels[20:, :, :3])


# What is no gene.


def with_features(outs, under, kinds, genomes):
    counts = counts_of(len(under), len(kinds))
    write_10x(outs / COUNTS, under.index, counts, [f"GENE{i}" for i in range(len(kinds))])
    with h5py.File(outs / COUNTS, "a") as file:
        for name, values in (("feature_type", kinds), ("genome", genomes)):
            del file[f"matrix/features/{name}"]
            file[f"matrix/features/{name}"] = np.array(values, dtype="S")
    return counts


def test_antibodies_are_left_out_and_told(outs, under, caplog):
    kinds = ["Gene Expression"] * 6 + ["Antibody Capture"] * 2
    counts = with_features(outs, under, kinds, ["GRCh38"] * 6 + [""] * 2)
    table = table_of(outs)
    np.testing.assert_array_equal(table.X.toarray(), counts[:, :6])
    assert "2 features are no genes and are left out: 2 of 'Antibody Capture' (such as GENE6, GENE7)" in caplog.text


def test_several_genomes_are_told_and_one_can_be_chosen(outs, under, caplog):
    with_features(outs, under, ["Gene Expression"] * 6, ["GRCh38"] * 4 + ["wuhCor1"] * 2)
    assert table_of(outs).n_vars == 6
    assert "genes of several genomes" in caplog.text
    assert "'wuhCor1' (2 genes" in caplog.text
    caplog.clear()
    assert table_of(outs, genome="GRCh38").var_names.tolist() == GENES[:4]
    assert not caplog.records
    with pytest.raises(MissingKeyError, match=r"genome='mm10'; expected one of \['GRCh38', 'wuhCor1'\]"):
        read_section(outs, genome="mm10")


# Barcodes that are in one file only.


@pytest.mark.parametrize("side", ["counts", "positions"])
def test_barcodes_with_and_without_the_well(outs, under, caplog, side):
    bare = under.index.str.removesuffix("-1")
    if side == "counts":
        write_10x(outs / COUNTS, bare, counts_of(len(under)))
    else:
        spots = hex_spots()
        spots.index = spots.index.str.removesuffix("-1")
        spots.to_csv(outs / POSITIONS, index_label="barcode")
    table = table_of(outs)
    assert table.n_obs == len(under)
    np.testing.assert_array_equal(table.obsm["spatial"], under[PLACES])
    assert not caplog.records


@pytest.mark.parametrize("how", ["misspelled", "no number", "short row", "long row", "no row"])
def test_a_spot_that_loses_its_position_is_told(outs, under, caplog, how):
    lines = (outs / POSITIONS).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(under.index[3]))
    cells = lines[at].split(",")
    changed = {
        "misspelled": ["x" + cells[0], *cells[1:]],
        "no number": [*cells[:-1], "NA"],
        "short row": cells[:-1],
        "long row": [*cells, "7"],
    }
    lines[at : at + 1] = [",".join(changed[how])] if how in changed else []
    (outs / POSITIONS).write_text("\n".join(lines))
    table = table_of(outs)
    assert table.n_obs == len(under) - 1
    assert under.index[3] not in table.obs_names
    assert f"1 of {len(under)} spots in {COUNTS} have" in caplog.text
    assert f"such as {under.index[3]!r}" in caplog.text


def test_spots_under_tissue_without_counts_are_told(outs, under, caplog):
    write_10x(outs / COUNTS, under.index[2:], counts_of(len(under))[2:])
    assert table_of(outs).n_obs == len(under) - 2
    assert f"2 of {len(under)} spots under tissue in tissue_positions.csv have no counts" in caplog.text


@pytest.mark.parametrize("side", ["counts", "positions"])
def test_a_loss_above_a_tenth_is_refused_unless_it_is_asked_for(outs, under, caplog, side):
    if side == "counts":
        write_10x(outs / COUNTS, under.index[20:], counts_of(len(under))[20:])
    else:
        hex_spots().iloc[20:].to_csv(outs / POSITIONS, index_label="barcode")
    with pytest.raises(CoordinateError, match=r"more than a tenth.*allow_missing=True"):
        read_section(outs)
    table = table_of(outs, allow_missing=True)
    assert table.n_obs < len(under)
    np.testing.assert_array_equal(table.obsm["spatial"], under.loc[table.obs_names, PLACES])
    assert "are left out" in caplog.text


def test_normalized_values_are_told_at_reading(outs, under, caplog):
    write_10x(outs / COUNTS, under.index, np.log1p(counts_of(len(under))))
    read_section(outs)
    assert "X holds no counts" in caplog.text


# Whatever is changed in the files, they are read, or refused in the package's own words.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_visium(folder / "s")
    return folder / "s"


def changed_copy(whole, tmp_path_factory, *, images=1):
    """A copy with one or both of the down-scaled images, which take half of the time of reading."""
    folder = tmp_path_factory.mktemp("changed")
    left_out = shutil.ignore_patterns(*["tissue_lowres_image.png"][images - 1 :])
    shutil.copytree(whole, folder / "s", ignore=left_out)
    return folder / "s"


def read_or_refused(outs, under, caplog):
    caplog.clear()
    try:
        section = read_section(outs)
    except STGCHBError:
        return
    table = section["table"]
    assert table.n_obs == len(under) or "left out" in caplog.text
    assert np.isfinite(table.obsm["spatial"]).all()
    resolve(section)


PARTS = ["barcodes", "data", "indices", "indptr", "shape", "features/id", "features/name", "features/feature_type"]
SPOILED = {
    "gone": None,
    "empty": lambda v: v[:0],
    "short": lambda v: v[:-1],
    "long": lambda v: np.concatenate([v, v[-1:]]),
    "scalar": lambda v: v[0],
    "square": lambda v: np.stack([v, v]),
    "turned": lambda v: v[::-1],
    "text": lambda v: np.array([b"\xff\xfe"] * len(v)),
    "floats": lambda v: np.arange(len(v)) + 0.5,
    "negative": lambda v: np.full(len(v), -7),
    "huge": lambda v: np.full(len(v), 2**62),
    "nan": lambda v: np.full(len(v), np.nan),
    "booleans": lambda v: np.ones(len(v), bool),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("part", PARTS)
def test_any_part_of_the_matrix(whole, under, tmp_path_factory, caplog, part, how):
    outs = changed_copy(whole, tmp_path_factory)
    with h5py.File(outs / COUNTS, "a") as file:
        values = file[f"matrix/{part}"][()]
        del file[f"matrix/{part}"]
        if SPOILED[how] is not None:
            file[f"matrix/{part}"] = SPOILED[how](values)
    read_or_refused(outs, under, caplog)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["tissue_hires_scalef", "tissue_lowres_scalef", "spot_diameter_fullres", "microns_per_pixel"]),
    value=JSON,
    alone=st.booleans(),
)
@example(key="tissue_hires_scalef", value=1, alone=False)
@example(key="tissue_hires_scalef", value=1e-308, alone=False)
def test_any_scale_factors(whole, under, tmp_path_factory, caplog, key, value, alone):
    outs = changed_copy(whole, tmp_path_factory, images=2)
    factors = json.loads((outs / FACTORS).read_text())
    (outs / FACTORS).write_text(json.dumps(value if alone else {**factors, key: value}))
    read_or_refused(outs, under, caplog)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(0, 90),
    column=st.integers(0, 5),
    cell=st.one_of(
        st.text(alphabet=st.characters(exclude_characters="\n\r"), max_size=5),
        st.floats().map(str),
        st.sampled_from(["", "NA", "1e30", "-1", '"', "0001ACGT-1", "barcode"]),
    ),
    how=st.sampled_from(["cell", "cut row", "long row", "drop column", "double column", "double row", "separator"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1"]),
    packed=st.booleans(),
)
def test_any_positions(whole, under, tmp_path_factory, caplog, row, column, cell, how, encoding, packed):
    outs = changed_copy(whole, tmp_path_factory)
    rows = [line.split(",") for line in (outs / POSITIONS).read_text().splitlines()]
    if how == "cell":
        rows[row][column] = cell
    elif how in ("cut row", "long row"):
        rows[row] = rows[row][:column] if how == "cut row" else [*rows[row], cell]
    elif how == "drop column":
        rows = [[*cells[:column], *cells[column + 1 :]] for cells in rows]
    elif how == "double column":
        rows = [[*cells, cells[column]] for cells in rows]
    elif how == "double row":
        rows.append(rows[row])
    content = "\n".join((";" if how == "separator" else ",").join(cells) for cells in rows)
    binary = content.encode(encoding, errors="replace")
    (outs / POSITIONS).write_bytes(gzip.compress(binary, 1) if packed else binary)
    read_or_refused(outs, under, caplog)


def test_matrices_of_text_that_do_not_fit(outs, under):
    (outs / COUNTS).unlink()
    folder = outs / "filtered_feature_bc_matrix"
    write_mtx(folder, under.index[1:], counts_of(len(under)), packed=False)
    with pytest.raises(ExpressionError, match=f"{len(under)} spots, and names 6 and {len(under) - 1}"):
        read_section(outs)
    (folder / "barcodes.tsv").unlink()
    with pytest.raises(ExpressionError, match=r"barcodes\.tsv \(or \.gz\) is missing"):
        read_section(outs)
    (folder / "matrix.mtx").write_text("<html>")
    with pytest.raises(ExpressionError, match="matrix of counts cannot be read"):
        read_section(outs)
    write_mtx(folder, under.index, counts_of(len(under)), packed=True)
    (folder / "matrix.mtx.gz").write_bytes((folder / "matrix.mtx.gz").read_bytes()[:60])
    with pytest.raises(InputError, match="matrix of counts cannot be read"):
        read_section(outs)
