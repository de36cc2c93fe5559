"""A saved model that predicts alone: what it answers, and what it does without."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from PIL import Image
from safetensors.numpy import load_file, save_file

import st_gchb
from st_gchb._artifacts import sha256_of, with_digest
from st_gchb.errors import InputError, MissingFileError, ModelFileError, QueryError
from st_gchb.model import STGCHB, Predictor
from trainings import set_texture_patches

HEAVY = {"scvi", "lightning", "pytorch_lightning", "pyro", "scanpy", "squidpy", "torch_geometric", "spatialdata"}
HEAVY |= {"numba", "sparse", "sklearn", "distributed"}
"""Packages of training, of drawing, and of data that these queries are not."""


@pytest.fixture(scope="module")
def folder(model: STGCHB, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "model"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def slide(tissue: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    image = tissue.uns["spatial"]["S3"]["images"]["hires"]
    Image.fromarray(np.asarray(image)).save(path)
    return path


PROCESS = """
import gc, sys, hashlib, st_gchb
folder, slide, out, gene = sys.argv[1:]
packages = lambda: "imported " + " ".join(sorted({name.split(".")[0] for name in sys.modules}))

predictor = st_gchb.load_predictor(folder, device="cpu")
query = st_gchb.pp.tile_tissue(slide, um_per_px=1.0, spacing_um=100)
found = predictor.predict(query)
content = found.layers["st_gchb"].tobytes() + found.obsm["X_st_gchb"].tobytes()
print("predicted", hashlib.sha256(content).hexdigest())
print(packages())

from st_gchb.cli import main
asked = ["--model", folder, "--um-per-px", "1.0", "--spacing", "100um", "--device", "cpu", "--quiet"]
one = ["predict", "--slide", slide, "--genes", gene, "--out", out + "/one"]
for command in (one, ["predict-many", slide, "--out", out + "/many"]):
    assert main(command + asked) == 0
    print(packages())

# dask knows pydata's sparse arrays all the same, as soon as they are there.
import types
from dask.array.chunk_types import is_valid_array_chunk, is_valid_chunk_type
class SparseArray: pass
class Array(SparseArray): pass
assert not is_valid_chunk_type(Array)
sys.modules["sparse"] = types.SimpleNamespace(SparseArray=SparseArray)
assert is_valid_chunk_type(Array) and is_valid_array_chunk(Array())
assert not is_valid_chunk_type(types.SimpleNamespace) and not is_valid_array_chunk(types.SimpleNamespace())
del sys.modules["sparse"]

# torch's compiler was left out, and is there for who asks for it: here a stand-in, since it takes seconds to import.
assert "torch._dynamo" not in sys.modules
import torchvision
deferred = sys.modules["torchvision.ops.roi_align"].is_compile_supported
asked = []
compiler = types.SimpleNamespace(is_compile_supported=lambda device: asked.append(device) or "found")
sys.modules["torch._dynamo"], sys.modules["torch._dynamo.utils"] = types.ModuleType("torch._dynamo"), compiler
assert deferred("cpu") == deferred("cuda") == "found"
assert asked == ["cpu", "cuda"]

# What local workers find imported, in the process of which they are forked.
import importlib, signal
from st_gchb.cohort import WORKER_IMPORTS
importlib.import_module(WORKER_IMPORTS)
assert "PIL.PngImagePlugin" in sys.modules and "distributed.worker" in sys.modules
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

# Garbage was not collected meanwhile, which dask must not take for the user's wish.
import dask.array
dask.array.zeros((4, 4), chunks=2)[[0, 2]]
assert gc.isenabled() and gc.get_threshold()[0] > 0
print(packages())
"""
"""One process for all of it, since each takes seconds to import what it needs."""


def test_a_fresh_process_predicts_the_same_without_the_packages_of_training(
    model, folder, slide, tmp_path, monkeypatch
):
    command = [sys.executable, "-c", PROCESS, folder, slide, tmp_path, model.rules_.expression.genes[0]]
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    imported = [set(words) for words in lines if words[:1] == ["imported"]]
    for what, packages in zip(("load_predictor", "predict", "predict-many", "worker"), imported, strict=True):
        assert "torch" in packages
        assert not packages & (HEAVY - {"distributed"} if what == "worker" else HEAVY), what
    assert (tmp_path / "one" / "prediction.h5ad").is_file()
    assert list((tmp_path / "many").glob("*.h5ad"))
    # The size that it has there.
    set_texture_patches(monkeypatch)
    query = st_gchb.pp.tile_tissue(slide, um_per_px=1.0, spacing_um=100)
    expected = STGCHB.load(folder, accelerator="cpu").predict(query)
    content = expected.layers["st_gchb"].tobytes() + expected.obsm["X_st_gchb"].tobytes()
    assert ["predicted", hashlib.sha256(content).hexdigest()] in lines
    assert importlib.import_module("torch._dynamo.utils").is_compile_supported("cpu") in (True, False)


def test_all_of_the_answer_is_the_models(folder, query, held_out):
    loaded, predictor = STGCHB.load(folder, accelerator="cpu"), st_gchb.load_predictor(folder, device="cpu")
    asked = [
        (query, {}),
        (held_out, {"layer": "all_genes", "k": 7, "weighting": "mean", "return_neighbors": True}),
    ]
    for given, options in asked:
        expected, found = loaded.predict(given.copy(), **options), predictor.predict(given.copy(), **options)
        np.testing.assert_array_equal(found.layers["st_gchb"], expected.layers["st_gchb"])
        np.testing.assert_array_equal(found.X, expected.X)
        pd.testing.assert_frame_equal(found.obs, expected.obs)
        pd.testing.assert_frame_equal(found.var, expected.var)
        assert set(found.obsm) == set(expected.obsm)
        for key in expected.obsm:
            np.testing.assert_array_equal(found.obsm[key], expected.obsm[key])
        assert found.uns["st_gchb"].keys() == expected.uns["st_gchb"].keys()
        assert found.uns["st_gchb"]["model_id"] == expected.uns["st_gchb"]["model_id"]


def test_it_says_which_model_it_is(folder, model):
    predictor = st_gchb.load_predictor(folder)
    assert predictor.model_id == model.model_id_
    assert list(predictor.genes) == list(model.rules_.expression.genes)
    n_spots, n_genes = model.adata.n_obs, len(predictor.genes)
    assert (
        repr(predictor) == f"Predictor, model {model.model_id_}: {n_genes} genes, {n_spots} reference spots of 2 slices"
    )


def test_the_signature_is_that_of_the_model():
    assert Predictor.predict is STGCHB.predict


def test_random_numbers_of_the_caller_are_left_alone(folder):
    before = torch.random.get_rng_state()
    st_gchb.load_predictor(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_bad_input_is_told(folder, tmp_path, query):
    with pytest.raises(MissingFileError, match="no model folder"):
        st_gchb.load_predictor(tmp_path / "none")
    with pytest.raises(InputError, match="device='tpu' is not usable here"):
        st_gchb.load_predictor(folder, device="tpu")
    with pytest.raises(InputError, match="folder=3; expected a path"):
        st_gchb.load_predictor(3)
    predictor = st_gchb.load_predictor(folder)
    with pytest.raises(QueryError, match="Predictor.predict: query is a ndarray"):
        predictor.predict(np.zeros(3))
    with pytest.raises(InputError, match=r"Predictor.predict has no argument 'layers'; did you mean 'layer'"):
        predictor.predict(query, layers="all_genes")


def test_weights_that_do_not_fit_are_told(folder, tmp_path):
    """A file whose hash is right, and whose weights are of another network."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tensors = load_file(copy / "network.safetensors")
    name = next(key for key in tensors if key.startswith("module.network.") and key.endswith("weight"))
    tensors["module.network.of_another.weight"] = tensors.pop(name)
    save_file(tensors, copy / "network.safetensors")
    record = json.loads((copy / "model.json").read_text())
    record["sha256"]["network.safetensors"] = sha256_of(copy / "network.safetensors")
    (copy / "model.json").write_text(json.dumps(with_digest(record)))
    for load in (st_gchb.load_predictor, STGCHB.load):
        with pytest.raises(ModelFileError, match="the network's weights do not fit its settings"):
            load(copy)
