"""AnnData as others write it: CELLxGENE, HEST, DeepSpot, early scanpy, R; and what lies beside the file."""

from __future__ import annotations

import json
import logging
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import st_gchb
from st_gchb._errors import ExpressionError, InputError, MissingFileError, ScaleError, STGCHBError
from st_gchb.io import read_section

from .conftest import counts_of, he_image

N, PITCH = 36, 60.0


def places(n=N):
    return np.array([[60 + PITCH * (i % 6), 50 + PITCH * (i // 6)] for i in range(n)])


def section(**uns):
    adata = AnnData(counts_of(N, 8).astype(np.float32) + 1, obs=pd.DataFrame(index=[f"s{i}" for i in range(N)]))
    adata.var_names = [f"GENE{i}" for i in range(8)]
    adata.obsm["spatial"] = places()
    adata.uns.update(uns)
    return adata


def library(key="hires", scale=0.5, **factors):
    pixels = he_image(round(480 * scale))
    return {
        "images": {key: pixels},
        "scalefactors": {f"tissue_{key}_scalef": scale, "spot_diameter_fullres": 30.0, **factors},
    }


def written(adata, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return path


def told(caplog, level=logging.WARNING):
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_cellxgene(tmp_path, caplog):
    adata = section(spatial={"is_single": True, "LIB1": library(microns_per_pixel=2.0)})
    adata.var_names = [f"ENSG{i:011d}" for i in range(8)]
    adata.var["feature_name"] = [f"GENE{i}" for i in range(8)]
    adata.obs["in_tissue"] = [0] * 4 + [1] * (N - 4)
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X)
    with caplog.at_level(logging.INFO, "st_gchb"):
        read = read_section(written(adata, tmp_path / "a.h5ad"))
    assert read.n_obs == N - 4
    assert read.raw.shape == (N - 4, 8)
    assert (
        f"4 of {N} spots are not under tissue (in_tissue is 0) and are left out, such as 's0', 's1', 's2'"
        in caplog.text
    )
    assert "X holds no counts" in caplog.text
    assert "Counts lie in raw.X: adata = adata.raw.to_adata()" in caplog.text
    assert "symbols: adata.var_names = adata.var['feature_name']" in caplog.text
    # The advice works.
    counts = read.raw.to_adata()
    np.testing.assert_array_equal(counts.X, adata.raw.X[4:])
    again = read_section(tmp_path / "a.h5ad", um_per_px=3.0)
    assert again.uns["spatial"]["LIB1"]["scalefactors"]["microns_per_pixel"] == 3.0


def test_where_counts_lie_in_a_layer(tmp_path, caplog):
    adata = section()
    adata.layers["raw_counts"] = adata.X.copy()
    adata.X = adata.X - adata.X.mean(axis=0)
    read_section(written(adata, tmp_path / "a.h5ad"))
    assert "Counts lie in layers['raw_counts']: layer= of setup_anndata" in caplog.text


def hest(folder, um_per_px=0.5, stem="TENX95"):
    """A sample as HEST publishes it."""
    adata = section(spatial={"ST": library("downscaled_fullres")})
    adata.obs["in_tissue"] = [0] * 5 + [1] * (N - 5)
    written(adata, folder / f"st/{stem}.h5ad")
    (folder / "wsis").mkdir(exist_ok=True)
    (folder / "metadata").mkdir(exist_ok=True)
    tifffile.imwrite(
        folder / f"wsis/{stem}.tif",
        he_image(),
        photometric="rgb",
        tile=(64, 64),
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    content = {"id": stem, "pixel_size_um_embedded": 31.75, "pixel_size_um_estimated": um_per_px}
    (folder / f"metadata/{stem}.json").write_text(json.dumps(content))
    return folder / f"st/{stem}.h5ad"


def test_hest(tmp_path, caplog):
    read = read_section(hest(tmp_path))
    (only,) = st_gchb.pp.slices_of(read)
    assert (only.name, only.um_per_px, only.image.name) == ("TENX95", 0.5, str(tmp_path / "wsis/TENX95.tif"))
    assert read.n_obs == N
    assert not told(caplog)
    # Two samples keep their names when they are joined.
    other = read_section(hest(tmp_path, stem="TENX9"))
    joined = ad.concat([read, other], uns_merge="unique", index_unique="_")
    assert set(joined.obs["slice"]) == {"TENX95", "TENX9"} == set(joined.uns["spatial"])


def test_hest_where_two_sizes_disagree(tmp_path, caplog):
    path = hest(tmp_path, um_per_px=0.7)
    with pytest.raises(ScaleError, match=r"0\.7 µm \(pixel_size_um_estimated of .*TENX95\.json\) and 0\.5 µm"):
        read_section(path)
    read = read_section(path, um_per_px=0.7)
    assert read.uns["spatial"]["TENX95"]["scalefactors"]["microns_per_pixel"] == 0.7
    assert "0.5 µm (the image file) is not" in caplog.text
    path.parent.parent.joinpath("metadata/TENX95.json").write_text("{")
    with pytest.raises(InputError, match=r"TENX95\.json: the sample's metadata cannot be read"):
        read_section(path)


@pytest.mark.parametrize("where", ["h5ad/A.h5ad", "h5ad", ""])
def test_deepspot(tmp_path, where):
    """Its ``x_pixel`` counts rows."""
    adata = section()
    del adata.obsm["spatial"]
    adata.obs["y_pixel"], adata.obs["x_pixel"] = places().T
    written(adata, tmp_path / "h5ad/A.h5ad")
    (tmp_path / "image").mkdir()
    (tmp_path / "meta").mkdir()
    Image.fromarray(he_image()).save(tmp_path / "image/A.jpg")
    (tmp_path / "meta/A.json").write_text(json.dumps({"sample": "A", "downsample_factor": "scale_factor"}))
    read = read_section(tmp_path / where, um_per_px=1.5)
    np.testing.assert_array_equal(read.obsm["spatial"], places())
    (only,) = st_gchb.pp.slices_of(read)
    assert (only.image.name, only.um_per_px) == (str(tmp_path / "image/A.jpg"), 1.5)


def test_several_files_in_a_folder(tmp_path):
    for name in ("A", "B"):
        written(section(), tmp_path / f"{name}.h5ad")
    with pytest.raises(InputError, match=r"found 2 AnnData files, \['A', 'B'\]. Pass name="):
        read_section(tmp_path)
    with pytest.raises(MissingFileError, match="no AnnData file of section 'C'"):
        read_section(tmp_path, name="C")
    assert read_section(tmp_path, name="B").n_obs == N


@pytest.mark.parametrize("columns", [("pxl_col_in_fullres", "pxl_row_in_fullres"), ("pixel_x", "pixel_y")])
def test_positions_in_columns(tmp_path, columns):
    adata = section()
    del adata.obsm["spatial"]
    adata.obs[columns[0]], adata.obs[columns[1]] = places().T
    np.testing.assert_array_equal(read_section(written(adata, tmp_path / "a.h5ad")).obsm["spatial"], places())


def test_early_layouts(tmp_path, caplog):
    adata = section(images={"tissue_hires_image": he_image(240)}, scalefactors=library()["scalefactors"])
    adata.obsm["X_spatial"] = adata.obsm.pop("spatial")
    read = read_section(written(adata, tmp_path / "a.h5ad"))
    (only,) = st_gchb.pp.slices_of(read)
    assert (only.name, only.scale) == ("a", 0.5)
    nameless = section(spatial=library())
    assert list(read_section(written(nameless, tmp_path / "b.h5ad")).uns["spatial"]) == ["b"]


def test_from_r(tmp_path):
    entry = library(microns_per_pixel=2.0)
    entry["scalefactors"] = {key: np.array([value]) for key, value in entry["scalefactors"].items()}
    read = read_section(written(section(spatial={"s": entry}), tmp_path / "a.h5ad"))
    assert read.uns["spatial"]["s"]["scalefactors"]["tissue_hires_scalef"] == 0.5
    assert st_gchb.pp.slices_of(read)[0].um_per_px == pytest.approx(4.0)
    entry["scalefactors"] = pd.DataFrame(entry["scalefactors"])
    read = read_section(written(section(spatial={"s": entry}), tmp_path / "b.h5ad"))
    assert st_gchb.pp.slices_of(read)[0].um_per_px == pytest.approx(4.0)
    entry["scalefactors"] = np.array(
        [(0.5, 30.0)], dtype=[("tissue_hires_scalef", "f8"), ("spot_diameter_fullres", "f8")]
    )
    read = read_section(written(section(spatial={"s": entry}), tmp_path / "c.h5ad"), um_per_px=2.0)
    assert st_gchb.pp.slices_of(read)[0].um_per_px == pytest.approx(4.0)


def test_the_size_that_the_metadata_say(tmp_path):
    entry = {**library(), "metadata": {"microns_per_pixel": 3.2}}
    read = read_section(written(section(spatial={"s": entry}), tmp_path / "a.h5ad"))
    assert read.uns["spatial"]["s"]["scalefactors"]["microns_per_pixel"] == 3.2


def test_antibodies_and_genomes(tmp_path, caplog):
    adata = section()
    adata.var["feature_types"] = ["Gene Expression"] * 6 + ["Antibody Capture"] * 2
    adata.var["genome"] = ["GRCh38"] * 4 + ["mm10"] * 2 + [""] * 2
    path = written(adata, tmp_path / "a.h5ad")
    assert read_section(path).n_vars == 6
    assert "2 features are no genes and are left out" in caplog.text
    assert "genes of several genomes" in caplog.text
    assert read_section(path, genome="mm10").var_names.tolist() == ["GENE4", "GENE5"]
    adata.var["feature_types"] = "Antibody Capture"
    with pytest.raises(ExpressionError, match="no feature is of 'Gene Expression'"):
        read_section(written(adata, path))


# An image beside the file.


def test_an_image_beside_the_file_is_taken_where_the_spots_lie_on_it(tmp_path, caplog):
    path = written(section(), tmp_path / "a.h5ad")
    Image.fromarray(he_image(200)).save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO, "st_gchb"):
        assert "spatial" not in read_section(path).uns
    assert "they do not lie on it" in caplog.text
    Image.fromarray(he_image()).save(tmp_path / "a.JPG")
    assert st_gchb.pp.slices_of(read_section(path))[0].image.name == str(tmp_path / "a.JPG")


def test_an_image_beside_the_file_of_another_size_than_the_image_inside(tmp_path):
    path = written(section(spatial={"s": library()}), tmp_path / "a.h5ad")
    Image.fromarray(he_image(600)).save(tmp_path / "a.png")
    assert not read_section(path).uns["spatial"]["s"].get("metadata")
    Image.fromarray(he_image(480)).save(tmp_path / "a.png")
    assert read_section(path).uns["spatial"]["s"]["metadata"]["source_image_path"] == str(tmp_path / "a.png")


def test_an_image_that_was_moved_with_the_file(tmp_path):
    entry = {**library(), "metadata": {"source_image_path": "/gone/scan.png"}}
    path = written(section(spatial={"s": entry}), tmp_path / "a.h5ad")
    Image.fromarray(he_image()).save(tmp_path / "scan.png")
    assert read_section(path).uns["spatial"]["s"]["metadata"]["source_image_path"] == str(tmp_path / "scan.png")


# Real files.

FOLDERS = {
    "her2st_a": (346, 3.2),
    "visium_colon": (1736, 0.971),
    "reader_fixtures/deepspot_ncbi858": (200, None),
}


@pytest.mark.tissue
@pytest.mark.parametrize("folder", FOLDERS)
def test_real_files(her2st_path, folder):
    read = read_section(her2st_path.parent / folder)
    (only,) = st_gchb.pp.slices_of(read)
    n_spots, um = FOLDERS[folder]
    assert read.n_obs == n_spots
    assert read.n_vars > 0
    assert np.isfinite(read.obsm["spatial"]).all()
    assert only.um_per_px is None if um is None else only.um_per_px == pytest.approx(um, rel=0.01)


# Whatever is changed in a file, it is read, or refused in the package's own words.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    adata = section(spatial={"s": library(microns_per_pixel=2.0)})
    adata.obs["in_tissue"] = 1
    adata.obs["part"] = pd.Categorical(["a", "b"] * (N // 2))
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    return written(adata, tmp_path_factory.mktemp("whole") / "a.h5ad")


def every_part(path):
    with h5py.File(path) as file:
        found: list[str] = []
        file.visit(found.append)
    return found


SPOILED = {
    "gone": lambda file, key: None,
    "number": lambda file, key: file.__setitem__(key, 7),
    "text": lambda file, key: file.__setitem__(key, "odd"),
    "bytes": lambda file, key: file.__setitem__(key, np.array([b"\xff\xfe"] * 3)),
    "short": lambda file, key: file.__setitem__(key, np.zeros(3)),
    "flat": lambda file, key: file.__setitem__(key, np.zeros((2, 2, 2))),
    "group": lambda file, key: file.create_group(key),
    "empty": lambda file, key: file.__setitem__(key, h5py.Empty("f")),
}


@pytest.mark.parametrize("how", [*SPOILED, "no attributes", "odd attributes"])
def test_any_part_of_an_anndata(whole, tmp_path, how):
    for key in every_part(whole):
        path = tmp_path / "a.h5ad"
        shutil.copy(whole, path)
        with h5py.File(path, "a") as file:
            if how in SPOILED:
                del file[key]
                SPOILED[how](file, key)
            else:
                for name in list(file[key].attrs):
                    if how == "no attributes":
                        del file[key].attrs[name]
                    else:
                        file[key].attrs[name] = "odd"
        try:
            read = read_section(path)
        except STGCHBError as error:
            assert str(path) in str(error) or "uns" in str(error), key  # noqa: PT017
            continue
        assert read.n_obs == N, key


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.floats(0, 1), what=st.binary(min_size=1, max_size=64), cut=st.booleans())
def test_any_damage_of_the_bytes(whole, tmp_path_factory, start, what, cut):
    path = tmp_path_factory.mktemp("changed") / "a.h5ad"
    content = bytearray(whole.read_bytes())
    at = int(start * (len(content) - 1))
    if cut:
        del content[at:]
    else:
        content[at : at + len(what)] = what
    path.write_bytes(content)
    try:
        read_section(path)
    except STGCHBError as error:
        assert str(path) in str(error) or "uns" in str(error)  # noqa: PT017


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.floats()),
)


@given(
    where=st.sampled_from(
        [("spatial",), ("spatial", "s"), ("spatial", "s", "images"), ("spatial", "s", "scalefactors")]
    ),
    value=ODD,
)
def test_any_value_in_uns(where, value):
    """What is stored in another layout is left for the function that needs it to refuse."""
    from pathlib import Path

    from st_gchb.io.sections import normalize_libraries

    adata = section(spatial={"s": library()})
    entry = adata.uns
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    found = normalize_libraries(adata, Path("a.h5ad"))
    assert all(isinstance(one, dict) for one in found.values())
