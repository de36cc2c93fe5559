"""Seeds decide everything that is random and touch nothing of the user's; every preset and ablation runs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from st_gchb._errors import InputError
from st_gchb.model import STGCHB, ModelSettings

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
# The paper's epochs take minutes: its settings are what is tried here, not its patience.
SHORT = {"pretrain_epochs": 1, "max_epochs": 1}
NARROW = SHORT | {"n_image_adapter": 32, "n_hidden": 32}


def fresh(reference: AnnData) -> AnnData:
    adata = reference.copy()
    STGCHB.setup_anndata(adata)
    return adata


def run(
    reference: AnnData,
    query: AnnData,
    preset: str = "default",
    *,
    seed: int = 0,
    calibrate: bool = False,
    **settings: Any,
) -> tuple[STGCHB, AnnData]:
    model = STGCHB(fresh(reference), preset, seed=seed, n_top_genes=15, **settings)
    model.train(calibrate=calibrate, **QUIET)
    return model, model.predict(query)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_seed_gives_the_same_numbers(reference, held_out, preset):
    settings = NARROW if preset == "paper" else {"max_epochs": 2}
    first, a = run(reference, held_out, preset, calibrate=True, **settings)
    # Whatever the user draws in between.
    torch.rand(3)
    np.random.random()  # noqa: NPY002
    second, b = run(reference, held_out, preset, calibrate=True, **settings)
    np.testing.assert_array_equal(a.layers["st_gchb"], b.layers["st_gchb"])
    np.testing.assert_array_equal(a.obs["st_gchb_confidence"], b.obs["st_gchb_confidence"])
    np.testing.assert_array_equal(a.var["st_gchb_expected_pcc"], b.var["st_gchb_expected_pcc"])
    assert first.model_id_ == second.model_id_
    third, c = run(reference, held_out, preset, seed=1, **settings)
    assert not np.array_equal(a.layers["st_gchb"], c.layers["st_gchb"])
    assert third.model_id_ != first.model_id_
    assert c.uns["st_gchb"]["seed"] == 1


def test_the_users_seed_is_not_what_decides(reference, held_out):
    predictions = []
    for mine in (1, 2):
        torch.manual_seed(mine)
        np.random.seed(mine)  # noqa: NPY002
        random.seed(mine)
        predictions.append(run(reference, held_out, max_epochs=2)[1].layers["st_gchb"])
    np.testing.assert_array_equal(*predictions)


def state_of_generators():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (kind, keys.tolist(), rest),
        "python": random.getstate(),
        "gradients": torch.is_grad_enabled(),
    }


def test_generators_of_the_user_are_left_alone(reference, query, tmp_path):
    torch.manual_seed(7)
    before = state_of_generators()
    steps = {}
    adata = reference.copy()
    steps["set up"] = lambda: STGCHB.setup_anndata(adata)
    steps["fit"] = lambda: steps.setdefault("model", STGCHB(adata, n_top_genes=15))
    steps["train"] = lambda: steps["model"].train(max_epochs=1, **QUIET)
    steps["predict"] = lambda: steps["model"].predict(query)
    steps["save"] = lambda: steps["model"].save(tmp_path / "model")
    steps["load"] = lambda: STGCHB.load(tmp_path / "model", accelerator="cpu")
    for name in ("set up", "fit", "train", "predict", "save", "load"):
        steps[name]()
        after = state_of_generators()
        assert [key for key in before if before[key] != after[key]] == [], name


PRESETS = {
    "paper": {},
    "bleep": {},
    "paper, A": {"bottleneck": 0.0},
    "paper, B": {"n_expression_components": None},
    "paper, C": {"dgi_image": 0.0},
    "paper, D": {"dgi_expression": 0.0},
    "default, gcn": {"image_graph": "gcn", "expression_graph": "gcn_sum"},
    "default, nhsic": {"dependence": "nhsic", "sigma": 10.0, "beta": 25.0},
    "default, slices": {"sampler": "slices", "batch_size": 16},
    "default, no PCA": {"n_expression_components": None, "n_image_components": None},
    "default, adapter": {"n_image_adapter": 32, "soft_targets": False},
    "default, all": {"validation_share": 0.0, "ridge_weight": 1.0},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_and_ablations_run(reference, query, name):
    preset = name.split(",")[0]
    short = {"max_epochs": 1}
    if preset == "paper":
        short = NARROW if PRESETS[name] else SHORT
    model, prediction = run(reference, query, preset, **(short | PRESETS[name]))
    values = prediction.layers["st_gchb"]
    assert values.shape == (query.n_obs, 15)
    assert np.isfinite(values).all()
    assert (values.std(0) > 0).any()
    assert prediction.uns["st_gchb"]["preset"] == preset
    losses = {key.removesuffix("_train") for key in model.history if key.endswith("_train")}
    off = {key for key in ("dgi_image", "dgi_expression") if getattr(model.settings, key) == 0}
    assert losses & off == set()
    if model.settings.bottleneck == 0:
        assert not any(key.startswith("bottleneck") for key in losses)
    else:
        assert any(key.startswith("bottleneck") for key in losses)
    for key, frame in model.history.items():
        assert np.isfinite(frame.to_numpy(float)).any(), key


def test_the_presets_are_what_they_are_called(model):
    def settings(preset, **changed):
        return STGCHB(preset=preset, registry=model.registry, **changed).settings

    paper, bleep, default = settings("paper"), settings("bleep"), settings("default")
    assert default == ModelSettings(context_surroundings=12, ridge_weight=0.0, kernel_weight=0.6, sharpening=0.4)
    assert (paper.paper_equations, paper.beta, paper.sigma, paper.dependence) == (True, 25.0, 10.0, "nhsic")
    assert (paper.k, paper.weighting, paper.batch_size) == (50, "mean", 16)
    assert (bleep.image_graph, bleep.expression_graph) == ("none", "none")
    assert (bleep.dgi_image, bleep.dgi_expression, bleep.bottleneck) == (0, 0, 0)
    assert settings("paper", k=7).k == 7


def test_the_graph_matters_to_those_who_have_one(reference, held_out):
    """Without graph, DGI and ridge head a spot's answer does not depend on its neighbors' patches."""
    for preset, alone in (("bleep", True), ("default", False)):
        model, whole = run(reference, held_out, preset, max_epochs=1)
        changed = held_out.copy()
        far = np.linalg.norm(changed.obsm["spatial"] - changed.obsm["spatial"][0], axis=1) > 0
        changed.obsm["X_patch"][far] = changed.obsm["X_patch"][far][::-1]
        again = model.predict(changed)
        same = np.allclose(again.layers["st_gchb"][0], whole.layers["st_gchb"][0], atol=1e-5)
        assert same == alone, preset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "papre"}, "'papre'.*bleep.*paper"),
        ({"n_topgenes": 100}, "'n_topgenes'.*did you mean.*n_top_genes"),
        ({"bottelneck": 0}, "bottleneck"),
        ({"xyzzy": 0}, "it takes n_top_genes"),
        ({"k": 0}, "k=0; expected a whole number of 1 or more"),
        ({"dropout": 1.5}, "dropout=1.5.*between 0 and 1"),
        ({"batch_size": 1}, "batch_size=1; expected a whole number of 2 or more"),
        ({"image_graph": "gat"}, "'gat'.*sage"),
        ({"weighting": "median"}, "'median'.*softmax"),
        ({"ridge_weight": -0.1}, "ridge_weight=-0.1"),
    ],
)
def test_settings_that_are_none(reference, arguments, message, unchanged):
    STGCHB.setup_anndata(reference)
    with unchanged(reference), pytest.raises(InputError, match=message):
        STGCHB(reference, **arguments)
