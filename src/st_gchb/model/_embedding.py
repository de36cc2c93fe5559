"""Joint embedding of all spots of a graph: at once where it fits, else block by block with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from st_gchb._logging import logger
from st_gchb.model import _context
from st_gchb.model._context import BlockedContext, Context, MappedRows, context_of
from st_gchb.model._inputs import ContextRule, FixedMap
from st_gchb.model._module import STGCHBModule
from st_gchb.model._rows import FeatureRows
from st_gchb.nn import Branch
from st_gchb.pp._device import halved
from st_gchb.train._blocks import edges_between, with_halo

_BLOCK_SPOTS = 4096
"""Spots that are embedded at once where not all are."""

_STAGE_SPOTS = 64
"""Spots whose maps are read and passed through the trunk's last stage at once."""

Where = tuple[sparse.csr_matrix, np.ndarray]


def embed(module: STGCHBModule, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    """L2-normalised joint embedding of the spots of a whole graph, ``(n_spots, n_embedding)``.

    Parameters
    ----------
    module
        The network.
    values
        Raw inputs of the branch, ``(n_spots, n_raw)``: panel expression, dense or sparse, or context features.
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    modality
        ``"expression"`` or ``"image"``.
    """
    module.eval()
    n_spots, width = values.shape
    if not isinstance(values, BlockedContext) and 4 * n_spots * width <= _context.PLAIN_BYTES:
        try:
            return _whole(module, values, adjacency, modality)
        except torch.cuda.OutOfMemoryError:
            logger.warning("The device's memory is too small to embed %d spots at once: block by block.", n_spots)
    return _in_blocks(module, values, adjacency, modality)


def seen_context(
    module: STGCHBModule, rule: ContextRule, context: Context, features: FeatureRows, where: Where
) -> Context:
    """What the image branch sees of spots: their context, made anew where a stage of the trunk was trained.

    Parameters
    ----------
    module
        The network.
    rule, context
        How context is made, and that of the features as they are.
    features
        Patch features, with their maps where there is a stage.
    where
        Spot graph and slices.
    """
    stage = module.network.stage
    if stage is None or features.maps is None:
        return context
    module.eval()
    parts = np.array_split(np.arange(len(features)), -(-len(features) // _STAGE_SPOTS))
    with torch.inference_mode():
        made = [stage(torch.from_numpy(features.maps[part]).to(module.device)).cpu().numpy() for part in parts]
    return context_of(rule, FeatureRows(np.concatenate(made)), *where)


def _whole(module: STGCHBModule, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    values = values.values if isinstance(values, Context) else values
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    graph = adjacency.tocoo()
    edges = torch.from_numpy(np.stack([graph.row, graph.col]).astype(np.int64)).to(module.device)
    run = module.network.embed_expression if modality == "expression" else module.network.embed_image
    with torch.inference_mode():
        return run(torch.from_numpy(dense.astype(np.float32)).to(module.device), edges).cpu().numpy()


def _in_blocks(module: STGCHBModule, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    branch: Branch = module.network.expression if modality == "expression" else module.network.image
    inputs = _inputs(branch, values)
    degree = np.diff(adjacency.indptr).astype(np.float32)
    n_hops = branch.infomax.encoder.n_hops
    result = np.empty((adjacency.shape[0], module.network.settings.n_embedding), dtype=np.float32)
    start, size = 0, _BLOCK_SPOTS
    while start < len(result):
        rows = np.arange(start, min(start + size, len(result)))
        nodes = with_halo(adjacency, rows, n_hops)
        edges = torch.from_numpy(edges_between(adjacency, nodes))
        tensors = (inputs(nodes), edges, torch.from_numpy(degree[nodes]))
        try:
            with torch.inference_mode():
                found = branch(*(tensor.to(module.device) for tensor in tensors)).embedding[: len(rows)]
                result[rows] = F.normalize(found, dim=1).cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            if size < 2:
                raise
            size = halved(size, "embedding goes on with %d spots at once")
            continue
        start += len(rows)
    return result


def _inputs(branch: Branch, values: Any) -> Callable[[np.ndarray], Tensor]:
    """What gives the branch's inputs, after its fixed map, of some spots."""
    fixed = FixedMap(branch.fixed.offset.cpu().numpy(), branch.fixed.matrix.cpu().numpy())
    if isinstance(values, Context):
        if fixed.matrix.ndim == 1:
            made = MappedRows(values, fixed)
            return lambda nodes: made[torch.from_numpy(nodes)]
        components = values.through(fixed)
        return lambda nodes: torch.from_numpy(components[nodes])
    if sparse.issparse(values):
        return lambda nodes: torch.from_numpy(fixed(values[nodes].toarray()))
    return lambda nodes: torch.from_numpy(fixed(np.asarray(values[nodes])))
