"""A model that trains the image encoder's last stage: on cached maps, with all else as in a model that does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

import st_gchb
from st_gchb._errors import DeviceError, InputError, MissingFileError, MissingKeyError
from st_gchb.evaluate import fit_predict
from st_gchb.model import STGCHB, _fit as fitting
from st_gchb.pp.patches import _feature_maps as maps_module, _last_stage as stages, with_maps
from trainings import narrow_resnet, shrink_patches

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class Stop(Callback):
    """Raises at the first step of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power")


SMALL = {
    "n_top_genes": 20,
    "k": 10,
    "n_image_adapter": 8,
    "n_hidden": 16,
    "n_embedding": 16,
    "pretrain_epochs": 1,
    "max_epochs": 1,
    "batch_size": 16,
}


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # The fixture for single tests comes too late for the maps of all of them.
        patch.setenv("ST_GCHB_CACHE", str(tmp_path_factory.mktemp("cache")))
        shrink_patches(patch)
        narrow_resnet(patch)
        yield


@pytest.fixture(scope="module")
def slices(_small):
    """Three slices of about 16 spots with features and maps of an untrained ResNet; not to be changed."""
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=4, n_cols=4, n_genes=40, seed=3)
    st_gchb.pp.embed_patches(
        adata, encoder="resnet18", weights=None, patch_um=150, n_views=1, slice_key="slice", save_feature_maps=True
    )
    return adata


@pytest.fixture
def ref(slices):
    return slices[slices.obs["slice"] != "S3"].copy()


@pytest.fixture
def query(slices):
    """S3 with H&E alone."""
    part = slices[slices.obs["slice"] == "S3"]
    images = {"S3": slices.uns["spatial"]["S3"]}
    return type(slices)(obs=part.obs[["slice"]].copy(), obsm={"spatial": part.obsm["spatial"]}, uns={"spatial": images})


def new(ref, **settings):
    adata = ref.copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    return STGCHB(adata, "paper", **SMALL | {"finetune": "last_stage"} | settings)


@pytest.fixture(scope="module")
def trained(slices):
    model = new(slices[slices.obs["slice"] != "S3"].copy(), ridge_weight=0.4)
    model.train(**QUIET)
    return model


def weights_of(model):
    """Weights of a model, which are drawn when its training begins."""
    if not hasattr(model, "module"):
        model._fit()
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_before_training_the_stage_makes_the_features_of_the_maps(ref):
    model, rows = new(ref), np.arange(ref.n_obs)
    model._fit()
    with torch.inference_mode():
        made = model.module.network.stage(torch.from_numpy(with_maps(ref, "X_patch").maps[rows])).numpy()
    expected = ref.obsm["X_patch"]
    np.testing.assert_allclose(made, expected, atol=2e-3 * np.abs(expected).max())


def test_convolutions_are_trained_and_batch_norm_is_not(ref, trained):
    before, after = weights_of(new(ref)), weights_of(trained)
    stage = {name for name in before if name.startswith("network.stage.")}
    changed = {name for name in stage if not torch.equal(before[name], after[name])}
    assert changed == {name for name in stage if "conv" in name or name.endswith("downsample.0.weight")}
    kept = {name.split(".")[-1] for name in stage - changed}
    assert kept == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_all_else_sees_the_features_as_they_were(ref, trained):
    plain = new(ref, finetune="none", ridge_weight=0.4)
    plain.train(**QUIET)
    assert plain.bank_.linear.size
    np.testing.assert_array_equal(trained.bank_.linear, plain.bank_.linear)
    np.testing.assert_array_equal(trained.bank_.appearance, plain.bank_.appearance)
    assert trained.calibration_ is not None
    assert plain.module.network.stage is None
    assert plain.rules_.features.feature_maps is False


def test_embeddings_are_of_what_the_trained_stage_gives(ref, trained):
    maps = torch.from_numpy(with_maps(ref, "X_patch").maps[np.arange(ref.n_obs)])
    graph = trained.adata.obsp["spatial_connectivities"].tocoo()
    edges = torch.from_numpy(np.stack([graph.row, graph.col]).astype(np.int64))
    network = trained.module.network.eval()
    with torch.inference_mode():
        after, before = (
            network.embed_image(features, edges).numpy()
            for features in (network.stage(maps), torch.from_numpy(ref.obsm["X_patch"]))
        )
    np.testing.assert_allclose(trained.bank_.image_keys, after, atol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(ref, "image"), after, atol=1e-5)
    np.testing.assert_allclose(trained.predict(ref).obsm["X_st_gchb"], after, atol=1e-5)
    assert np.abs(after - before).max() > 1e-3


def test_a_query_gets_maps_by_the_rule(trained, slices, query, tmp_path, monkeypatch):
    with_own = slices[slices.obs["slice"] == "S3"].copy()
    expected = trained.predict(with_own)
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path))
    found = trained.predict(query)
    assert list(tmp_path.rglob("*.maps.safetensors"))
    np.testing.assert_allclose(found.obsm["X_st_gchb"], expected.obsm["X_st_gchb"], atol=1e-4)
    np.testing.assert_allclose(
        trained.get_latent_representation(query, "image"),
        trained.get_latent_representation(with_own, "image"),
        atol=1e-4,
    )
    # Features alone do not do: both are made from the image.
    del with_own.uns["X_patch"]["maps"]
    with_own.uns["spatial"] = query.uns["spatial"]
    np.testing.assert_allclose(trained.predict(with_own).obsm["X_st_gchb"], expected.obsm["X_st_gchb"], atol=1e-4)


def test_a_model_is_loaded_without_the_encoders_weights(trained, query, tmp_path, monkeypatch):
    expected = trained.predict(query)
    trained.save(tmp_path / "model")

    def refuse(*_, **__):
        raise AssertionError("weights were asked for")

    with monkeypatch.context() as patched:
        patched.setattr(stages, "encoder_of_spec", refuse)
        patched.setattr("st_gchb.pp.encoders._backbones._download", refuse)
        loaded = STGCHB.load(tmp_path / "model", accelerator="cpu")
    assert_same(weights_of(trained), weights_of(loaded))
    np.testing.assert_array_equal(loaded.predict(query).layers["st_gchb"], expected.layers["st_gchb"])


def test_maps_on_disk_train_the_same_network(ref, monkeypatch):
    held, mapped = new(ref), None
    held.train(**QUIET, calibrate=False)
    monkeypatch.setattr(maps_module, "MEMORY_BYTES", 1000)
    mapped = new(ref)
    assert isinstance(mapped._fit().features.maps._sources[0], np.memmap)
    mapped.train(**QUIET, calibrate=False)
    assert_same(weights_of(held), weights_of(mapped))


def test_a_step_holds_maps_of_a_bounded_size(ref, monkeypatch, caplog):
    maps = new(ref)._fit().features.maps
    monkeypatch.setattr(fitting, "_STEP_BYTES", 10 * 2 * int(np.prod(maps.shape[1:])))
    model = new(ref, max_epochs=1)
    assert fitting.default_block_size(model._fit()) == 10
    with caplog.at_level("INFO", logger="st_gchb"):
        model.train(**QUIET, calibrate=False)
    assert "more than 10 spots (block_size)" in caplog.text


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


@pytest.mark.parametrize("plan", [{}, {"optimizer": "Custom", "optimizer_creator": fused_adamw}])
def test_training_goes_on_where_it_ended(ref, tmp_path, plan):
    """To the bit, with the optimizer that walks through memory too: the stage's weights are held channels last."""
    options = QUIET | {"calibrate": False, "checkpoint_dir": tmp_path, "plan_kwargs": plan}
    two = {"pretrain_epochs": 0, "max_epochs": 2}
    expected = new(ref, **two)
    expected.train(**options)
    stopped = new(ref, **two)
    before = weights_of(stopped)
    with pytest.raises(RuntimeError, match="power"):
        stopped.train(**options, callbacks=[Stop(epoch=1)])
    assert_same(before, weights_of(stopped))
    again = new(ref, **two)
    again.train(**options, resume=True)
    assert_same(weights_of(expected), weights_of(again))


def test_folds_of_an_evaluation_find_their_maps(slices):
    settings = {name: value for name, value in SMALL.items() if name != "n_top_genes"}
    method = partial(fit_predict_panel, finetune="last_stage", **settings)
    result = st_gchb.evaluate.evaluate_fold(slices, "S3", methods={"last stage": method, "mean": mean}, n_top_genes=20)
    assert np.isfinite(result.table().to_numpy(float)[:, 0]).all()


def fit_predict_panel(task, **settings):
    return fit_predict(task, "paper", **settings).layers["st_gchb"]


def mean(task):
    return st_gchb.evaluate.METHODS["mean"](task)


def test_what_cannot_go_together_is_refused_at_the_door(ref):
    for settings in ({"context_rings": 1}, {"center_slices": True}):
        with pytest.raises(InputError, match=r"finetune.*context_rings=0 and center_slices=False"):
            new(ref, **settings)
    with pytest.raises(InputError, match="'last_stage'"):
        new(ref, finetune="layer4")
    with pytest.raises(InputError, match="finetune_lr_factor"):
        new(ref, finetune_lr_factor=0.0)
    with pytest.raises(DeviceError, match=r"devices=2.*finetune"):
        new(ref).train(devices=2, **QUIET)
    del ref.uns["X_patch"]["maps"]
    with pytest.raises(MissingKeyError, match=r"embed_patches\(\.\.\., save_feature_maps=True\)"):
        new(ref).train(**QUIET)
    del ref.uns["X_patch"]
    with pytest.raises(MissingKeyError, match="embed_patches"):
        new(ref).train(**QUIET)


def test_maps_that_were_deleted_are_missed_by_name(ref, tmp_path):
    ref.uns["X_patch"]["maps"] = np.array([str(tmp_path / "gone.maps.safetensors")])
    with pytest.raises(MissingFileError, match=r"gone.*embed_patches"):
        new(ref).train(**QUIET)
    assert not Path(tmp_path / "gone.maps.safetensors").exists()


def test_components_can_be_had_too(ref):
    model = new(ref, n_image_components=4, max_epochs=1, pretrain_epochs=0)
    model.train(**QUIET, calibrate=False)
    assert model.module.network.image.fixed.matrix.shape[1] == 4
