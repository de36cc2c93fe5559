"""Blocks of a slice that are held out, with a gap to the spots that are trained on."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist

import st_gchb
from st_gchb.cli import main
from st_gchb.errors import ArgumentError, SliceError
from st_gchb.evaluate import METHODS, evaluate, evaluate_fold, leave_blocks_out, leave_one_out, reliability

from .conftest import QUICK, Spy

METHODS_ON_BLOCKS = ["ridge-neighbors", "reduced-rank-ridge", "kernel-ridge-texture", "mean"]


@pytest.fixture(scope="module")
def _wide():
    adata = st_gchb.datasets.synthetic_tissue(2, n_rows=10, n_cols=10, n_genes=40, seed=3)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    return adata


@pytest.fixture
def wide(_wide):
    """Two slices that are wide enough for blocks."""
    return _wide.copy()


@pytest.fixture
def alone(_wide):
    return _wide[_wide.obs["slice"] == "S1"].copy()


def spots_at(at, slices=None):
    obs = pd.DataFrame({"slice": "A" if slices is None else slices}, index=[f"s{i}" for i in range(len(at))])
    return anndata.AnnData(obs=obs, obsm={"spatial": np.asarray(at, dtype=float)})


def grid(n):
    return np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * 100.0


def test_quadrants_of_a_grid():
    at = grid(8)
    folds = {fold.name: fold for fold in leave_blocks_out(spots_at(at))}
    assert list(folds) == ["A, top left", "A, top right", "A, bottom left", "A, bottom right"]
    for name, fold in folds.items():
        x, y = at[fold.test].T / 100
        assert set(x) == ({4, 5, 6, 7} if "right" in name else {0, 1, 2, 3})
        assert set(y) == ({4, 5, 6, 7} if "bottom" in name else {0, 1, 2, 3})
    # Beside four columns, one is nearer than two pitches and the next is not; at the corner, the diagonal is 2.8 away.
    left = {tuple(spot) for spot in at[folds["A, top left"].train] / 100}
    assert left == {
        (x, y) for x in range(8) for y in range(8) if max(x, y) > 4 and np.hypot(max(x - 3, 0), max(y - 3, 0)) >= 2
    }


@given(st.integers(0, 10**6), st.integers(80, 150), st.floats(0.1, 1e4))
@settings(max_examples=25, deadline=None)
def test_every_spot_is_held_out_once_and_the_gap_is_kept(seed, n, scale):
    rng = np.random.default_rng(seed)
    at = (grid(13)[rng.permutation(169)[:n]] + rng.uniform(-20, 20, (n, 2))) * scale
    slices = np.repeat(["A", "B"], [n - 70, 70]) if n > 140 else None
    try:
        folds = leave_blocks_out(spots_at(at, slices))
    except SliceError:  # its words are tested below
        return
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(n))
    for fold in folds:
        own = np.arange(n) if slices is None else np.flatnonzero(slices == fold.name[0])
        assert set(fold.train) | set(fold.test) <= set(own)
        nearest = np.median(np.sort(cdist(at[own], at[own]), axis=1)[:, 1])
        # Irregular positions have another pitch than the median distance, but hardly a smaller one.
        assert cdist(at[fold.train], at[fold.test]).min() > 1.5 * nearest


def test_each_slice_is_trained_on_by_itself(wide):
    folds = leave_blocks_out(wide)
    assert len(folds) == 8
    for fold in folds:
        assert set(wide.obs["slice"].iloc[np.r_[fold.train, fold.test]]) == {fold.name.split(",")[0]}


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (
            grid(6),
            "'A' is too small for blocks with a gap of 2 pitches: of its 36 spots, 9 are in the block 'top left'",
        ),
        (grid(2), "of its 4 spots, 4 are in the block 'whole' and 0 beyond"),
        (np.array([[1.0, 1.0]] * 30), "30 are in the block 'top left' and 0 beyond its gap; expected at least 10"),
    ],
)
def test_a_slice_that_is_too_small_for_its_gap_is_refused(at, told):
    with pytest.raises(SliceError, match=f"{told}.*"):
        leave_blocks_out(spots_at(at))


def test_blocks_need_slices_and_no_patients(wide):
    with pytest.raises(SliceError, match=r"needs obs\['other'\]"):
        evaluate(wide, split="blocks", slice_key="other", **QUICK)
    with pytest.raises(ArgumentError, match="expected by='slice', found by='patient'"):
        evaluate(wide, split="blocks", by="patient", **QUICK)
    with pytest.raises(ArgumentError, match="split"):
        evaluate(wide, split="halves", **QUICK)


def test_a_single_slice_is_told_of_blocks(alone):
    with pytest.raises(SliceError, match="1 slice.*split='blocks'"):
        leave_one_out(alone)
    with pytest.raises(SliceError, match="1 slice.*split='blocks'"):
        evaluate(alone, split="section", **QUICK)


def test_methods_get_a_block_without_expression(alone):
    spy = Spy()
    result = evaluate(alone, methods={"spy": spy}, split="blocks", **QUICK)
    assert [task.test.n_vars for task in spy.tasks] == [0] * 4
    assert [task.test.n_obs for task in spy.tasks] == [len(fold.test) for fold in leave_blocks_out(alone)]
    assert result.settings["split"] == "blocks"
    assert list(result.scores["fold"]) == [fold.name for fold in leave_blocks_out(alone)]


def test_baselines_on_blocks(alone):
    table = evaluate(alone, methods=METHODS_ON_BLOCKS, split="blocks", **QUICK).table()["AG"]["mean"]
    assert (table[METHODS_ON_BLOCKS[:-1]] > 0.1).all()


def test_the_model_on_a_block(alone):
    result = evaluate_fold(alone, "S1, top right", methods=["default"], split="blocks", **QUICK)
    assert result.scores["AG"].iloc[0] > 0.1
    assert result.pictured.n_obs == result.pictured.obs_names.isin(alone.obs_names).sum()


def test_a_gene_without_counts_in_the_block_counts_as_zero(alone):
    call = {"methods": ["ridge"], "split": "blocks", **QUICK}
    before = evaluate_fold(alone, "S1, top left", **call)
    (fold, *_) = leave_blocks_out(alone)
    gene = before.genes["gene"].iloc[3]
    counts = alone.X.toarray()
    counts[fold.test, alone.var_names.get_loc(gene)] = 0
    alone.X = type(alone.X)(counts)
    after = evaluate_fold(alone, "S1, top left", **call)
    row = after.genes.set_index("gene").loc[gene]
    assert row["pearson"] == 0
    assert row["constant"]
    assert after.scores["n_constant"].iloc[0] == 1
    assert np.isfinite(after.scores.select_dtypes("number").to_numpy()).all()
    assert after.scores["AG"].iloc[0] == pytest.approx(after.genes["pearson"].sum() / 20)


def test_blocks_that_do_not_exist_are_told(alone):
    with pytest.raises(SliceError, match="no block 'S1'; found .*'S1, bottom left'"):
        evaluate_fold(alone, "S1", split="blocks", **QUICK)


def test_runs_of_blocks_are_kept(wide, tmp_path):
    call = {"methods": ["mean"], "runs_dir": tmp_path, **QUICK}
    whole, blocks, again = (evaluate(wide, split=split, **call) for split in ("section", "blocks", "blocks"))
    assert [result.runs["made"] for result in (whole, blocks, again)] == [2, 8, 0]
    pd.testing.assert_frame_equal(blocks.scores, again.scores)


@pytest.mark.usefixtures("short_trainings")
def test_confidence_on_blocks(alone):
    result = reliability(alone, split="blocks", n_top_genes=20, seeds=[0], device="cpu")
    assert result.summary().index.tolist() == [fold.name for fold in leave_blocks_out(alone)]
    assert sorted(result.spots["spot"]) == sorted(alone.obs_names)


@pytest.mark.usefixtures("sketched_figures")
def test_the_command_on_blocks(alone, tmp_path, capsys):
    alone.write_h5ad(tmp_path / "one.h5ad")
    given = [
        "evaluate",
        "--data",
        str(tmp_path / "one.h5ad"),
        "--encoder",
        "texture",
        "--patch-um",
        "150",
        "--methods",
        "mean",
    ]
    options = ["--n-top-genes", "20", "--seeds", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*given, *options]) == 2
    assert "split='blocks'" in capsys.readouterr().err
    assert main([*given, *options, "--split", "blocks", "--quiet"]) == 0
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert list(scores["fold"]) == [fold.name for fold in leave_blocks_out(alone)]
    assert METHODS["mean"] is METHODS[scores["method"].iloc[0]]
