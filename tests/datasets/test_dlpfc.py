"""Visium slices of cortex, from small files in their layout and from the true geometry."""

from __future__ import annotations

import json

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from st_gchb._errors import CoordinateError, DownloadError, ExpressionError, InputError, MissingFileError
from st_gchb.datasets import _dlpfc as _dlpfc_files, dlpfc, dlpfc_geometry

N_ROWS, N_COLS = 4, 5


def _barcodes() -> list[str]:
    return [f"AC{i:03d}-1" for i in range(N_ROWS * N_COLS)]


def _positions(name: str) -> str:
    turn = np.deg2rad(3)
    lines = []
    for i, barcode in enumerate(_barcodes()):
        row, step = divmod(i, N_COLS)
        col = 2 * step + row % 2
        x, y = 69 * col, 119.5 * row
        at = (x * np.cos(turn) - y * np.sin(turn) + 500, x * np.sin(turn) + y * np.cos(turn) + 300)
        lines.append(f"{barcode},{int(i % 7 != 0)},{row},{col},{round(at[1])},{round(at[0])}")
    return "\n".join(lines) + "\n"


def _write_h5(path, barcodes: list[str], seed: int) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(2.0, (len(barcodes), 4))
    matrix = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array([4, len(barcodes)])
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(4)], dtype="S")
        features["name"] = np.array(["SNAP25", "MBP", "TBCE", "TBCE"], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * 4, dtype="S")
        features["genome"] = np.array(["GRCh38"] * 4, dtype="S")
    return counts


@pytest.fixture
def folder(tmp_path):
    """Two slices, one flat and one in a folder of its own, as users have them."""
    root = tmp_path / "dlpfc"
    flat, own = "151673", "151669"
    (root / own / "spatial").mkdir(parents=True)
    factors = json.dumps({"spot_diameter_fullres": 96.4, "tissue_hires_scalef": 0.15})
    (root / f"{flat}_tissue_positions_list.csv").write_text(_positions(flat))
    (root / f"{flat}_scalefactors_json.json").write_text(factors)
    (root / own / "spatial" / "tissue_positions_list.csv").write_text(_positions(own))
    (root / own / "spatial" / "scalefactors_json.json").write_text(factors)
    layers = ["L1", "L2", "L3", "WM"] * 5
    lines = "".join(f"{barcode}\t{layer}\n" for barcode, layer in zip(_barcodes(), layers, strict=True))
    (root / own / "layers.tsv").write_text(lines.replace("L1", "L6"))
    (root / f"{flat}_layers.tsv").write_text(lines)
    for number, name in enumerate((flat, own)):
        # Counts come in an order of their own, and lack one spot under tissue.
        _write_h5(root / f"{name}_filtered_feature_bc_matrix.h5", _barcodes()[:0:-1][1:], number)
        Image.new("RGB", (300, 200), (200, 150, 180)).save(root / f"{name}_tissue_hires_image.png")
        (root / f"{name}_full_image.tif").write_bytes(b"not opened")
    return root


def test_counts_positions_and_layers_are_joined_by_barcode(folder):
    adata = dlpfc(["151673", "151669"], path=folder)
    names = [f"AC{i:03d}-1" for i in range(20) if i % 7 and i != 19]
    assert [name.split("_")[1] for name in adata.obs_names[adata.obs["slice"] == "151673"]] == names
    order = _barcodes()[:0:-1][1:]
    counts = np.random.default_rng(1).poisson(2.0, (len(order), 4))
    expected = dict(zip(order, counts, strict=True))
    np.testing.assert_array_equal(adata["151669_AC005-1"].X.toarray()[0], expected["AC005-1"])
    assert adata.var_names.is_unique
    assert adata.X.dtype == np.float32
    assert adata.obs.loc["151673_AC004-1", "layer"] == "L1"
    assert adata.obs.loc["151669_AC004-1", "layer"] == "L6"
    assert adata.obs.loc["151669_AC004-1", "patient"] == "Br5595"
    assert adata.obs.loc["151673_AC004-1", "patient"] == "Br8100"
    table = pd.read_csv(folder / "151673_tissue_positions_list.csv", header=None, index_col=0)
    np.testing.assert_array_equal(adata["151673_AC008-1"].obsm["spatial"][0], table.loc["AC008-1", [5, 4]])


def test_scale_is_derived_from_the_spots(folder):
    library = dlpfc(["151673"], path=folder).uns["spatial"]["151673"]
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(100 / 138, rel=0.01)
    assert library["scalefactors"]["tissue_hires_scalef"] == 0.15
    assert library["images"]["hires"].shape == (200, 300, 3)
    assert "source_image_path" not in library["metadata"]


def test_full_image_is_named(folder, tmp_path):
    adata = dlpfc("151673", path=folder, image="full")
    path = adata.uns["spatial"]["151673"]["metadata"]["source_image_path"]
    assert path == str((folder / "151673_full_image.tif").resolve())
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").n_obs == adata.n_obs


def test_geometry_needs_no_counts(folder):
    for name in ("151673", "151669"):
        (folder / f"{name}_filtered_feature_bc_matrix.h5").unlink()
        geometry = dlpfc_geometry(name, folder)
        assert geometry.shape == (17, 0)
        assert geometry.obs["slice"].unique().tolist() == [name]
    with pytest.raises(MissingFileError, match=r"lacks 2[\s\S]*h5/151673_filtered_feature_bc_matrix\.h5"):
        dlpfc(["151673", "151669"], path=folder)


def test_downloaded_from_the_table_of_all_slices(folder, server, tmp_path, monkeypatch):
    server.files["151673/tissue_positions_list.txt"] = _positions("151673").encode()
    server.files["151673/scalefactors_json.json"] = (folder / "151673_scalefactors_json.json").read_bytes()
    lines = "".join(f"{b}\t151507\tWM\n{b}\t151673\tL4\n" for b in _barcodes())
    server.files["barcode_level_layer_map.tsv"] = lines.encode()
    monkeypatch.setattr(_dlpfc_files, "_REPOSITORY", server.address)
    monkeypatch.setattr(_dlpfc_files, "_SHA256", {})
    for _ in range(2):
        geometry = dlpfc_geometry("151673", cache_dir=tmp_path / "cache")
        assert set(geometry.obs["layer"]) == {"L4"}
    assert len(server.asked) == 3


def test_no_network(nobody, tmp_path, monkeypatch):
    monkeypatch.setattr(_dlpfc_files, "_REPOSITORY", nobody)
    monkeypatch.setattr(_dlpfc_files, "_BUCKET", nobody)
    with pytest.raises(DownloadError, match=r"151676_full_image\.tif"):
        dlpfc(["151676"], cache_dir=tmp_path, image="full")


def test_bad_input(folder):
    with pytest.raises(InputError, match="unknown slices.*151507"):
        dlpfc(["999"], path=folder)
    with pytest.raises(InputError, match="each once"):
        dlpfc(["151673", "151673"], path=folder)
    with pytest.raises(InputError, match="'hires' or 'full'"):
        dlpfc(["151673"], path=folder, image="lowres")


def test_damaged_files(folder):
    (folder / "151673_filtered_feature_bc_matrix.h5").write_bytes(b"<html>not found</html>")
    with pytest.raises(ExpressionError, match=r"matrix\.h5"):
        dlpfc(["151673"], path=folder)
    (folder / "151673_tissue_positions_list.csv").write_text("AC001-1,1,0,0,5,7\nAC002-1,1,7,9,5,9\n")
    with pytest.raises(CoordinateError, match="neighbors"):
        dlpfc_geometry("151673", folder)
    (folder / "151673_tissue_positions_list.csv").write_text("<html>\n")
    with pytest.raises(CoordinateError, match="barcode and 5 numbers"):
        dlpfc_geometry("151673", folder)
    (folder / "151673_tissue_positions_list.csv").write_bytes(b"AC001-1,1,0,0,5,70\0\nAC002-1,1,0,2,5,90\n")
    with pytest.raises(CoordinateError, match="NUL characters"):
        dlpfc_geometry("151673", folder)
    (folder / "151669" / "spatial" / "scalefactors_json.json").write_text('{"spot_diameter')
    with pytest.raises(InputError, match=r"scalefactors_json\.json"):
        dlpfc_geometry("151669", folder)


@pytest.mark.tissue
@pytest.mark.parametrize(("name", "n_spots"), [("151669", 3661), ("151673", 3639), ("151676", 3460)])
def test_true_geometry(dlpfc_path, name, n_spots):
    geometry = dlpfc_geometry(name, dlpfc_path)
    assert geometry.n_obs == n_spots
    assert geometry.uns["spatial"][name]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.725, abs=0.003)
    assert geometry.obs["layer"].notna().mean() > 0.98
    # White matter lies deep: farther from layer 3 than layer 5 does.
    at = pd.DataFrame(geometry.obsm["spatial"]).groupby(geometry.obs["layer"].to_numpy()).mean()
    assert np.hypot(*(at.loc["WM"] - at.loc["L3"])) > np.hypot(*(at.loc["L5"] - at.loc["L3"]))
