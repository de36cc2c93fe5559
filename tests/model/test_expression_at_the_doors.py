"""What X holds is asked wherever it is used; the advice works; a query's own X never spoils a prediction."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from st_gchb._counts import are_counts, check_expression, tell_depth
from st_gchb._errors import ExpressionError, InputError, MissingKeyError
from st_gchb.evaluate import evaluate
from st_gchb.model import STGCHB
from st_gchb.pp.expression import log_normalize

QUIET = {"max_epochs": 1, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}


def normalized(adata: AnnData) -> AnnData:
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


# ---- A table that changes between the calls ----


def test_normalizing_between_setup_and_model_is_told(reference):
    STGCHB.setup_anndata(reference)
    normalized(reference)
    with pytest.raises(ExpressionError, match=r"changed after STGCHB\.setup_anndata.*no whole numbers.*logged"):
        STGCHB(reference).train(**QUIET)


def test_counts_that_were_kept_are_found_and_the_advice_works(reference):
    reference.layers["kept"] = reference.X.copy()
    STGCHB.setup_anndata(reference)
    normalized(reference)
    with pytest.raises(ExpressionError, match=r"Counts lie in layers\['kept'\]") as caught:
        STGCHB(reference).train(**QUIET)
    advice = re.search(r"call (STGCHB\.setup_anndata\(.*?\)) again", str(caught.value)).group(1)
    eval(advice, {"STGCHB": STGCHB, "adata": reference})
    model = STGCHB(reference, n_top_genes=10)
    expected = log_normalize(reference.layers["kept"], log_normalized=False)
    assert (model._fit().log_values != expected).nnz == 0


def test_normalizing_between_model_and_training_is_told(reference):
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10)
    normalized(reference)
    with pytest.raises(ExpressionError, match=r"changed after STGCHB\.setup_anndata.*no whole numbers.*logged"):
        model.train(**QUIET)
    assert not model.is_trained_


def test_what_is_done_to_the_table_after_training_changes_nothing(reference, held_out):
    answers = []
    for spoil in (lambda adata: None, normalized):
        adata = reference.copy()
        STGCHB.setup_anndata(adata)
        model = STGCHB(adata, n_top_genes=10)
        model.train(**QUIET)
        spoil(adata)
        model.train(**QUIET)
        answers.append(model.predict(held_out))
    np.testing.assert_array_equal(answers[0].layers["st_gchb"], answers[1].layers["st_gchb"])
    np.testing.assert_array_equal(answers[0].obs["st_gchb_confidence"], answers[1].obs["st_gchb_confidence"])
    np.testing.assert_array_equal(answers[0].var["st_gchb_expected_pcc"], answers[1].var["st_gchb_expected_pcc"])


# ---- Where counts lie, door by door ----


def with_counts_in(adata: AnnData, place: str) -> AnnData:
    if place == "raw":
        adata.raw = adata.copy()
    else:
        adata.layers["scaled"] = adata.X.toarray() / 3
        adata.layers[place] = adata.X.copy()
    return normalized(adata)


@pytest.mark.parametrize("place", ["counts", "raw_counts", "raw"])
def test_setup_says_where_counts_are(reference, place):
    adata = with_counts_in(reference, place)
    with pytest.raises(ExpressionError, match="Counts lie in") as caught:
        STGCHB.setup_anndata(adata)
    said = str(caught.value)
    if place == "raw":
        adata = eval(re.search(r"adata = (.*)\.$", said).group(1), {"adata": adata})
        STGCHB.setup_anndata(adata)
    else:
        STGCHB.setup_anndata(adata, **eval(f"dict({re.search(r'pass (.*)[.]$', said).group(1)})"))


@pytest.mark.parametrize("place", ["counts", "raw"])
def test_a_query_and_an_evaluation_say_where_counts_are(model, tissue, held_out, place):
    def embedded(adata):
        return model.get_latent_representation(adata)

    def evaluated(adata):
        return evaluate(adata, methods=["mean"], n_top_genes=10, seeds=[0])

    for door, adata, called in ((embedded, held_out, "query"), (evaluated, tissue.copy(), "adata")):
        adata = with_counts_in(adata, place)
        with pytest.raises(ExpressionError, match="Counts lie in") as caught:
            door(adata)
        names = {called: adata}
        exec(re.search(rf"({called}[.\w]* = .*)\.$", str(caught.value)).group(1), names)
        door(names[called])


def test_an_empty_x_says_where_counts_are(reference):
    reference.layers["counts"] = reference.X.copy()
    reference.X = None
    with pytest.raises(MissingKeyError, match=r"X is empty.*pass layer='counts'"):
        STGCHB.setup_anndata(reference)
    STGCHB.setup_anndata(reference, layer="counts")


def test_logs_without_counts_may_be_taken_as_they_are(reference):
    normalized(reference)
    with pytest.raises(ExpressionError, match=r"Neither its layers nor raw.X hold counts.*log_normalized=True"):
        STGCHB.setup_anndata(reference)
    STGCHB.setup_anndata(reference, log_normalized=True)


def test_spots_without_counts_in_a_layer_are_dropped_by_the_line_that_is_told(reference):
    counts = reference.X.toarray()
    counts[3] = 0
    reference.layers["counts"] = counts
    with pytest.raises(ExpressionError, match="1 spots without a single count") as caught:
        STGCHB.setup_anndata(reference, layer="counts")
    line = re.search(r"with adata = (.*)\.$", str(caught.value)).group(1)
    rest = eval(line, {"adata": reference, "np": np})
    assert rest.n_obs == reference.n_obs - 1
    STGCHB.setup_anndata(rest, layer="counts")


# ---- Things beside genes ----


def with_antibodies(adata: AnnData, n: int = 3) -> AnnData:
    proteins = sparse.csr_matrix(np.full((adata.n_obs, n), 5000.0, np.float32))
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * adata.n_vars + ["Antibody Capture"] * n})
    var.index = [*adata.var_names, *(f"CD{i}" for i in range(n))]
    parts = {"obs": adata.obs, "obsm": dict(adata.obsm), "uns": dict(adata.uns)}
    return AnnData(sparse.hstack([adata.X, proteins], format="csr"), var=var, **parts)


def test_antibodies_are_refused_wherever_expression_is_used(model, reference, held_out, tissue):
    match = "3 'Antibody Capture'.*Take the genes alone"
    mixed = with_antibodies(reference)
    with pytest.raises(ExpressionError, match=match) as caught:
        STGCHB.setup_anndata(mixed)
    with pytest.raises(ExpressionError, match=match):
        model.get_latent_representation(with_antibodies(held_out))
    with pytest.raises(ExpressionError, match=match):
        evaluate(with_antibodies(tissue), methods=["mean"], n_top_genes=10, seeds=[0])
    names = {"adata": mixed}
    exec("adata = " + str(caught.value).split("adata = ")[1], names)
    STGCHB.setup_anndata(names["adata"])


def test_measured_values_beside_antibodies_are_not_carried(model, held_out, caplog):
    found = model.predict(with_antibodies(held_out))
    plain = model.predict(held_out)
    assert "not carried over" in caplog.text
    assert "Antibody Capture" in caplog.text
    assert not found.var["st_gchb_measured"].any()
    assert plain.var["st_gchb_measured"].all()
    np.testing.assert_array_equal(found.layers["st_gchb"], plain.layers["st_gchb"])


# ---- A query's own X ----

SPOILT = {
    "text": lambda x: np.full(x.shape, "a", dtype="U1"),
    "objects": lambda x: np.full(x.shape, None, dtype=object),
    "dates": lambda x: np.zeros(x.shape, "datetime64[s]"),
    "complex": lambda x: x.astype(complex),
    "truth": lambda x: x > 0,
    "negative": lambda x: -x,
    "infinite": lambda x: np.where(x > 0, np.inf, 0),
    "NaN": lambda x: np.where(x > 0, np.nan, 0),
    "zeros": np.zeros_like,
    "huge": lambda x: x * 1e30,
    "wrapped": lambda x: (x.astype(np.int64) - 1).astype(np.uint64),
    "logs": np.log1p,
    "half": lambda x: x.astype(np.float16) / 2 + 0.25,
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_querys_own_x_never_spoils_its_prediction(model, held_out, unchanged, caplog, name):
    plain = model.predict(held_out).layers["st_gchb"]
    parts = {"obs": held_out.obs, "var": held_out.var, "obsm": dict(held_out.obsm), "uns": dict(held_out.uns)}
    spoilt = AnnData(SPOILT[name](held_out.X.toarray()), **parts)
    with unchanged(held_out):
        found = model.predict(spoilt)
    np.testing.assert_array_equal(found.layers["st_gchb"], plain)
    np.testing.assert_array_equal(found.X, plain)
    assert not found.var["st_gchb_measured"].any()
    assert "not carried over" in caplog.text
    with pytest.raises((ExpressionError, InputError)):
        model.get_latent_representation(spoilt)


SAME = {
    "dense": lambda x: x.toarray(),
    "csc": lambda x: x.tocsc(),
    "array": lambda x: sparse.csr_array(x),
    "half": lambda x: x.toarray().astype(np.float16),
    "unsigned": lambda x: x.toarray().astype(np.uint64),
    "small": lambda x: x.toarray().astype(np.uint16),
    "other byte order": lambda x: x.toarray().astype(">f8"),
    "negative zeros": lambda x: np.where(x.toarray() > 0, x.toarray(), -0.0),
}


@pytest.mark.parametrize("name", SAME)
def test_counts_are_counts_in_any_form(model, held_out, name):
    expected = model.predict(held_out)
    parts = {"obs": held_out.obs, "var": held_out.var, "obsm": dict(held_out.obsm), "uns": dict(held_out.uns)}
    same = AnnData(SAME[name](held_out.X), **parts)
    found = model.predict(same)
    assert found.var["st_gchb_measured"].all()
    np.testing.assert_array_equal(found.X, expected.X)


# ---- Other tables of the reference ----


def test_tables_that_hold_no_finite_numbers_are_told_and_left_out(reference, held_out, caplog):
    x = reference.X.toarray()
    reference.layers["text"] = np.full(x.shape, "a", dtype=object)
    reference.layers["scaled"] = np.where(x > 3, np.nan, x)
    reference.layers["panel"] = x * 100
    reference.layers["fine"] = x / 2
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10)
    model.train(**QUIET)
    for name in ("text", "scaled", "panel"):
        assert caplog.text.count(f"layers['{name}'] cannot be predicted") == 1
    assert {"panel", "all_genes", "fine"} <= set(model.bank_.tables)
    assert not {"text", "scaled"} & set(model.bank_.tables)
    assert model.predict(held_out).layers["st_gchb"].max() < 10
    assert np.isfinite(model.predict(held_out, layer="fine").layers["st_gchb"]).all()


# ---- The question itself ----

VALUES = arrays(
    st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.float16]),
    st.tuples(st.integers(0, 6), st.integers(0, 5)),
    elements=st.sampled_from([0, 0, 1, 2, 7, 250]),
)
WRONG = st.sampled_from([np.nan, np.inf, -np.inf, -1.0, -0.5, 0.5, 1e-3, 1e12, 1e300])
FORMS = st.sampled_from([np.asarray, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix, np.ma.asarray])


@settings(max_examples=200, deadline=None)
@given(VALUES, FORMS)
def test_whole_numbers_are_counts_unless_a_spot_has_none(values, form):
    fine = values.size > 0 and bool((values.sum(axis=1, dtype=float) > 0).all())
    made = form(values.astype(np.float32) if values.dtype == np.float16 else values)
    if fine:
        check_expression(made, log_normalized=False, name="X")
    else:
        with pytest.raises(ExpressionError, match="X .{25}"):
            check_expression(made, log_normalized=False, name="X")


@settings(max_examples=200, deadline=None)
@given(VALUES.filter(lambda values: values.size > 0), FORMS, WRONG, st.integers(0, 29))
def test_one_wrong_value_is_enough(values, form, wrong, place):
    spoilt = values.astype(np.float64)
    spoilt.flat[place % spoilt.size] = wrong
    with pytest.raises(ExpressionError, match="X .{25}"):
        check_expression(form(spoilt), log_normalized=False, name="X")
    assert not are_counts(form(spoilt))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4), "normalized to one total and logged"),
        (lambda x: np.log1p(x / 3), ": it looks logged"),
        (lambda x: x / x.sum(1, keepdims=True) * 1e5, "normalized to one total \\(sc"),
        (lambda x: x + 100.5, "raw counts\\. "),
    ],
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_what_was_done_to_counts_is_told(make, said, form):
    counts = np.random.default_rng(0).poisson(3, (40, 30)) * np.arange(1, 41)[:, None] + 1.0
    with pytest.raises(ExpressionError, match=said):
        check_expression(form(make(counts)), log_normalized=False, name="X")


def test_counts_corrected_for_depth_are_told(caplog):
    rng = np.random.default_rng(0)
    rates = rng.gamma(1, 2, (1, 2000))
    tell_depth(sparse.csr_matrix(rng.poisson(rates * rng.lognormal(0, 0.7, (200, 1)))), "X")
    tell_depth(rng.poisson(rates, (40, 2000)), "X")
    tell_depth(rng.poisson(rates[:, :200], (200, 200)), "X")
    assert not caplog.text
    tell_depth(sparse.csr_matrix(rng.poisson(rates, (200, 2000))), "layers['sct']")
    assert "layers['sct'] holds whole numbers" in caplog.text
    assert "sctransform" in caplog.text
