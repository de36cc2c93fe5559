"""What is no section, or half of one: an error that says what was found and what is missing."""

from __future__ import annotations

import json
import os
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image

from st_gchb._errors import (
    CoordinateError,
    ExpressionError,
    ImageError,
    InputError,
    MissingFileError,
    MissingKeyError,
    ScaleError,
)
from st_gchb.io import read_section

from .conftest import he_image, write_10x, write_legacy, write_visium, write_visium_hd

COUNTS, FACTORS = "filtered_feature_bc_matrix.h5", "spatial/scalefactors_json.json"
BINS = "binned_outputs/square_008um"


def remove(*names):
    def apply(outs):
        for name in names:
            shutil.rmtree(outs / name) if (outs / name).is_dir() else (outs / name).unlink()

    return apply


def text(name, content):
    return lambda outs: (outs / name).write_text(content)


def cut(name):
    return lambda outs: (outs / name).write_bytes((outs / name).read_bytes()[:300])


def foreign_counts(outs):
    write_10x(outs / COUNTS, ["XXXX-1", "YYYY-1"], np.ones((2, 6)))


def empty_counts(outs):
    write_10x(outs / COUNTS, [], np.ones((0, 6)))


def other_hdf5(outs):
    with h5py.File(outs / COUNTS, "w") as file:
        file["x"] = 1


def twice(outs):
    path = outs / "spatial/tissue_positions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]))


def no_factor(outs):
    factors = json.loads((outs / FACTORS).read_text())
    del factors["tissue_hires_scalef"]
    (outs / FACTORS).write_text(json.dumps(factors))


def no_genes(outs):
    with h5py.File(outs / COUNTS, "a") as file:
        del file["matrix/features"]


def fewer_values(outs):
    with h5py.File(outs / COUNTS, "a") as file:
        del file["matrix/data"]
        file["matrix/data"] = np.ones(3, dtype=np.int32)


VISIUM = {
    "no counts": (remove(COUNTS), MissingFileError, rf"incomplete: {COUNTS} is missing.*spatial"),
    "no folder spatial": (remove("spatial"), MissingFileError, rf"{FACTORS} is missing"),
    "no positions": (remove("spatial/tissue_positions.csv"), MissingFileError, r"tissue_positions\.csv.*is missing"),
    "no factors": (remove(FACTORS), MissingFileError, rf"{FACTORS} is missing"),
    "a factor is missing": (no_factor, MissingKeyError, "tissue_hires_scalef"),
    "factors cut short": (text(FACTORS, '{"spot_diam'), InputError, "scale factors cannot be read.*JSON"),
    "factors are a list": (text(FACTORS, "[1, 2]"), InputError, "scale factors cannot be read"),
    "counts cut short": (cut(COUNTS), ExpressionError, "matrix of counts cannot be read"),
    "counts are something else": (other_hdf5, ExpressionError, "no matrix of counts"),
    "counts of another sample": (foreign_counts, CoordinateError, "2 of 2 spots.*no position, first 'XXXX-1'"),
    "no spots": (empty_counts, ExpressionError, "no spots"),
    "no genes": (no_genes, ExpressionError, "has no .*features/id"),
    "not as long as it says": (fewer_values, ExpressionError, "matrix of counts cannot be read"),
    "a barcode twice": (twice, CoordinateError, "twice"),
    "positions are another table": (text("spatial/tissue_positions.csv", "a,b\n1,2\n"), CoordinateError, "2 columns"),
    "positions are empty": (text("spatial/tissue_positions.csv", ""), InputError, "the table is empty"),
    "no images": (
        remove("spatial/tissue_hires_image.png", "spatial/tissue_lowres_image.png"),
        ImageError,
        "no image.*image=",
    ),
    "two matrices": (
        lambda outs: shutil.copy(outs / COUNTS, outs / f"B_{COUNTS}"),
        InputError,
        "found 2 files for filtered",
    ),
}


@pytest.mark.parametrize("name", VISIUM)
def test_visium(tmp_path, name):
    spoil, error, message = VISIUM[name]
    write_visium(tmp_path / "sample/outs")
    spoil(tmp_path / "sample/outs")
    with pytest.raises(error, match=message) as caught:
        read_section(tmp_path / "sample")
    assert "sample" in str(caught.value)


HD = {
    "no bins": (remove("binned_outputs"), MissingFileError, "square_008um is missing"),
    "no counts": (remove(f"{BINS}/{COUNTS}"), MissingFileError, rf"{BINS}/{COUNTS} is missing"),
    "no positions": (remove(f"{BINS}/spatial/tissue_positions.parquet"), MissingFileError, "parquet is missing"),
    "positions are text": (
        text(f"{BINS}/spatial/tissue_positions.parquet", "x"),
        CoordinateError,
        "positions cannot be read.*Parquet",
    ),
    "other bins alone": (remove(BINS), InputError, r"no square_008um; found \['square_016um', 'square_024um'\]"),
}


@pytest.mark.parametrize("name", HD)
def test_visium_hd(tmp_path, name):
    spoil, error, message = HD[name]
    write_visium_hd(tmp_path / "outs", bins=(8, 16, 24))
    spoil(tmp_path / "outs")
    with pytest.raises(error, match=message):
        read_section(tmp_path / "outs")


def test_a_full_image_of_another_size(tmp_path):
    write_visium(tmp_path / "s")
    Image.fromarray(he_image(300)).save(tmp_path / "other.png")
    with pytest.raises(InputError, match=r"other\.png: found \(300, 300\) px.*about \(480, 480\)"):
        read_section(tmp_path / "s", image=tmp_path / "other.png")
    with pytest.raises(MissingFileError, match=r"nowhere\.tif"):
        read_section(tmp_path / "s", image=tmp_path / "nowhere.tif")


def remove_one(ending):
    return lambda folder: next(folder.glob(f"*{ending}")).unlink()


def in_one_row(folder):
    table = pd.read_csv(folder / "A1_selection.tsv", sep="\t").assign(pixel_y=50)
    table.to_csv(folder / "A1_selection.tsv", sep="\t", index=False)


LEGACY = {
    "no image": (remove_one(".jpg"), MissingFileError, "no image.*image="),
    "no spots": (remove_one("_selection.tsv"), MissingFileError, "no table of spots"),
    "no counts": (remove_one(".tsv.gz"), MissingFileError, "no table of counts"),
    "counts cut short": (cut("A1.tsv.gz"), ExpressionError, r"A1\.tsv\.gz.*damaged"),
    "spots in one row": (
        in_one_row,
        CoordinateError,
        "do not spread",
    ),
    "an image that is none": (text("A1.jpg", "x"), ImageError, "no image that can be read"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_legacy(tmp_path, name):
    spoil, error, message = LEGACY[name]
    write_legacy(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        read_section(tmp_path)


def test_what_is_no_section(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        read_section(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"nothing in it.*Expected a Space Ranger"):
        read_section(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"neither a section nor an image.*Expected a Space Ranger"):
        read_section(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"folder with notes\.txt"):
        read_section(tmp_path)
    Image.fromarray(he_image()).save(tmp_path / "slide.png")
    with pytest.raises(InputError, match=r"image without spots.*tile_tissue"):
        read_section(tmp_path / "slide.png")


def test_the_matrix_alone_and_folders_of_sections(tmp_path):
    write_visium(tmp_path / "samples/a")
    write_visium(tmp_path / "samples/b/outs")
    with pytest.raises(InputError, match=r"counts alone.*samples/a"):
        read_section(tmp_path / "samples/a" / COUNTS)
    with pytest.raises(InputError, match=r"Sections are below it: \['a', 'b'\]"):
        read_section(tmp_path / "samples")


def test_stores_that_are_damaged(tmp_path):
    write_visium(tmp_path / "s")
    read_section(tmp_path / "s").write(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/zarr.json").write_text("{")
    with pytest.raises(InputError, match="Zarr store cannot be read.*damaged"):
        read_section(tmp_path / "s.zarr")
    AnnData(np.ones((3, 2), np.float32)).write_h5ad(tmp_path / "a.h5ad")
    cut("a.h5ad")(tmp_path)
    with pytest.raises(InputError, match=r"a\.h5ad.*damaged"):
        read_section(tmp_path / "a.h5ad")
    other_hdf5_path = tmp_path / "x.h5ad"
    with h5py.File(other_hdf5_path, "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="neither AnnData nor"):
        read_section(other_hdf5_path)


def test_arguments_that_do_not_belong(tmp_path):
    write_visium(tmp_path / "s")
    read_section(tmp_path / "s").write(tmp_path / "s.zarr")
    for argument in ({"name": "x"}, {"image": "x.tif"}):
        with pytest.raises(InputError, match=f"{next(iter(argument))}='x.*SpatialData store"):
            read_section(tmp_path / "s.zarr", **argument)
    with pytest.raises(ScaleError, match="positive"):
        read_section(tmp_path / "s", um_per_px=-1)
    obs = pd.DataFrame({"slice": ["a", "b", "b"]}, index=list("xyz"))
    AnnData(np.ones((3, 2), np.float32), obs=obs).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match="several slices"):
        read_section(tmp_path / "a.h5ad", um_per_px=0.5)


def test_what_is_neither_file_nor_folder_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(InputError, match="neither a file nor a folder"):
            read_section(path)
