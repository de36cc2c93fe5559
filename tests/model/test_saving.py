"""Model folders: complete, whole, and read without running anything of theirs."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from st_gchb._artifacts import write_tensors
from st_gchb._errors import InputError, MissingFileError, MissingKeyError, ModelFileError, StoreError
from st_gchb.model import STGCHB

FILES = {"model.json", "network.safetensors", "reference.safetensors", "origin.parquet"}
KEPT = ("st_gchb_confidence", "st_gchb_outlier")


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(first: AnnData, second: AnnData):
    np.testing.assert_array_equal(first.layers["st_gchb"], second.layers["st_gchb"])
    np.testing.assert_array_equal(first.obsm["X_st_gchb"], second.obsm["X_st_gchb"])
    for key in KEPT:
        np.testing.assert_array_equal(first.obs[key], second.obs[key])
    pd.testing.assert_frame_equal(first.var, second.var)
    assert first.uns["st_gchb"].keys() == second.uns["st_gchb"].keys()
    for key, value in first.uns["st_gchb"].items():
        np.testing.assert_array_equal(value, second.uns["st_gchb"][key])


def test_a_loaded_model_answers_exactly_as_the_saved_one(model, folder, query, held_out):
    loaded = STGCHB.load(folder, accelerator="cpu")
    assert_same(model.predict(query), loaded.predict(query))
    for layer in ("all_genes", "truth", "cell_types", "signed"):
        assert_same(model.predict(query, layer=layer, k=5), loaded.predict(query, layer=layer, k=5))
    for modality in ("expression", "image"):
        np.testing.assert_array_equal(
            model.get_latent_representation(modality=modality), loaded.get_latent_representation(modality=modality)
        )
        np.testing.assert_array_equal(
            model.get_latent_representation(held_out, modality), loaded.get_latent_representation(held_out, modality)
        )
    assert loaded.settings == model.settings
    assert repr(loaded) == repr(model)
    assert loaded.history.keys() == model.history.keys()
    for key, frame in model.history.items():
        np.testing.assert_allclose(loaded.history[key].to_numpy(float), frame.to_numpy(float))


def test_a_loaded_model_is_saved_as_it_was(folder, tmp_path):
    STGCHB.load(folder, accelerator="cpu").save(tmp_path / "again")
    first, second = content(folder), content(tmp_path / "again")
    assert first.keys() == second.keys() == FILES
    for name in FILES - {"origin.parquet"}:
        assert first[name] == second[name], name


def test_what_is_saved_lies_in_memory_as_it_is_loaded(model, tmp_path, monkeypatch):
    # Some libraries of linear algebra round products of the same numbers in column-major order otherwise.
    written = {}

    def write(path, arrays):
        written.update(arrays)
        write_tensors(path, arrays)

    monkeypatch.setattr("st_gchb.model._saving.write_tensors", write)
    model.save(tmp_path / "model")
    assert {"expression.matrix", "kernel.matrix", "kernel.coefficients", "appearance.components"} < written.keys()
    assert [name for name, array in written.items() if not array.flags.c_contiguous] == []


def test_nothing_is_pickled(model, query, tmp_path, monkeypatch):
    expected = model.predict(query).layers["st_gchb"]

    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    used = {torch: ("load", "save"), pickle: ("load", "loads", "dump", "dumps", "Unpickler", "Pickler")}
    for module, names in used.items():
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    model.save(tmp_path / "model")
    loaded = STGCHB.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(loaded.predict(query).layers["st_gchb"], expected)
    for path in (tmp_path / "model").iterdir():
        start = path.read_bytes()[:9]
        assert not zipfile.is_zipfile(path), path.name
        if path.suffix == ".safetensors":
            assert start[8:] == b"{"
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert start.startswith(b"PAR1")


def test_a_folder_is_replaced_only_on_request(model, folder, query):
    before = content(folder)
    with pytest.raises(InputError, match="overwrite=True"):
        model.save(folder)
    assert content(folder) == before
    (folder / "network.safetensors").write_bytes(b"damaged")
    model.save(folder, overwrite=True)
    assert content(folder).keys() == before.keys()
    assert_same(STGCHB.load(folder, accelerator="cpu").predict(query), model.predict(query))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_files_of_the_users_are_never_replaced(model, folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    results = tmp_path / "results"
    results.mkdir()
    (results / "thesis.docx").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target, name in ((folder, "notes.txt"), (results, "thesis.docx"), (tmp_path / "file", "a file")):
        with pytest.raises(InputError, match=name):
            model.save(target, overwrite=True)
    assert (folder / "notes.txt").read_text() == (results / "thesis.docx").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "results", "file"}


def test_an_empty_folder_is_filled_on_request(model, tmp_path):
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model", overwrite=True)
    assert content(tmp_path / "model").keys() == FILES


def fail_while_writing(monkeypatch, folder):
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)


def fail_while_renaming(monkeypatch, folder):
    replace = Path.replace

    def failing(self, target):
        if Path(target) == folder and not self.name.endswith(folder.name):
            full_disk()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fail", [fail_while_writing, fail_while_renaming])
@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_leaves_what_was_there(model, folder, monkeypatch, fail, there):
    target = folder if there else folder.parent / "other"
    before = {path.name: content(path) for path in folder.parent.iterdir()}
    fail(monkeypatch, target)
    with pytest.raises(OSError, match="No space left"):
        model.save(target, overwrite=True)
    assert {path.name: content(path) for path in folder.parent.iterdir()} == before


def test_training_data_may_be_saved_beside(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    assert content(tmp_path / "model").keys() == FILES | {"adata.h5ad"}
    import anndata

    assert anndata.read_h5ad(tmp_path / "model" / "adata.h5ad").n_obs == model.adata.n_obs
    STGCHB.load(tmp_path / "model", accelerator="cpu")


def test_training_goes_on_after_loading(model, folder, tissue, query):
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    loaded = STGCHB.load(folder, adata=adata, accelerator="cpu")
    assert_same(loaded.predict(query), model.predict(query))
    weights = loaded.module.state_dict()
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, weights[key]), key
    start = {key: value.clone() for key, value in weights.items()}
    loaded.train(max_epochs=1, enable_progress_bar=False, calibrate=False, accelerator="cpu", plan_kwargs={"lr": 1e-7})
    # With next to no learning rate it ends where it went on from, not where a fresh model would.
    for key, value in loaded.module.state_dict().items():
        assert torch.allclose(value, start[key], atol=1e-4), key
    np.testing.assert_allclose(
        loaded.predict(query).layers["st_gchb"], model.predict(query).layers["st_gchb"], atol=1e-2
    )
    loaded.train(max_epochs=1, enable_progress_bar=False, calibrate=False, accelerator="cpu")
    assert loaded.model_id_ != model.model_id_
    assert len(loaded.history["train_loss"]) == 4


def test_without_data_there_is_no_training(folder):
    with pytest.raises(InputError, match="adata="):
        STGCHB.load(folder, accelerator="cpu").train()


def other_genes(adata):
    return adata[:, 5:].copy()


def other_spots(adata):
    return adata[::-1].copy()


def other_slices(adata):
    adata.obs["slice"] = adata.obs["slice"].cat.rename_categories({"S1": "S9"})
    return adata


def no_slices(adata):
    del adata.obs["slice"]
    return adata


def no_features(adata):
    del adata.obsm["X_patch"]
    return adata


def other_features(adata):
    adata.uns["X_patch"]["patch_um"] = 60.0
    return adata


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_genes, "Pass the training AnnData"),
        (other_spots, "Pass the training AnnData"),
        (other_slices, "Pass the training AnnData"),
        (no_slices, "Pass the training AnnData"),
        (no_features, "X_patch.*texture.*Make them the same way"),
        (other_features, r"patch_um 60\.0.*Make it the same way"),
    ],
)
def test_other_training_data_are_refused(folder, reference, unchanged, spoil, message):
    other = spoil(reference)
    with unchanged(other), pytest.raises((InputError, MissingKeyError), match=message):
        STGCHB.load(folder, adata=other, accelerator="cpu")


def test_setup_arguments_are_shown(model, folder, capsys):
    STGCHB.view_setup_args(folder)
    shown = capsys.readouterr().out
    assert "setup_anndata" in shown
    assert "slice_key" in shown
    assert "X_patch" in shown
    registry = STGCHB.load_registry(folder)
    assert registry["model_name"] == "STGCHB"
    assert registry["setup_args"] == model.registry["setup_args"]


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_is_told(folder, name, damage):
    damage(folder / name)
    with pytest.raises(ModelFileError, match=f"{name}.*(?i:copy)"):
        STGCHB.load(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(MissingFileError, match=f"{name}.*Copy it again"):
        STGCHB.load(folder)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere.*model\.save"):
        STGCHB.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"model\.json"):
        STGCHB.load(tmp_path / "empty")


RECORDS = {
    "a list": [],
    "nothing": {},
    "another kind": {"kind": "SCVI", "format": 1, "sha256": {}},
    "no settings": {"kind": "STGCHB", "format": 1, "sha256": {}},
    "no number": {"kind": "STGCHB", "format": "one", "sha256": {}},
    "text": "STGCHB",
}


@pytest.mark.parametrize("record", RECORDS)
def test_foreign_records_are_told(folder, record):
    (folder / "model.json").write_text(json.dumps(RECORDS[record]))
    for read in (STGCHB.load, STGCHB.load_registry, STGCHB.view_setup_args):
        with pytest.raises(ModelFileError):
            read(folder)


def test_a_gene_that_was_renamed_in_the_record_is_told(folder):
    record = json.loads((folder / "model.json").read_text())
    record["genes"][0] = "ERBB2"
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelFileError, match=r"model\.json"):
        STGCHB.load(folder)


def test_files_of_two_models_do_not_mix(folder, model, reference, tmp_path):
    STGCHB.setup_anndata(reference)
    other = STGCHB(reference, n_top_genes=25, seed=1)
    other.train(max_epochs=1, enable_progress_bar=False, calibrate=False, accelerator="cpu")
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "network.safetensors", folder / "network.safetensors")
    with pytest.raises(ModelFileError, match=r"network\.safetensors"):
        STGCHB.load(folder)


def test_a_model_of_a_later_version(folder):
    record = json.loads((folder / "model.json").read_text())
    record |= {"format": 99, "version": "7.0"}
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelFileError, match=r"7\.0.*Update st-gchb"):
        STGCHB.load(folder)


@pytest.mark.parametrize("name", ["loop", "\udcff"], ids=ascii)
def test_places_where_no_folder_can_be(model, tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((StoreError, InputError), match=r"no folder can be put there|no valid Unicode"):
        model.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
