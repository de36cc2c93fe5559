"""Kernel ridge and reduced-rank ridge against their equations, written out, and the choice of their settings."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from st_gchb.errors import MissingKeyError, SliceError
from st_gchb.evaluate import METHODS, Task, evaluate, evaluate_fold, leave_blocks_out
from st_gchb.pp import FeatureSet, FeatureSpec

from .conftest import QUICK, Spy

RANKS, WIDTHS = (5, 10, 20, 40), (0.7, 1.0, 1.4)
RIDGES = {"rbf": (0.1, 0.3, 1, 3, 10, 30, 100), "linear": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)}


@pytest.fixture
def two_encoders(tissue):
    """Texture features, and beside them others that are said to be an image encoder's."""
    own = np.asarray(tissue.obsm["X_patch"], dtype=np.float32)
    other = np.tanh(own[:, :30] @ np.random.default_rng(0).normal(size=(30, 20)) / 50).astype(np.float32)
    tissue.obsm["X_patch"] = np.hstack([other, own])
    specs = [
        FeatureSpec(name, "default", "e3b0", 150.0, None, 1, width)
        for name, width in (("mobilenet_v2", 20), ("texture", own.shape[1]))
    ]
    tissue.uns["X_patch"] = FeatureSet(specs).to_dict()
    return tissue


def task_of(adata, held_out="S3", n_genes=15, seed=0) -> Task:
    """Task of a fold as a method gets it."""
    spy = Spy()
    evaluate_fold(adata, held_out, methods={"spy": spy}, n_top_genes=n_genes, seeds=[seed], device="cpu")
    return spy.tasks[0]


# ---- The equations, written out ----


def neighbor_mean(x, at, slices):
    result = x.copy()
    for i in range(len(x)):
        near = (np.linalg.norm(at - at[i], axis=1) < 160) & (slices == slices[i])  # the array's pitch is 100 px
        near[i] = False
        if near.any():
            result[i] = x[near].mean(0)
    return result


def context(table, columns, center):
    """Own features and those of two rings, centered on the slice as far as its spots tell its mean."""
    x, slices = np.asarray(table.obsm["X_patch"], float)[:, columns], table.obs["slice"].astype(str).to_numpy()
    for name in np.unique(slices):
        rows = slices == name
        share = rows.sum() / (rows.sum() + 20)
        x[rows] -= share * x[rows].mean(0) + (1 - share) * center
    first = neighbor_mean(x, table.obsm["spatial"], slices)
    return np.hstack([x, first, neighbor_mean(first, table.obsm["spatial"], slices)])


def components(train, test, n, whitening):
    mean, sd = train.mean(0), train.std(0)
    used = sd > 1e-3 * np.median(sd)
    train, test = ((x - mean)[:, used] / sd[used] for x in (train, test))
    _, size, directions = np.linalg.svd(train, full_matrices=False)
    n = min(n, len(train) - 1, len(size))
    variance = size[:n] ** 2 / (len(train) - 1)
    weight = np.where(variance > 1e-8 * variance[0], variance, np.inf) ** (-whitening / 2)
    return train @ directions[:n].T * weight, test @ directions[:n].T * weight


def kernels(name, train, query, width):
    if name == "linear":
        mean = (train**2).sum(1).mean()
        return train @ train.T / mean, query @ train.T / mean
    median = np.median(cdist(train, train)[np.triu_indices(len(train), 1)])
    return (np.exp(-(cdist(x, train) ** 2) / (width * median) ** 2) for x in (train, query))


def centered(y, slices):
    return y - np.array([y[slices == name].mean(0) for name in slices])


def correlation(truth, prediction):
    """Mean of AG, HVG and HEG of a panel of at most 50 genes, of which all three are the same."""
    pairs = zip(truth.T, prediction.T, strict=True)
    return np.mean([np.corrcoef(a, b)[0, 1] if a.std() > 0 and b.std() > 0 else 0.0 for a, b in pairs])


def written_out(task, name, columns, n_components, whitening, parts=None):
    y, slices = task.targets().astype(float), task.train.obs["slice"].astype(str).to_numpy()
    if parts is None:
        parts = [
            (np.flatnonzero(slices != held_out), np.flatnonzero(slices == held_out)) for held_out in np.unique(slices)
        ]
    x = []
    for some in columns:
        center = np.asarray(task.train.obsm["X_patch"], float)[:, some].mean(0)
        x.append(components(*(context(t, some, center) for t in (task.train, task.test)), n_components, whitening))
    rank = min(40, y.shape[1], *(len(stay) - 1 for stay, _ in parts))

    def leading(y):
        return np.linalg.svd(y, full_matrices=False)[2][:rank].T

    def solved(k, query, scores, ridge):
        penalty = ridge * (len(k) if name == "linear" else 1)
        return query @ np.linalg.solve(k + penalty * np.eye(len(k)), scores)

    best = (-1.0,)
    for width in WIDTHS if name == "rbf" else (1.0,):
        grams = [list(kernels(name, train, query, width)) for train, query in x]
        found, errors = {}, np.zeros((len(RIDGES[name]), rank))
        for part, (stay, out) in enumerate(parts):
            inner = centered(y[stay], slices[stay])
            axes = leading(inner)
            for i, ridge in enumerate(RIDGES[name]):
                answers = [solved(k[np.ix_(stay, stay)], k[np.ix_(out, stay)], inner @ axes, ridge) for k, _ in grams]
                found[part, i] = np.mean(answers, axis=0)
                error = found[part, i] - centered(y[out], slices[out]) @ axes
                if len(np.unique(slices)) == 1:  # components of the whole slice, and errors beside the part's mean
                    scores = centered(y, slices) @ leading(centered(y, slices))
                    each = [solved(k[np.ix_(stay, stay)], k[np.ix_(out, stay)], scores[stay], ridge) for k, _ in grams]
                    error = np.mean(each, axis=0) - scores[out]
                    error -= error.mean(0)
                errors[i] += (error**2).sum(0)
        chosen = errors.argmin(0)
        for number in [r for r in RANKS if r <= rank]:
            scores = []
            for part, (stay, out) in enumerate(parts):
                axes = leading(centered(y[stay], slices[stay]))
                predicted = [found[part, chosen[c]][:, [c]] @ axes[:, [c]].T for c in range(number)]
                scores.append(correlation(y[out], sum(predicted)))
            if np.mean(scores) > best[0]:
                best = (np.mean(scores), grams, chosen, number)
    _, grams, chosen, number = best
    axes = leading(centered(y, slices))
    answer = np.repeat(y.mean(0)[None], task.test.n_obs, axis=0)
    for c in range(number):
        target = centered(y, slices) @ axes[:, [c]]
        predicted = [solved(k, query, target, RIDGES[name][chosen[c]]) for k, query in grams]
        answer += np.mean(predicted, axis=0) @ axes[:, [c]].T
    return answer


METHOD = {"kernel-ridge": [slice(0, 20)], "kernel-ridge-texture": [slice(20, None)]}
METHOD["kernel-ridge-both"] = [columns for some in list(METHOD.values()) for columns in some]


@pytest.mark.parametrize("method", METHOD)
def test_kernel_ridge(two_encoders, method):
    task = task_of(two_encoders)
    expected = written_out(task, "rbf", METHOD[method], 64, 0.5)
    np.testing.assert_allclose(METHODS[method](task), expected, atol=2e-3)
    assert expected.std(0).min() > 0.02


def test_reduced_rank_ridge(two_encoders):
    task = task_of(two_encoders)
    expected = written_out(task, "linear", [slice(None)], 256, 0.0)
    np.testing.assert_allclose(METHODS["reduced-rank-ridge"](task), expected, atol=2e-3)


# ---- The choice of the settings ----


@pytest.fixture
def choices(caplog):
    """What the methods say that they chose."""
    caplog.set_level(logging.INFO, logger="st_gchb")
    return lambda: [line for line in caplog.messages if line.startswith("Chosen by leaving out")]


KERNELS = ["reduced-rank-ridge", "kernel-ridge-texture"]


@pytest.mark.parametrize("method", KERNELS)
def test_the_held_out_slice_has_no_part_in_the_choice(tissue, choices, method):
    other = tissue.copy()
    rows = np.flatnonzero(other.obs["slice"] == "S3")
    other.obsm["X_patch"][rows] = np.random.default_rng(1).permuted(other.obsm["X_patch"][rows], axis=0)
    other.X[rows] = other.X[rows[::-1]] * 3
    first, second = (
        evaluate_fold(adata, "S3", methods=[method], **QUICK).genes["pearson"] for adata in (tissue, other)
    )
    assert not first.equals(second)
    assert len(choices()) == 2
    assert len(set(choices())) == 1


@pytest.mark.parametrize("method", KERNELS)
def test_expression_of_the_held_out_slice_does_not_change_the_prediction(tissue, method):
    other = tissue.copy()
    rows = np.flatnonzero(other.obs["slice"] == "S3")
    other.X[rows] = other.X[rows[::-1]] * 3
    tasks = task_of(tissue), task_of(other)
    assert tasks[0].panel == tasks[1].panel
    np.testing.assert_array_equal(*(METHODS[method](task) for task in tasks))


@pytest.mark.parametrize("method", KERNELS)
def test_training_slices_decide(tissue, choices, method):
    """Noise in place of expression wants stronger ridges."""
    other = tissue.copy()
    rng = np.random.default_rng(2)
    other.X = other.X[rng.permutation(other.n_obs)]
    for adata in (tissue, other):
        METHODS[method](task_of(adata))
    of_tissue, of_noise = (list(map(float, line.split("ridges ")[1].rstrip(".").split(",")))[:5] for line in choices())
    assert sum(of_noise) > sum(of_tissue)


@pytest.mark.parametrize("method", KERNELS)
def test_of_a_single_training_slice_quadrants_with_a_gap_are_left_out(tissue, choices, method):
    task = task_of(tissue[tissue.obs["slice"] != "S2"].copy())
    parts = [(fold.train, fold.test) for fold in leave_blocks_out(task.train)]
    how = ("linear", [slice(None)], 256, 0.0) if method == "reduced-rank-ridge" else ("rbf", [slice(None)], 64, 0.5)
    np.testing.assert_allclose(METHODS[method](task), written_out(task, *how, parts), atol=2e-3)
    assert choices()[0].startswith("Chosen by leaving out 4 parts")


def test_a_training_slice_without_room_for_a_gap_is_refused(tissue):
    task = task_of(tissue)
    few = task.train[task.train.obs["slice"] == "S1"][:4].copy()
    small = Task(few, task.test, task.panel, task.features_key, task.slice_key, seed=0)
    with pytest.raises(SliceError, match="only training slice 'S1'.* 4 spots none are beyond the gap of 2 pitches"):
        METHODS["kernel-ridge-texture"](small)


@pytest.mark.parametrize("method", KERNELS)
def test_two_genes_have_two_components_at_most(tissue, method):
    task = task_of(tissue, n_genes=2)
    assert METHODS[method](task).shape == (task.test.n_obs, 2)


@pytest.mark.parametrize("method", KERNELS)
def test_spots_that_all_look_the_same_get_the_mean(tissue, method):
    tissue.obsm["X_patch"][:] = 1
    task = task_of(tissue)
    expected = np.repeat(task.targets().mean(0, keepdims=True), task.test.n_obs, axis=0)
    np.testing.assert_allclose(METHODS[method](task), expected, atol=1e-5)


# ---- Many spots ----


@pytest.mark.parametrize("method", KERNELS)
def test_all_spots_as_landmarks_are_the_exact_kernel(tissue, monkeypatch, method):
    task = task_of(tissue)
    exact = METHODS[method](task)
    monkeypatch.setattr("st_gchb.evaluate._kernel.N_EXACT", 10)
    monkeypatch.setattr("st_gchb.retrieval._kernel._BLOCK_ROWS", 13)
    np.testing.assert_allclose(METHODS[method](task), exact, atol=1e-3)


def test_a_third_of_the_spots_as_landmarks_comes_close(tissue, monkeypatch):
    task = task_of(tissue)
    exact = METHODS["kernel-ridge-texture"](task)
    monkeypatch.setattr("st_gchb.evaluate._kernel.N_EXACT", 10)
    monkeypatch.setattr("st_gchb.evaluate._kernel.N_LANDMARKS", 30)
    first, again = (METHODS["kernel-ridge-texture"](task) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - exact).max() > 1e-3
    assert np.corrcoef((first - first.mean(0)).ravel(), (exact - exact.mean(0)).ravel())[0, 1] > 0.9


# ---- Features of the kinds that are asked for ----


@pytest.mark.parametrize(
    ("method", "encoder"),
    [("kernel-ridge", "'mobilenet_v2'"), ("kernel-ridge-both", r"\('mobilenet_v2', 'texture'\)")],
)
def test_features_that_are_not_there_are_told_with_the_call_that_makes_them(tissue, method, encoder):
    spy = Spy()
    methods = {"spy": spy, method: METHODS[method]}
    call = (
        rf"Method '{method}': .*texture, 150 µm.*embed_patches\(adata, encoder={encoder}, patch_um=\(80, 150, 300\)\)"
    )
    with pytest.raises(MissingKeyError, match=call):
        evaluate(tissue, methods=methods, **QUICK)
    assert not spy.tasks


def test_features_of_others_are_no_texture(tissue):
    del tissue.uns["X_patch"]
    with pytest.raises(MissingKeyError, match="unnamed encoder.*encoder='texture'"):
        evaluate(tissue, methods=["kernel-ridge-texture"], **QUICK)
    assert len(evaluate(tissue, methods=["kernel-ridge"], **QUICK).scores) == 3


def test_by_default_the_kernels_are_those_of_the_features(two_encoders, monkeypatch):
    kernels = [name for name in METHODS if name.startswith("kernel-ridge")]
    for name in METHODS.keys() - set(kernels):
        monkeypatch.setitem(METHODS, name, METHODS["mean"])
    both = evaluate(two_encoders, **QUICK).settings["methods"]
    assert both == ["default", "bleep", "ridge", "ridge-neighbors", "reduced-rank-ridge", *kernels, "knn", "mean"]
    del two_encoders.uns["X_patch"]
    of_others = evaluate_fold(two_encoders, "S1", **QUICK).settings["methods"]
    assert [name for name in of_others if name in kernels] == ["kernel-ridge"]


def test_runs_are_kept(tissue, tmp_path):
    call: dict[str, Any] = {"methods": KERNELS, "runs_dir": tmp_path, **QUICK}
    assert [evaluate(tissue, **call).runs["taken"] for _ in range(2)] == [0, 6]
