"""GeoJSON beside the results of slides: what is in it, and when it is written again."""

from __future__ import annotations

import json
import shutil

import anndata
import numpy as np
import pytest

from st_gchb._errors import InputError
from st_gchb.cohort import predict_slides
from st_gchb.io import read_geojson
from st_gchb.model import STGCHB

from .conftest import READ


def genes_of(path):
    return [name for name in read_geojson(path).measurements[0] if not name.startswith(("st_gchb", "tissue"))]


def test_each_result_has_its_file(model, images, tmp_path):
    report = predict_slides(model, images[:2], tmp_path, geojson=True, **READ)
    assert set(report["status"]) == {"done"}
    for row in report.itertuples():
        found = anndata.read_h5ad(row.output)
        spots = read_geojson(tmp_path / f"{row.name}.geojson")
        genes = genes_of(tmp_path / f"{row.name}.geojson")
        assert genes == list(found.var["st_gchb_expected_pcc"].nlargest(3).index)
        assert len(spots) == found.n_obs
        values = [measured[genes[0]] for measured in spots.measurements]
        np.testing.assert_allclose(values, found[:, genes[0]].layers["st_gchb"].ravel(), rtol=1e-4, atol=1e-6)


def test_a_kept_result_is_given_its_file(model, images, tmp_path, computed):
    slides = images[:1]
    name = slides[0].stem
    plain = tmp_path / f"receipts/{name}.json"
    predict_slides(model, slides, tmp_path, **READ)
    assert "viewer_files" not in json.loads(plain.read_text())
    assert not (tmp_path / f"{name}.geojson").exists()
    for genes in (None, ["a"], ["a"]):
        if genes is not None:
            genes = list(anndata.read_h5ad(tmp_path / f"{name}.h5ad").var_names[:1])
        report = predict_slides(model, slides, tmp_path, geojson=True, genes=genes, **READ)
        assert report["status"].tolist() == ["kept"]
        file = tmp_path / f"{name}.geojson"
        assert genes is None or genes_of(file) == genes
        written = file.stat().st_mtime_ns
    # Once it is there for these genes, it is left alone; removed, it comes back.
    predict_slides(model, slides, tmp_path, geojson=True, genes=genes, **READ)
    assert file.stat().st_mtime_ns == written
    file.unlink()
    predict_slides(model, slides, tmp_path, geojson=True, genes=genes, **READ)
    assert genes_of(file) == genes
    assert computed == {name: 1}


def test_a_new_result_takes_the_old_file_away(model, images, tmp_path):
    slide = shutil.copy2(images[0], tmp_path / "slide.png")
    out = tmp_path / "out"
    predict_slides(model, [slide], out, geojson=True, **READ)
    assert (out / "slide.geojson").exists()
    predict_slides(model, [slide], out, **READ | {"spacing_um": 200.0})
    assert not (out / "slide.geojson").exists()


def test_several_slices(model, tissue, tmp_path):
    tissue.write_h5ad(tmp_path / "all.h5ad")
    (status,) = predict_slides(model, [tmp_path / "all.h5ad"], tmp_path / "out", geojson=True)["status"]
    assert status == "done"
    assert {path.name for path in (tmp_path / "out").glob("*.geojson")} == {f"all_S{i}.geojson" for i in (1, 2, 3)}


def test_bad_genes(model, images, tmp_path):
    with pytest.raises(InputError, match=r"genes \['none'\] are not among the 20 predicted ones"):
        predict_slides(model, images[:1], tmp_path / "out", geojson=True, genes=["none"], **READ)
    gene = STGCHB.load(model, accelerator="cpu").rules_.expression.genes[0]
    with pytest.raises(InputError, match="Pass geojson= too"):
        predict_slides(model, images[:1], tmp_path / "out", genes=[gene], **READ)
    assert not (tmp_path / "out").exists()
