"""One slide's fault is its row; what was done is not done again."""

from __future__ import annotations

import json
import os
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import st_gchb
from st_gchb._errors import StoreError
from st_gchb.cohort import _api as _call, _worker as _work, content_of, embed_slides, predict_slides
from st_gchb.model import STGCHB

from .conftest import READ, TEXTURE


def placed(images, folder):
    """Three slides, in a folder that holds nothing else then."""
    shutil.rmtree(folder)
    folder.mkdir()
    return [shutil.copy2(path, folder / path.name) for path in images[:3]]


def embed(slides, out, **changes):
    """A few spots a slide."""
    return embed_slides(slides, out, **TEXTURE | READ | {"spacing_um": 250.0} | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("slides")


@pytest.fixture
def few(images, place):
    """Three slides that a test may change; for all tests at one place, and of one age."""
    return placed(images, place)


@pytest.fixture(scope="module")
def embedded(images, place, tmp_path_factory):
    """Features of them; not to be changed."""
    folder = tmp_path_factory.mktemp("embedded") / "out"
    assert set(embed(placed(images, place), folder)["status"]) == {"done"}
    return folder


@pytest.fixture
def out(few, embedded, tmp_path):
    """The features as an earlier call left them."""
    return shutil.copytree(embedded, tmp_path / "out")


def test_each_slide_gives_what_the_model_gives_for_it(model, images, tmp_path):
    report = predict_slides(model, images[:3], tmp_path, **READ)
    assert report["name"].tolist() == ["A1", "A2", "A3"]
    assert set(report["status"]) == {"done"}
    loaded = STGCHB.load(model, accelerator="cpu")
    for path, row in zip(images[:2], report.itertuples(), strict=False):
        expected = loaded.predict(st_gchb.pp.tile_tissue(path, **READ, name=row.name))
        found = anndata.read_h5ad(row.output)
        assert found.n_obs == row.n_spots == expected.n_obs
        np.testing.assert_array_equal(found.layers["st_gchb"], expected.layers["st_gchb"])
        assert found.obs["st_gchb_confidence"].tolist() == expected.obs["st_gchb_confidence"].tolist()
        assert found.uns["st_gchb"]["model_id"] == loaded.model_id_
    stored = pd.read_csv(tmp_path / "report.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(stored, report.astype(stored.dtypes))


def test_stores_with_spots_and_without(model, tissue, tmp_path, same):
    """A store is read, not written to."""
    pixels = tissue.uns["spatial"]["S3"]["images"]["hires"][150:650, 150:650]
    bare = SpatialData(images={"he": Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))})
    bare.write(tmp_path / "bare.zarr")
    st_gchb.pp.tile_tissue(bare, um_per_px=1.0, spacing_um=110, name="spots")
    bare.write(tmp_path / "spots.zarr")
    slides = [tmp_path / "bare.zarr", tmp_path / "spots.zarr"]
    before = content_of(slides[0]), content_of(slides[1])
    report = predict_slides(model, slides, tmp_path / "out", um_per_px=1.0)
    assert report["status"].tolist() == ["done", "done"]
    assert before == (content_of(slides[0]), content_of(slides[1]))
    loaded = STGCHB.load(model, accelerator="cpu")
    grid = st_gchb.pp.tile_tissue(SpatialData.read(slides[0]), um_per_px=1.0, spacing_um=100)
    for query, row in zip((grid, SpatialData.read(slides[1])), report.itertuples(), strict=True):
        expected = loaded.predict(query, um_per_px=1.0)
        found = anndata.read_h5ad(row.output)
        np.testing.assert_array_equal(found.layers["st_gchb"], expected.layers["st_gchb"])
        assert [*found.uns["spatial"].values()][0]["images"]["hires"].ndim == 3
    # By way of features, too.
    features = embed_slides(slides[1:], tmp_path / "features", um_per_px=1.0, **TEXTURE)
    predict_slides(model, features["output"], tmp_path / "again")
    same(tmp_path / "out" / "spots.h5ad", tmp_path / "again" / "spots.h5ad")


@pytest.mark.usefixtures("small_patches", "narrow_encoder")
def test_a_model_that_trained_the_last_stage(images, tmp_path):
    """Its maps, hundreds of times larger than features, are gone with the slide."""
    reference = st_gchb.datasets.synthetic_tissue(2, n_rows=4, n_cols=4, n_genes=40, seed=3)
    options = {"encoder": "resnet18", "weights": None, "patch_um": 150, "n_views": 1}
    st_gchb.pp.embed_patches(reference, **options, slice_key="slice", save_feature_maps=True)
    STGCHB.setup_anndata(reference, slice_key="slice")
    small = {"n_top_genes": 20, "k": 10, "n_image_adapter": 8, "n_hidden": 16, "n_embedding": 16}
    model = STGCHB(reference, "bleep", finetune="last_stage", **small)
    model.train(max_epochs=1, calibrate=False, enable_progress_bar=False, accelerator="cpu")
    model.save(tmp_path / "model")
    features = embed_slides(images[:1], tmp_path / "features", spacing_um=150.0, um_per_px=1.0, **options)
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "temporary").mkdir()
        patch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        patch.setenv("ST_GCHB_CACHE", str(tmp_path / "cache"))
        slides = [images[0], features["output"][0]]
        table = pd.DataFrame({"path": slides, "name": ["image", "features"], "spacing_um": [150.0, None]})
        report = predict_slides(tmp_path / "model", table, tmp_path / "out", um_per_px=1.0)
        assert report["status"].tolist() == ["done", "done"], report["message"].tolist()
        assert not list((tmp_path / "temporary").iterdir())
        assert not (tmp_path / "cache").exists()
    query = st_gchb.pp.tile_tissue(images[0], spacing_um=150, um_per_px=1.0)
    expected = STGCHB.load(tmp_path / "model", accelerator="cpu").predict(query).layers["st_gchb"]
    for output in report["output"]:
        np.testing.assert_array_equal(anndata.read_h5ad(output).layers["st_gchb"], expected)


def test_the_fault_of_a_slide_is_its_row(model, images, tissue, tmp_path):
    (tmp_path / "damaged.png").write_bytes(images[0].read_bytes()[:5000])
    Image.fromarray(np.full((900, 900, 3), 242, np.uint8)).save(tmp_path / "glass.png")
    tissue[tissue.obs["slice"] == "S3"].copy().write_h5ad(tmp_path / "spots.h5ad")
    table = pd.DataFrame(
        {
            "path": [images[0], "none.svs", "damaged.png", "glass.png", "spots.h5ad", "outs", images[1], images[2]],
            "name": ["good", "none", "damaged", "glass", "spots", "folder", "sizeless", "good2"],
            "um_per_px": ["1"] * 6 + ["", "1"],
            "spacing_um": 100,
        }
    )
    (tmp_path / "outs").mkdir()
    table.to_csv(tmp_path / "slides.csv", index=False)
    report = predict_slides(model, tmp_path / "slides.csv", tmp_path / "out").set_index("name")
    assert report["status"].to_dict() == dict.fromkeys(report.index, "failed") | {"good": "done", "good2": "done"}
    said = report["message"]
    assert said["none"].startswith("MissingFileError: ")
    assert "Every worker has to see the slides" in said["none"]
    assert said["damaged"].startswith("ImageError")
    assert said["glass"].startswith("TissueError")
    assert "brings its own" in said["spots"]
    assert said["folder"].startswith("InputError")
    assert said["sizeless"].startswith("ScaleError")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.h5ad")) == ["good.h5ad", "good2.h5ad"]
    assert not list((tmp_path / "out" / "receipts").glob("*.begun"))
    # Mended, and nothing else is touched.
    table["um_per_px"] = 1.0
    table.loc[table["name"] == "spots", "spacing_um"] = np.nan
    table["path"] = [str(tmp_path / path) for path in table["path"]]
    again = predict_slides(model, table, tmp_path / "out").set_index("name")["status"]
    assert again[["good", "good2", "sizeless", "spots"]].tolist() == ["kept", "kept", "done", "done"]


def test_what_is_warned_of_is_in_the_row(model, images, tmp_path, monkeypatch):
    make = _work._make

    def warned(*arguments):
        st_gchb._logging.logger.warning("Left out: %d spots.", 3)
        # The process that waits for this slide, where the worker is a thread of it.
        _call.logger.warning("A1 failed", extra=_work.OF_CALL)
        return make(*arguments)

    monkeypatch.setattr(_work, "_make", warned)
    report = embed(images[:1], tmp_path)
    assert report["status"].tolist() == ["done"]
    assert report["message"].tolist() == ["Left out: 3 spots."]
    assert embed(images[:1], tmp_path)["message"].tolist() == ["Left out: 3 spots."]


def test_the_same_call_again_does_nothing(few, tmp_path, computed):
    first = embed(few, tmp_path / "out")
    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5ad")}
    # Neither memory, device nor threads change what is made.
    again = embed(few, tmp_path / "out", memory_mb=200, device="cpu", threads=1)
    assert again["status"].tolist() == ["kept"] * 3
    assert computed == {"A1": 1, "A2": 1, "A3": 1}
    assert changed == {path: path.stat().st_mtime_ns for path in changed}
    columns = ["name", "path", "n_spots", "seconds", "worker", "output"]
    pd.testing.assert_frame_equal(first[columns], again[columns])
    # Fewer, more, in another order.
    assert embed([few[2]], tmp_path / "out")["status"].tolist() == ["kept"]


@pytest.mark.parametrize("fault", ["no receipt", "half a receipt", "no result", "half a result", "a killed worker"])
def test_after_a_crash_only_what_is_missing_is_done(few, embedded, out, computed, same, fault):
    receipt, result = out / "receipts" / "A2.json", out / "A2.h5ad"
    if fault == "no receipt":
        receipt.unlink()
    elif fault == "half a receipt":
        receipt.write_text(receipt.read_text()[:100])
    elif fault == "no result":
        result.unlink()
    elif fault == "half a result":
        result.write_bytes(result.read_bytes()[:1000])
    else:
        receipt.unlink()
        result.rename(out / ".A2.k3jd_9ab.h5ad")
        shutil.copy(out / "A1.h5ad", out / ".A2.B.k3jd_9ab.h5ad")
        (out / "receipts" / "A2.begun").write_text("0123 host:7 2026-01-01\n" * 5)
    report = embed(few, out)
    assert report["status"].tolist() == ["kept", "done", "kept"]
    assert report["attempts"].tolist() == [1, 1, 1]
    assert computed == {"A2": 1}
    same(embedded / "A2.h5ad", result)
    left = [path.name for path in out.iterdir() if path.name.startswith(".")]
    # What another slide's worker is writing is not touched.
    assert left == ([".A2.B.k3jd_9ab.h5ad"] if fault == "a killed worker" else [])


def test_a_crash_between_result_and_receipt(few, out, computed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_work, "sign", lambda out, receipt: (_ for _ in ()).throw(OSError("disk full")))
        report = embed(few[:1], out, spacing_um=260.0)
    assert report["status"].tolist() == ["failed"]
    assert report["message"].tolist() == ["OSError: disk full"]
    # The file is of 260 µm; the first call's receipt may not speak of it.
    assert embed(few, out)["status"].tolist() == ["done", "kept", "kept"]
    assert computed == {"A1": 2}


@pytest.mark.parametrize("change", ["spacing", "grid", "patch", "precision", "slide", "version", "path"])
def test_what_changed_is_done_again(few, out, tmp_path, monkeypatch, change):
    changes = {"spacing": {"spacing_um": 260.0}, "grid": {"grid": "square"}, "patch": {"patch_um": 140.0}}
    changes["precision"] = {"precision": "bfloat16"}
    if change == "slide":
        os.utime(few[0], ns=(1, 1))
    elif change == "version":
        monkeypatch.setattr(_work, "__version__", "99")
    elif change == "path":
        (tmp_path / "elsewhere").mkdir()
        few[0] = shutil.copy2(few[0], tmp_path / "elsewhere" / "A1.png")
    expected = ["done", "kept", "kept"] if change in ("slide", "path") else ["done"] * 3
    assert embed(few, out, **changes.get(change, {}))["status"].tolist() == expected
    assert embed(few, out, **changes.get(change, {}))["status"].tolist() == ["kept"] * 3


def test_another_model_or_question_is_done_again(model, few, tmp_path, computed):
    embed(few[:1], tmp_path / "features", **READ)
    slides = sorted((tmp_path / "features").glob("*.h5ad"))
    assert set(predict_slides(model, slides, tmp_path / "out")["status"]) == {"done"}
    assert set(predict_slides(model, slides, tmp_path / "out", k=5)["status"]) == {"done"}
    assert set(predict_slides(model, slides, tmp_path / "out", k=5)["status"]) == {"kept"}
    assert set(predict_slides(model, slides, tmp_path / "out", k=5, layer="all_genes")["status"]) == {"done"}
    other = STGCHB.load(model, accelerator="cpu")
    other.model_id_ = "0" * 16
    other.save(tmp_path / "model")
    assert set(predict_slides(tmp_path / "model", slides, tmp_path / "out", k=5)["status"]) == {"done"}


def test_a_result_of_other_settings_does_not_stay_where_the_slide_fails(few, out):
    few[0].write_bytes(b"no image")
    report = embed(few, out)
    assert report["status"].tolist() == ["failed", "kept", "kept"]
    assert sorted(path.name for path in out.glob("*.h5ad")) == ["A2.h5ad", "A3.h5ad"]
    assert not (out / "receipts" / "A1.json").exists()


def test_features_that_are_there_need_no_image(model, few, tmp_path, same):
    predict_slides(model, few[:2], tmp_path / "direct", **READ)
    report = embed(few[:2], tmp_path / "features", **READ)
    for path in few:
        path.unlink()
    kept = anndata.read_h5ad(report["output"][0])
    rule = st_gchb.pp.FeatureSet.from_uns(kept.uns["X_patch"])
    assert rule == STGCHB.load(model, accelerator="cpu").rules_.features
    again = predict_slides(model, report["output"], tmp_path / "from_features")
    assert set(again["status"]) == {"done"}
    for name in report["name"]:
        same(tmp_path / "direct" / f"{name}.h5ad", tmp_path / "from_features" / f"{name}.h5ad")


def test_features_are_a_reference_to_train_on(tissue, tmp_path):
    """Counts stay with them."""
    for name in ("S1", "S2"):
        tissue[tissue.obs["slice"] == name].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    report = embed_slides([tmp_path / "S1.h5ad", tmp_path / "S2.h5ad"], tmp_path / "out", **TEXTURE)
    parts = {row.name: anndata.read_h5ad(row.output) for row in report.itertuples()}
    reference = anndata.concat(parts, label="slice", index_unique="-", uns_merge="first")
    assert reference.n_vars == tissue.n_vars
    STGCHB.setup_anndata(reference, slice_key="slice")
    trained = STGCHB(reference, n_top_genes=20)
    assert trained._fit().rules.features.first.encoder == "texture"


def test_the_receipt_says_what_a_result_was_made_of(few, tmp_path):
    report = embed(few[:1], tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "receipts" / "A1.json").read_text())
    result = tmp_path / "out" / "A1.h5ad"
    assert stored["sha256"] == st_gchb._artifacts.sha256_of(result)
    assert stored["size"] == result.stat().st_size
    assert stored["made_of"]["content"]["slide"]["bytes"] == few[0].stat().st_size
    assert stored["made_of"]["settings"]["rule"]["encoder"] == "texture"
    assert set(stored["seconds"]) == {"read", "encode", "write"}
    assert stored["n_spots"] == report["n_spots"][0] == anndata.read_h5ad(result).n_obs


def test_the_content_of_folders(tmp_path):
    store = tmp_path / "a.zarr"
    (store / "images" / "0").mkdir(parents=True)
    (store / "images" / "0" / "c").write_bytes(b"123")
    before = content_of(store)
    assert (before["files"], before["bytes"]) == (1, 3)
    (store / "images" / "0" / "d").write_bytes(b"12345")
    assert content_of(store)["bytes"] == 8
    # MIRAX: a small file, and a folder of its name that holds the pixels.
    (tmp_path / "slide.mrxs").write_bytes(b"1")
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "Data0000.dat").write_bytes(b"1234")
    assert content_of(tmp_path / "slide.mrxs")["bytes"] == 5
    assert content_of(tmp_path / "a.zarr" / "images" / "0" / "c")["files"] == 1


def test_a_folder_that_cannot_be_written_to(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written to.*Name another folder"):
        embed(few, tmp_path / "file" / "out")
