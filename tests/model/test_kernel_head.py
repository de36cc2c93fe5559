"""The kernel head in a model: its share of predictions, its folds, its place in saved folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from safetensors.numpy import load_file, save_file

import st_gchb
from st_gchb._artifacts import digest, sha256_of
from st_gchb.errors import InputError, ModelFileError
from st_gchb.model import STGCHB
from st_gchb.retrieval import fit_kernel_head

SIZES = (60.0, 150.0)
HEAD = ["kernel.points", "kernel.scales", "kernel.coefficients", "kernel.scores"]


@pytest.fixture(scope="module")
def slices(tissue: AnnData) -> AnnData:
    """Three slices with texture features at two sizes."""
    adata = tissue.copy()
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=SIZES, n_views=1, cache=False)
    adata.obsm["share"] = np.random.default_rng(0).random((adata.n_obs, 2))
    return adata


def trained(slices: AnnData, calibrate: bool = False, **settings) -> STGCHB:
    adata = slices[slices.obs["slice"] != "S3"].copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    retrieval_alone = {"ridge_weight": 0.0, "kernel_weight": 0.0, "sharpening": 0.0}
    model = STGCHB(adata, n_top_genes=30, k=30, seed=1, **(retrieval_alone | settings))
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=calibrate)
    return model


@pytest.fixture(scope="module")
def model(slices: AnnData) -> STGCHB:
    return trained(slices, kernel_weight=0.6)


@pytest.fixture(scope="module")
def none(slices: AnnData) -> STGCHB:
    """A model without a share of the kernel head."""
    return trained(slices)


@pytest.fixture(scope="module")
def alone(slices: AnnData) -> STGCHB:
    """A model of the kernel head alone."""
    return trained(slices, kernel_weight=1.0)


@pytest.fixture
def held_out(slices: AnnData) -> AnnData:
    return slices[slices.obs["slice"] == "S3"].copy()


def values(model: STGCHB, query: AnnData, layer: str | None = None) -> np.ndarray:
    return np.asarray(model.predict(query, slice_key="slice", layer=layer).layers["st_gchb"])


@pytest.mark.parametrize("layer", [None, "all_genes", "share"])
def test_its_share_is_the_weight(model, alone, none, held_out, layer):
    # What is beyond the reference's range is clipped, in each of the three.
    found, kernel, retrieved = (values(one, held_out, layer) for one in (model, alone, none))
    inside = (kernel > kernel.min(0)) & (kernel < kernel.max(0)) & (kernel > 0)
    np.testing.assert_allclose(found[inside], (0.6 * kernel + 0.4 * retrieved)[inside], atol=1e-5)
    assert not np.allclose(kernel, retrieved, atol=0.05)


def test_each_size_has_kernels_of_its_own_in_context_and_of_the_patch_alone(model):
    head = model.bank_.kernel_head
    assert head.scales.shape == (4,)
    assert head.coefficients.shape == (2, len(model.bank_), 20)
    assert head.scores.shape == (len(model.bank_), 20)
    np.testing.assert_allclose(head.loadings(model.bank_.table(None).values).shape, (20, 30))


def test_one_encoder_and_size_is_one_part(slices):
    adata = slices.copy()
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    assert trained(adata, kernel_weight=0.5).bank_.kernel_head.scales.shape == (2,)


def test_without_a_context_there_is_no_second_kernel(slices):
    model = trained(slices, kernel_weight=0.5, context_rings=0, context_surroundings=0)
    assert model.rules_.kernel.patch is None
    assert model.bank_.kernel_head.scales.shape == (2,)


def test_without_a_share_there_is_none(none):
    assert none.bank_.kernel_head is None


def test_a_prediction_says_its_share(model, held_out):
    assert model.predict(held_out, slice_key="slice").uns["st_gchb"]["kernel_weight"] == 0.6


def test_the_held_out_counts_change_nothing(model, held_out):
    before = values(model, held_out)
    held_out.X = held_out.X[::-1].copy()
    np.testing.assert_array_equal(values(model, held_out), before)


def test_calibration_fits_it_without_the_slice_that_is_held_out(slices, monkeypatch):
    seen = []

    def watched(inputs, *args, **options):
        seen.append(len(inputs))
        return fit_kernel_head(inputs, *args, **options)

    monkeypatch.setattr("st_gchb.model._fit.fit_kernel_head", watched)
    model = trained(slices, calibrate=True, kernel_weight=0.6)
    sizes = model.bank_.origin["slice"].value_counts()
    assert seen == [sizes.sum(), sizes["S2"], sizes["S1"]]


def test_a_loaded_model_predicts_the_same(model, held_out, tmp_path):
    model.save(tmp_path / "model")
    loaded = STGCHB.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(values(loaded, held_out), values(model, held_out))
    np.testing.assert_array_equal(values(loaded, held_out, "all_genes"), values(model, held_out, "all_genes"))
    loaded.save(tmp_path / "again")
    for name in ("network.safetensors", "reference.safetensors"):
        assert sha256_of(tmp_path / "again" / name) == sha256_of(tmp_path / "model" / name)


def edit(folder: Path, change) -> None:
    """Change the reference's arrays, and hash the folder anew."""
    arrays = load_file(folder / "reference.safetensors")
    change(arrays)
    save_file(arrays, folder / "reference.safetensors")
    record = json.loads((folder / "model.json").read_text())
    record["sha256"]["reference.safetensors"] = sha256_of(folder / "reference.safetensors")
    (folder / "model.json").write_text(json.dumps(record | {"record_sha256": digest(record)}))


def shortened(name):
    def change(arrays):
        arrays[name] = np.ascontiguousarray(arrays[name][:-1])

    return change


def absent(name):
    return lambda arrays: arrays.pop(name)


def not_finite(name):
    def change(arrays):
        arrays[name].flat[0] = np.nan

    return change


@pytest.mark.parametrize("name", HEAD)
@pytest.mark.parametrize("how", [absent, shortened, not_finite])
def test_a_head_that_does_not_fit_is_told(model, held_out, tmp_path, how, name):
    model.save(tmp_path / "model")
    edit(tmp_path / "model", how(name))
    with pytest.raises(ModelFileError, match=name if how is not shortened else "kernel"):
        STGCHB.load(tmp_path / "model")


@pytest.mark.parametrize(
    "settings", [{"kernel_weight": 1.5}, {"kernel_weight": -0.1}, {"kernel_rank": 0}, {"kernel_components": "many"}]
)
def test_settings_out_of_range_are_told(slices, settings):
    adata = slices[slices.obs["slice"] != "S3"].copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    with pytest.raises(InputError, match=next(iter(settings))):
        STGCHB(adata, **settings)
