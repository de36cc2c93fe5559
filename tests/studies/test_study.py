"""The study compares what it says, and a choice is made without the slice it is scored on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import st_gchb
from st_gchb._errors import InputError, SliceError
from st_gchb.evaluate import evaluate
from st_gchb.model import PRESETS, settings_for
from studies import _choice as choice_module, _study as study_module
from studies._choice import choose
from studies._files import write_choice, write_study
from studies._study import study
from studies._variants import RIDGE_HEAD, STUDY, Variant, candidates

ENCODED = {"patch_um": 150.0, "n_views": 1, "cache": False}


@pytest.mark.parametrize("question", STUDY)
def test_every_variant_is_a_valid_model_under_a_name_of_its_own(question):
    names = [variant.name for variant in STUDY[question]]
    assert len(set(names)) == len(names) > 1
    for variant in STUDY[question]:
        settings_for(variant.preset, variant.settings)


WITH_RIDGE_HEAD = replace(PRESETS["default"], **RIDGE_HEAD)


def settings_of(variant):
    keywords = dict(variant.method.keywords)
    return settings_for(keywords.pop("preset"), keywords)


def test_the_last_step_of_together_is_the_default_with_a_ridge_head():
    assert settings_of(STUDY["together"][-1]) == WITH_RIDGE_HEAD


def test_one_variant_of_each_question_is_the_default():
    for question, variants in STUDY.items():
        if question != "dgi":  # asked on a graph encoder, which the default has not
            default = PRESETS["default"] if question == "read-out" else WITH_RIDGE_HEAD
            assert default in [settings_of(variant) for variant in variants], question


def test_the_default_with_a_ridge_head_is_among_the_candidates():
    assert WITH_RIDGE_HEAD in [settings_of(variant) for variant in candidates()]


@pytest.mark.usefixtures("sketched_figures")
def test_a_study_makes_one_table_per_question(tissue, tmp_path, monkeypatch):
    quick = [Variant("few", {"k": 5}, preset="knn"), Variant("ridge", preset="ridge")]
    coarse = Variant("coarse", {"k": 5}, preset="knn", features={"patch_um": 300.0})
    monkeypatch.setattr(study_module, "STUDY", {"one": quick, "two": [quick[0], coarse]})
    del tissue.obsm["X_patch"], tissue.uns["X_patch"]
    tissue = tissue[tissue.obs["slice"] != "S3"].copy()
    options = {"encoder": "texture", "n_top_genes": 20, "seeds": [0, 1], "features": ENCODED}
    result = study(tissue, device="cpu", **options)
    assert result.table("one").index.tolist() == ["few", "ridge"]
    assert len(result.scores) == 4 * 2 * 2
    assert tissue.uns["X_patch_patch_um_300.0"]["patch_um"] == 300.0
    two = result.table("two")["HVG"]["mean"]
    assert two["few"] == result.table("one")["HVG"]["mean"]["few"] != two["coarse"]
    paths = {path.name: path for path in write_study(result, tmp_path)}
    assert set(paths) == {"study.csv", "study.json", "one.md", "one.png", "two.md", "two.png"}
    assert (
        paths["one.md"]
        .read_text()
        .splitlines()[2]
        .startswith(f"| few | {result.table('one')['AG']['mean'].iloc[0]:.3f} ±")
    )
    assert pd.read_csv(paths["study.csv"])["question"].tolist() == result.scores["question"].tolist()


def test_variants_score_as_in_an_evaluation(tissue, monkeypatch):
    tissue = tissue[tissue.obs["slice"] != "S3"].copy()
    short = Variant("short", {"max_epochs": 1})
    monkeypatch.setattr(study_module, "STUDY", {"one": [short]})
    ours = study(tissue, encoder="texture", n_top_genes=20, seeds=[3], features=ENCODED, device="cpu").scores
    theirs = evaluate(tissue, methods={"short": short.method}, n_top_genes=20, seeds=[3], device="cpu").scores
    assert ours["HVG"].tolist() == theirs["HVG"].tolist()


def test_an_unknown_question(tissue):
    with pytest.raises(InputError, match=r"Unknown questions \['color'\]; known: \['together'"):
        study(tissue, ["color"], encoder="texture")


def test_a_choice_never_sees_the_slice_it_is_scored_on(tissue, monkeypatch):
    seen = []

    def spy(adata, **options):
        seen.append(set(adata.obs["slice"].astype(str)))
        return evaluate(adata, **options)

    monkeypatch.setattr(choice_module, "evaluate", spy)
    two = [Variant(f"{k} neighbors", {"k": k}, preset="knn") for k in (5, 20)]
    options = {"n_top_genes": 20, "seeds": [0], "device": "cpu"}
    before = choose(tissue, two, **options)
    assert seen == [{"S2", "S3"}, {"S1", "S3"}, {"S1", "S2"}]
    changed = tissue.copy()
    rows = np.flatnonzero(changed.obs["slice"] == "S1")
    counts = changed.X.tolil()
    counts[rows] = counts[rows[::-1]]
    changed.X = counts.tocsr()
    after = choose(changed, two, **options)
    own = [result.inner[result.inner["fold"] == "S1"].reset_index(drop=True) for result in (before, after)]
    pd.testing.assert_frame_equal(*own)
    assert not before.inner.equals(after.inner)


def test_the_best_inner_score_is_what_meets_the_held_out_slice(tissue, tmp_path):
    two = [Variant(f"{k} neighbors", {"k": k}, preset="knn") for k in (5, 20)]
    result = choose(tissue, two, n_top_genes=20, seeds=[0, 1], device="cpu")
    best = result.inner.loc[result.inner.groupby("fold")["score"].idxmax()].set_index("fold")["variant"]
    for fold, rows in result.outer.groupby("fold"):
        assert set(rows["variant"]) == {best[fold]}
        assert rows["seed"].tolist() == [0, 1]
    ranking = result.ranking()
    assert ranking["score"].is_monotonic_decreasing
    assert ranking["chosen"].sum() == 3
    np.testing.assert_allclose(ranking["score"], ranking[["AG", "HVG", "HEG"]].mean(axis=1))
    assert {path.name for path in write_choice(result, tmp_path)} == {
        "choice_inner.csv",
        "choice_outer.csv",
        "choice.md",
    }


def test_choosing_needs_three_slices_and_something_to_choose_from(tissue):
    with pytest.raises(SliceError, match=r"holds 2 slices; choosing on the training slices needs 3"):
        choose(tissue[tissue.obs["slice"] != "S3"].copy(), n_top_genes=20)
    with pytest.raises(InputError, match="Found 0 variants"):
        choose(tissue, [], n_top_genes=20)
    with pytest.raises(InputError, match="none with features of its own"):
        choose(tissue, [Variant("coarse", features={"patch_um": 300.0})], n_top_genes=20)


def test_runs_leave_no_tables_in_memory(tissue):
    store = st_gchb.model.STGCHB._setup_adata_manager_store
    before = len(store)
    two = tissue[tissue.obs["slice"] != "S3"].copy()
    evaluate(two, methods={"short": Variant("short", {"max_epochs": 1}).method}, n_top_genes=20, seeds=[0])
    assert len(store) == before
