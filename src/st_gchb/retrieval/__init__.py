"""Reference bank and its search: the reference spots behind a prediction, and their weights."""

from st_gchb.retrieval._bank import ReferenceBank, ReferenceTable as ReferenceTable
from st_gchb.retrieval._choice import index_for
from st_gchb.retrieval._exact import nearest as nearest, nearest_distances as nearest_distances
from st_gchb.retrieval._faiss import SearchIndex, overlap as overlap
from st_gchb.retrieval._kernel import (
    RIDGES as RIDGES,
    KernelHead as KernelHead,
    Landmarks as Landmarks,
    blocks as blocks,
    expression_scores as expression_scores,
    fit_kernel_head as fit_kernel_head,
    median_scale as median_scale,
    rbf as rbf,
    ridge_weights as ridge_weights,
)
from st_gchb.retrieval._ridge import RidgeHead
from st_gchb.retrieval._search import Neighbors, check_search, find_neighbors, weighted_mean

__all__ = [
    "RidgeHead",
    "Neighbors",
    "ReferenceBank",
    "SearchIndex",
    "check_search",
    "find_neighbors",
    "index_for",
    "weighted_mean",
]
