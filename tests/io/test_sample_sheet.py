"""Sample sheets: what is read of each row, and every way in which a row can be wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from st_gchb._errors import InputError, MissingFileError, MissingKeyError, ScaleError, STGCHBError
from st_gchb.io import read_samples


@pytest.fixture
def sheet(tmp_path):
    """Write a sheet, beside files that its rows may name."""
    for name in ("a.h5ad", "b.h5ad", "a.tif"):
        (tmp_path / name).touch()

    def write(content, name="samples.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, error=InputError):
    with pytest.raises(error) as caught:
        read_samples(path)
    return str(caught.value)


def test_every_column(sheet, tmp_path):
    path = sheet(
        f'sample,path,image,patient,um_per_px,group\nA,a.h5ad,a.tif,P1,0.5,tumor\n\n B ,"{tmp_path / "b.h5ad"}",,,,\n'
    )
    first, second = read_samples(path)
    assert (first.sample, first.path, first.image) == ("A", tmp_path / "a.h5ad", str(tmp_path / "a.tif"))
    assert (first.patient, first.um_per_px, first.group) == ("P1", 0.5, "tumor")
    assert first.label == "samples.csv, row 2 (sample 'A')"
    assert (second.sample, second.path) == ("B", tmp_path / "b.h5ad")
    assert (second.image, second.patient, second.um_per_px, second.group) == (None, None, None, None)
    assert second.where == "samples.csv, row 4"


@pytest.mark.parametrize(
    "content",
    [
        "path;sample;um_per_px\na.h5ad;A;0,5\n",
        "Path\tSAMPLE\tum_per_px\r\na.h5ad\tA\t0.5\r\n",
        "\ufeffpath,sample,um_per_px\ra.h5ad,A,0.5",
        '"path","sample","um_per_px",\n"a.h5ad","A","0.5",\n',
    ],
    ids=["semicolons and decimal commas", "tabs and capitals", "a mark and old line ends", "an empty last column"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_of_other_programs(sheet, tmp_path, content, encoding):
    (row,) = read_samples(sheet(content.lstrip("\ufeff" if encoding == "utf-16" else "").encode(encoding)))
    assert (row.path, row.sample, row.um_per_px) == (tmp_path / "a.h5ad", "A", 0.5)


def test_the_path_alone_is_needed(sheet, tmp_path, monkeypatch):
    path = sheet("path\na.h5ad\nb.h5ad\n")
    monkeypatch.chdir(Path("/"))
    assert [row.path for row in read_samples(path)] == [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    assert [row.sample for row in read_samples(str(path))] == [None, None]


def test_paths_instead_of_a_sheet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = read_samples(["a.h5ad", tmp_path / "outs"])
    assert [row.path for row in rows] == [tmp_path / "a.h5ad", tmp_path / "outs"]
    assert [row.path for row in read_samples("a.h5ad")] == [tmp_path / "a.h5ad"]
    assert "Pass the sheet alone" in refused([tmp_path / "samples.csv", tmp_path / "outs"])
    assert "there is no sample" in refused([])


def test_an_image_in_a_store_is_looked_up_later(sheet, tmp_path):
    (row,) = read_samples(sheet("path,image\ns.zarr,he\n"))
    assert row.image == "he"


WRONG = {
    "nothing": ("", InputError, ["empty"]),
    "blank": (" \n\n", InputError, ["empty"]),
    "a header alone": ("sample,path\n", InputError, ["no row below its header"]),
    "no path": ("sample,image\nA,a.tif\n", MissingKeyError, ["no column 'path'", "['sample', 'image']"]),
    "unknown column": ("path,pacient\na.h5ad,P\n", InputError, ["'pacient'", "Did you mean 'patient'?"]),
    "odd column": ("path,quality\na.h5ad,1\n", InputError, ["'quality'", "Leave the column out"]),
    "column twice": ("path,path\na.h5ad,b.h5ad\n", InputError, ["'path' twice"]),
    "surplus cell": ("path\na.h5ad\nb.h5ad,B\n", InputError, ["row 3", "2 cells under 1 columns"]),
    "row without a path": ("sample,path\nA,a.h5ad\nB,\n", InputError, ["row 3 (sample 'B')", "has no path"]),
    "sample twice": ("sample,path\nA,a.h5ad\nA,b.h5ad\n", InputError, ["row 3 (sample 'A')", "row 2 (sample 'A')"]),
    "slash": ("sample,path\nA/1,a.h5ad\n", InputError, ["row 2", "'A/1'", "holds ['/']"]),
    "dots": ("sample,path\n..,a.h5ad\n", InputError, ["row 2", "is no name"]),
    "long name": (f"sample,path\n{'A' * 201},a.h5ad\n", InputError, ["row 2", "has 201 characters"]),
    "image": ("path,image\na.h5ad,c.tif\n", MissingFileError, ["row 2", "c.tif is missing"]),
    "address": ("path\ns3://bucket/a.h5ad\n", InputError, ["row 2", "found the address"]),
    "no number": ("path,um_per_px\na.h5ad,half\n", ScaleError, ["row 2", "'half'"]),
    "no size": ("path,um_per_px\na.h5ad,0\n", ScaleError, ["row 2", "'0'"]),
    "no finite size": ("path,um_per_px\na.h5ad,inf\n", ScaleError, ["row 2", "'inf'"]),
    "open quotation": ('path\na.h5ad\n"b.h5ad\n', InputError, ["row 3", "quotation mark"]),
    "another encoding": (b"path,group\na.h5ad,x\nb.h5ad,Gr\xf6\xdfe\n", InputError, ["row 3", "0xf6"]),
    "NUL": (b"path\na.h5ad\nb\0.h5ad\n", InputError, ["row 3", "NUL"]),
    "no text": (b"\x89HDF\r\n\x1a\n", InputError, ["row 1", "cannot be decoded"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_sheets_that_are_wrong(sheet, name):
    content, error, words = WRONG[name]
    said = refused(sheet(content), error)
    assert said.startswith(("samples.csv, row", str(sheet(content))))
    for word in words:
        assert word in said


def test_a_sheet_that_is_not_there(tmp_path):
    assert "no such sample sheet" in refused(tmp_path / "samples.csv", MissingFileError)
    (tmp_path / "folder.csv").mkdir()
    assert "no such sample sheet" in refused(tmp_path / "folder.csv", MissingFileError)


CELL = (
    st.text(st.characters(blacklist_categories=("C",), blacklist_characters="/\\:~"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda text: text.strip(". ") != "")
)
ROW = st.tuples(CELL, CELL, st.floats(0.01, 100).map("{:.6g}".format))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=5, unique_by=lambda row: row[0]),
    separator=st.sampled_from(",;\t"),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_csv_writer_writes_is_read(tmp_path, rows, separator, line_end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["sample", "path", "um_per_px"])
    writer.writerows(rows)
    path = tmp_path / "samples.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    found = read_samples(path)
    assert [(row.sample, row.path, row.um_per_px) for row in found] == [
        (sample, tmp_path / name, float(size)) for sample, name, size in rows
    ]


def bytes_of(text):
    return f"path,sample\n{text}".encode("utf-8", "surrogatepass")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(bytes_of)))
def test_whatever_a_sheet_holds_is_read_or_refused(tmp_path, content):
    path = tmp_path / "samples.csv"
    path.write_bytes(content)
    said, rows = "", []
    try:
        rows = read_samples(path)
    except STGCHBError as error:
        said = str(error)
    assert rows or "samples.csv" in said
    assert all(row.path.is_absolute() for row in rows)
