"""Normalization, panel, PCA, and expression that is not what it is said to be."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from scipy import sparse
from sklearn.decomposition import PCA

from st_gchb._counts import check_expression
from st_gchb._errors import ExpressionError, MissingKeyError
from st_gchb.pp.expression import check_panel, choose_panel, fit_expression, log_normalize

KINDS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "array": sparse.csr_array}


def counts(n_spots=60, n_genes=40, seed=0):
    rng = np.random.default_rng(seed)
    made = rng.poisson(rng.gamma(1.0, 3.0, n_genes), (n_spots, n_genes)).astype(float)
    made[:, 0] += 1  # no spot is empty
    return made


def scanpys(matrix):
    adata = AnnData(sparse.csr_matrix(matrix, dtype=np.float32))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


# ---- Normalization ----


@pytest.mark.parametrize("kind", KINDS)
def test_log_normalization_is_scanpys(kind):
    matrix = KINDS[kind](counts())
    found = log_normalize(matrix, log_normalized=False)
    assert sparse.isspmatrix_csr(found)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), scanpys(counts()).X.toarray(), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), depth=st.sampled_from([1, 100, 1_000_000]))
def test_log_normalization_forgets_the_depth_of_a_spot(seed, depth):
    matrix = counts(6, 9, seed)
    deeper = log_normalize(matrix * depth, log_normalized=False)
    np.testing.assert_allclose(deeper.toarray(), log_normalize(matrix, log_normalized=False).toarray(), rtol=1e-4)
    np.testing.assert_allclose(np.expm1(deeper.toarray().astype(float)).sum(1), 1e4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_normalized", [True, False])
def test_the_callers_matrix_is_not_touched(kind, log_normalized):
    matrix = KINDS[kind](counts().astype(np.float32))
    found = log_normalize(matrix, log_normalized=log_normalized)
    found.data[:] = -1
    dense = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
    np.testing.assert_array_equal(dense, counts())


def test_log_normalized_values_pass_unchanged():
    values = scanpys(counts()).X
    np.testing.assert_array_equal(log_normalize(values, log_normalized=True).toarray(), values.toarray())


# ---- Panel ----


def two_slices():
    """Log-normalized values of slices a and b and their slice names."""
    values = log_normalize(counts(120, 50, 1), log_normalized=False)
    return values, np.repeat(["a", "b"], 60)


GENES = pd.Index([f"g{i}" for i in range(50)])


@pytest.mark.parametrize("n_slices", [1, 2])
def test_the_panel_is_scanpys_choice(n_slices):
    values, slices = two_slices()
    if n_slices == 1:
        slices = np.repeat("a", 120)
    chosen = choose_panel(values, slices, 12)
    # All genes are found in enough spots, so scanpy may be asked as it is.
    often = np.asarray((values > 0).sum(0)).ravel() >= 2
    adata = AnnData(values[:, often], obs=pd.DataFrame({"s": pd.Categorical(slices)}, index=map(str, range(120))))
    sc.pp.highly_variable_genes(adata, n_top_genes=12, batch_key="s" if n_slices == 2 else None)
    expected = np.flatnonzero(often)[adata.var["highly_variable"].to_numpy()]
    # Without batches scanpy takes all genes that tie with the last one; the panel never exceeds its size.
    assert set(chosen) <= set(expected)
    assert len(chosen) == 12
    assert chosen.tolist() == sorted(chosen)


def fit(values, slices, **options):
    defaults = {"n_top_genes": 12, "n_components": 5, "log_normalized": False, "seed": 0}
    return fit_expression(values, GENES, slices, **(defaults | options))


def test_the_panel_and_the_components_see_the_training_slices_alone():
    values, slices = two_slices()
    dense = values.toarray()
    train = slices == "a"
    quiet = np.flatnonzero(~GENES.isin(fit(values[train], slices[train]).genes))[:6]
    spoilt = dense.copy()
    mean = np.expm1(dense[:, quiet]).mean(0)
    spoilt[np.ix_(~train, quiet)] = np.log1p(np.random.default_rng(0).gamma(0.05, mean / 0.05, (60, 6)))
    spoilt = sparse.csr_matrix(spoilt)
    one, other = fit(values[train], slices[train]), fit(spoilt[train], slices[train])
    assert one.genes.equals(other.genes)
    np.testing.assert_array_equal(one.matrix, other.matrix)
    np.testing.assert_array_equal(one.offset, other.offset)
    # The change would have been seen, had the other slice been let in.
    both = fit(spoilt, slices).genes
    assert GENES[quiet].isin(both).any()


def test_a_gene_found_in_hardly_any_spot_is_not_chosen():
    values, slices = two_slices()
    dense = values.toarray()
    dense[:, 7] = 0
    dense[0, 7] = 9.0
    assert 7 not in choose_panel(sparse.csr_matrix(dense), slices, 49)


def test_genes_of_one_slice_are_ranked_within_it():
    """A gene that only differs between slices (batch effect) does not vary within any of them."""
    values, slices = two_slices()
    dense = values.toarray()
    dense[:, 3] = np.where(slices == "a", 1.0, 6.0) + np.random.default_rng(0).normal(0, 0.01, 120)
    panel = choose_panel(sparse.csr_matrix(dense), slices, 12)
    assert 3 not in panel


def test_a_panel_larger_than_the_table_is_all_expressed_genes(caplog):
    values, slices = two_slices()
    with caplog.at_level("INFO", logger="st_gchb"):
        chosen = choose_panel(values, slices, 2000)
    often = np.asarray((values > 0).sum(0)).ravel() >= 2
    assert chosen.tolist() == np.flatnonzero(often).tolist()


def test_too_few_genes_to_choose_from():
    lone = sparse.csr_matrix(np.eye(60, 50))
    with pytest.raises(ExpressionError, match="0 genes are found in at least 2 spots.*Check"):
        choose_panel(lone, np.repeat("a", 60), 10)


@pytest.mark.parametrize("n_top_genes", [10, 50])
def test_genes_that_do_not_vary_are_nothing_to_choose_from(n_top_genes):
    flat = sparse.csr_matrix(np.full((60, 50), 2.0))
    with pytest.raises(ExpressionError, match="one value each.*nothing to learn"):
        choose_panel(flat, np.repeat("a", 60), n_top_genes)
    flat[3, 4] = 5.0
    assert choose_panel(sparse.csr_matrix(flat), np.repeat("a", 60), 50).size == 50


def test_a_panel_may_be_given_in_any_order():
    values, slices = two_slices()
    rule = fit(values, slices, panel=["g30", "g2", "g11"], n_components=2)
    assert rule.genes.tolist() == ["g30", "g2", "g11"]
    np.testing.assert_allclose(rule.offset, values.toarray()[:, [30, 2, 11]].mean(0), rtol=1e-5)
    with pytest.raises(MissingKeyError, match=r"2 genes.*\['XIST', 'ESR1'\]"):
        check_panel(["XIST", "g1", "ESR1"], GENES)


# ---- PCA ----


@pytest.mark.parametrize("n_components", [3, 12])
def test_the_map_is_a_pca_with_one_scale_for_all_components(n_components):
    values, slices = two_slices()
    rule = fit(values, slices, n_components=n_components)
    x = values[:, GENES.get_indexer(rule.genes)].toarray().astype(float)
    pca = PCA(n_components, svd_solver="full").fit(x)
    expected = pca.transform(x) / np.sqrt(pca.explained_variance_.mean())
    found = (x - rule.offset) @ rule.matrix
    sign = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * sign, expected, atol=2e-3)
    # The mean variance of a component is 1, and the first holds the most.
    variance = found.var(0, ddof=1)
    assert variance.mean() == pytest.approx(1.0, rel=1e-3)
    assert (np.diff(variance) < 1e-6).all()


def test_without_pca_the_genes_keep_their_relative_scale():
    values, slices = two_slices()
    rule = fit(values, slices, n_components=None)
    x = values[:, GENES.get_indexer(rule.genes)].toarray().astype(float)
    np.testing.assert_allclose((x - rule.offset) @ rule.matrix, (x - x.mean(0)) / x.std(), atol=1e-4)


def test_components_are_as_many_as_the_data_allow():
    values, slices = two_slices()
    assert fit(values, slices, n_components=813).matrix.shape == (12, 12)
    assert fit(values[:9], slices[:9], n_components=813, panel=list(GENES)).matrix.shape == (50, 8)


def test_the_fit_is_repeatable():
    values, slices = two_slices()
    one, again = (fit(values, slices, n_components=3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.matrix, again.matrix)


# ---- What is refused ----


def spoilt(row, column, value):
    made = counts()
    made[row, column] = value
    return made


def empty_spot():
    made = counts()
    made[5] = 0
    return made


COUNTS = [
    (spoilt(1, 2, np.nan), r"1 NaN or infinite values.*repair"),
    (spoilt(1, 2, np.inf), r"1 NaN or infinite values.*repair"),
    (spoilt(1, 2, -3.0), r"negative values \(minimum -3\).*Pass raw counts"),
    ((counts() - counts().mean(0)) / 3.0, r"negative values.*scaled.*Pass raw counts"),
    (scanpys(counts()).X.toarray(), r"no whole numbers.*it looks normalized to one total and logged.*Pass raw counts"),
    (empty_spot(), r"1 spots without a single count \(first row: 5\).*filter_cells"),
    (np.zeros((3, 4)), r"zeros alone: its 3 spots"),
    (np.empty((5, 0)), r"no expression at all.*\(5, 0\)"),
    (np.empty((0, 5)), r"no expression at all.*\(0, 5\)"),
]
IDS = ["NaN", "infinite", "negative", "scaled", "log values", "empty spot", "all zero", "no genes", "no spots"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("matrix", "match"), COUNTS, ids=IDS)
def test_what_is_no_table_of_counts(matrix, match, kind):
    with pytest.raises(ExpressionError, match=match) as caught:
        check_expression(KINDS[kind](matrix), log_normalized=False, name="layers['raw']")
    assert str(caught.value).startswith("layers['raw'] ")


LOGGED = scanpys(counts()).X.toarray()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (counts(), r"said to be log-normalized.*whole numbers.*log1p first"),
        (np.expm1(LOGGED), r"said to be log-normalized.*too large.*log1p"),
        (np.where(LOGGED == LOGGED.max(), np.nan, LOGGED), "NaN or infinite"),
        (LOGGED - 1, "negative values"),
        (np.where(np.arange(60)[:, None] == 5, 0, LOGGED), r"first row: 5"),
    ],
    ids=["counts", "not logged", "NaN", "negative", "empty spot"],
)
def test_what_is_not_log_normalized(matrix, match, kind):
    with pytest.raises(ExpressionError, match=match):
        check_expression(KINDS[kind](matrix), log_normalized=True, name="X")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_passes(kind):
    make = KINDS[kind]
    check_expression(make(counts()), log_normalized=False, name="X")
    check_expression(make(counts().astype(np.int64)), log_normalized=False, name="X")
    check_expression(make(LOGGED), log_normalized=True, name="X")


def test_stored_zeros_of_a_sparse_table_are_no_counts():
    matrix = sparse.csr_matrix(counts())
    matrix.data[matrix.indptr[5] : matrix.indptr[6]] = 0
    with pytest.raises(ExpressionError, match="first row: 5"):
        check_expression(matrix, log_normalized=False, name="X")
