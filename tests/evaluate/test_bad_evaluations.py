"""Bad input is told at the door: before the first run, in words that say what to do."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp

import st_gchb
from st_gchb._errors import ExpressionError, InputError, MissingKeyError, SliceError, STGCHBError
from st_gchb.evaluate import METHODS, Task, evaluate, evaluate_fold

from .conftest import QUICK, Spy


def one_slice(adata):
    return adata[adata.obs["slice"] == "S1"].copy()


def no_features(adata):
    del adata.obsm["X_patch"]
    return adata


def negative(adata):
    adata.X.data[:] -= 2
    return adata


def logs(adata):
    adata.X.data[:] = np.log1p(adata.X.data)
    return adata


def twice(adata):
    adata.var_names = [adata.var_names[1], *adata.var_names[1:]]
    return adata


def spots_twice(adata):
    adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]
    return adata


def lonely(adata):
    adata.obs["slice"] = ["alone", *adata.obs["slice"].astype(str)[1:]]
    return adata


def no_slice(adata):
    del adata.obs["slice"]
    return adata


def no_patient(adata):
    adata.obs["patient"] = adata.obs["patient"].astype(object).where(adata.obs["slice"] != "S2", np.nan)
    return adata


def blank_patient(adata):
    adata.obs["patient"] = adata.obs["patient"].astype(str).where(adata.obs["slice"] != "S2", " ")
    return adata


def text_patient(adata):
    """NaN becomes "nan" where a column is turned into text."""
    adata = no_patient(adata)
    adata.obs["patient"] = adata.obs["patient"].astype(str)
    return adata


def two_patients(adata):
    names = adata.obs["patient"].astype(str).to_numpy()
    names[np.flatnonzero(adata.obs["slice"] == "S2")[:3]] = "P2"
    adata.obs["patient"] = names
    return adata


def without(adata, genes_of):
    """Each slice measures its own genes alone."""
    counts = adata.X.toarray()
    for name, columns in genes_of.items():
        counts[np.ix_(np.flatnonzero(adata.obs["slice"] == name), columns)] = 0
    counts[:, 0] += 1
    adata.X = sp.csr_matrix(counts)
    return adata


def other_genes(adata):
    """S1 and S2 have 5 genes in common, S3 has all."""
    return without(adata, {"S1": range(5, 20), "S2": range(20, 40)})


def few_genes(adata):
    return without(adata, dict.fromkeys(["S1", "S2"], range(8, 40)))


def one_gene(adata):
    return without(adata, dict.fromkeys(["S1", "S2", "S3"], range(1, 40)))


def far_away(adata):
    adata.obsm["spatial"][3, 0] = np.nan
    return adata


def broken_features(adata):
    adata.obsm["X_patch"][5, 2] = np.inf
    return adata


def small(adata):
    """15, 26 and 49 spots: without S3, 41 are left to train on."""
    return adata[np.r_[0:15, 48:74, 95:144]].copy()


BAD = {
    "one slice": (one_slice, {}, SliceError, "1 slice.*at least 2"),
    "no such column": (None, {"slice_key": "section"}, SliceError, "'section'.*found.*slice"),
    "no such patient": (None, {"by": "patient", "patient_key": "donor"}, SliceError, "'donor'"),
    "neither": (None, {"by": "genes"}, InputError, "'genes'.*patient"),
    "unknown method": (None, {"methods": ["ridge", "lasso"]}, InputError, "'lasso'.*known.*ridge-neighbors"),
    "a name alone": (None, {"methods": "ridge"}, InputError, "ridge"),
    "no method": (None, {"methods": []}, InputError, "method"),
    "no seed": (None, {"seeds": []}, InputError, "seed"),
    "marker": (None, {"markers": ["Gene99"]}, MissingKeyError, "Gene99.*panel of 20 genes.*Leave them out"),
    "no features": (no_features, {}, MissingKeyError, r"X_patch.*pp\.embed_patches"),
    "negative": (negative, {}, ExpressionError, "negative"),
    "logs": (logs, {}, ExpressionError, "whole numbers"),
    "genes twice": (twice, {}, InputError, "var_names_make_unique"),
    "spots twice": (spots_twice, {}, InputError, "obs_names_make_unique"),
    "a slice of one spot": (lonely, {}, SliceError, "'alone'.*1 spot"),
    "no slices": (no_slice, {"by": "patient"}, SliceError, "'slice'.*found.*patient"),
    "no patient": (no_patient, {"by": "patient"}, SliceError, r"\['S2'\].*without a patient.*'patient'.*by='slice'"),
    "a blank patient": (blank_patient, {"by": "patient"}, SliceError, r"\['S2'\].*without a patient"),
    "a patient called nan": (text_patient, {"by": "patient"}, SliceError, r"\['S2'\].*without a patient"),
    "two patients": (two_patients, {"by": "patient"}, SliceError, r"\{'S2': \['P1', 'P2'\]\}"),
    "other genes": (other_genes, {}, ExpressionError, "Fold 'S3'.*share 5 usable.*at least 20.*S1 25, S2 20.*n_top"),
    "few genes": (few_genes, {}, ExpressionError, "Fold 'S1'.*share 8 usable.*at least 20.*at least 10 training spots"),
    "one gene": (one_gene, {}, ExpressionError, "Fold 'S1'.*1 genes"),
    "a panel of one": (None, {"n_top_genes": 1}, InputError, "n_top_genes=1; expected a whole number of 2 or more"),
    "no position": (far_away, {}, InputError, "spatial.*NaN"),
    "infinite features": (broken_features, {}, InputError, "X_patch.*1 spots"),
    "no such device": (None, {"device": "abacus"}, InputError, "abacus.*'cpu'"),
    "no function": (None, {"methods": {"mine": "ridge"}}, InputError, "'mine'.*a function"),
    "k of the neighbors": (small, {"methods": ["mean", "knn"]}, InputError, "Fold 'S3', method 'knn': k=50.*41 spots"),
    "k of BLEEP": (small, {"methods": ["bleep"]}, InputError, "Fold 'S3', method 'bleep': k=50.*41 spots"),
    "k of one's own": (
        None,
        {"methods": {"wide": partial(METHODS["knn"], k=900)}},
        InputError,
        "Fold 'S1', method 'wide': k=900",
    ),
    "k by keyword": (
        None,
        {"methods": {"wide": partial(METHODS["default"], k=900)}},
        InputError,
        "Fold 'S1', method 'wide': k=900",
    ),
    "no such setting": (
        None,
        {"methods": {"mine": partial(METHODS["default"], betta=2.0)}},
        InputError,
        "method 'mine'.*betta",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_anything_runs(tissue, tmp_path, name):
    spoil, options, error, message = BAD[name]
    adata = tissue if spoil is None else spoil(tissue)
    spy = Spy()
    with pytest.raises(STGCHBError, match=message) as caught:
        evaluate(adata, **({"methods": {"spy": spy}} | QUICK | options), runs_dir=tmp_path / "runs")
    assert isinstance(caught.value, error)
    assert spy.tasks == []
    assert not (tmp_path / "runs").exists()


def test_k_that_the_training_slices_have(tissue):
    """A preset's k is an upper limit where similarities weigh the spots."""
    methods = {"knn": partial(METHODS["knn"], k=41), "default": partial(METHODS["default"], max_epochs=1)}
    result = evaluate(small(tissue), methods=methods, **QUICK)
    assert len(result.scores) == 2 * len(result.settings["folds"])


def test_fewer_genes_than_asked_for(caplog):
    """All that are usable are taken, and the fold says so."""
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=60, seed=5)
    adata.obsm["X_patch"] = np.random.default_rng(0).random((adata.n_obs, 4))
    adata = without(adata, dict.fromkeys(["S1", "S2"], range(55, 60)))
    result = evaluate(adata, methods={"spy": Spy()}, **(QUICK | {"n_top_genes": 55}))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    result = evaluate(adata, methods={"spy": Spy()}, **(QUICK | {"n_top_genes": 58}))
    assert result.scores.set_index("fold")["n_genes"].to_dict() == {"S1": 58, "S2": 58, "S3": 55}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "Fold S3: n_top_genes=58" in warning
    assert "55 usable" in warning


def test_an_unknown_fold(tissue):
    with pytest.raises(SliceError, match=r"'S9'.*'S1', 'S2', 'S3'"):
        evaluate_fold(tissue, "S9", methods={"spy": Spy()}, **QUICK)


@pytest.mark.parametrize("answer", [np.zeros((2, 20)), np.zeros(20), np.full((44, 20), np.nan)])
def test_a_method_that_answers_something_else(tissue, answer):
    with pytest.raises(InputError, match="'mine'"):
        evaluate_fold(tissue, "S1", methods={"mine": lambda task: answer}, **QUICK)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"train": None}, "train.*expected an AnnData"),
        ({"panel": "G1"}, "panel='G1'; expected a list"),
        ({"seed": -1}, "seed=-1; expected a whole number"),
        ({"slice_key": 3}, "slice_key=3; expected text"),
    ],
)
def test_a_task_made_by_hand_is_checked(tissue, wrong, match):
    right = {"train": tissue, "test": tissue, "panel": list(tissue.var_names[:3]), "seed": 0}
    right |= {"features_key": "X_patch", "slice_key": "slice"}
    assert Task(**right).targets().shape == (tissue.n_obs, 3)
    with pytest.raises(InputError, match=match):
        Task(**right | wrong)
