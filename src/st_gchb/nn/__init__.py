"""Losses, layers and network of the method in plain PyTorch; nothing here depends on AnnData."""

from st_gchb.nn._batch import GraphBatch
from st_gchb.nn._kernels import gaussian_kernel, median_bandwidth
from st_gchb.nn._last_stage import TrainedStage
from st_gchb.nn._layers import (
    AffineInput,
    GraphEncoder,
    ProjectionHead,
    members_of,
    permute_rows,
)
from st_gchb.nn._losses import (
    alignment_loss,
    bottleneck_loss,
    cka,
    dgi_loss,
    hsic,
    literal_alignment_loss,
    nhsic,
)
from st_gchb.nn._network import Branch, BranchOutput, LossSettings, NetworkSettings, STGCHBNetwork
from st_gchb.nn._parts import Part, gathered

__all__ = [
    "AffineInput",
    "Branch",
    "BranchOutput",
    "GraphBatch",
    "GraphEncoder",
    "LossSettings",
    "NetworkSettings",
    "Part",
    "ProjectionHead",
    "STGCHBNetwork",
    "TrainedStage",
    "alignment_loss",
    "bottleneck_loss",
    "cka",
    "dgi_loss",
    "gathered",
    "gaussian_kernel",
    "hsic",
    "literal_alignment_loss",
    "median_bandwidth",
    "members_of",
    "nhsic",
    "permute_rows",
]
