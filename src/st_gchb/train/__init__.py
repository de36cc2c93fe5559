"""Training: mini-batches of spots with their graph, the Lightning training plan, and checkpoints for resuming."""

from st_gchb.train._checkpoints import (
    CheckpointFolder,
    NoCheckpoints,
    Progress,
    history_frames,
    history_points,
    key_of,
    read_checkpoint as read_checkpoint,
    write_checkpoint as write_checkpoint,
)
from st_gchb.train._data import BLOCK_SIZE, GraphDataModule, Rows as Rows, TrainingData
from st_gchb.train._plan import KeepBest, Pretraining, StayFinite, STGCHBTrainingPlan, StopEarly
from st_gchb.train._subgraph import (
    edges_between as edges_between,
    share_of as share_of,
    spatial_blocks as spatial_blocks,
    with_halo as with_halo,
)

__all__ = [
    "BLOCK_SIZE",
    "CheckpointFolder",
    "GraphDataModule",
    "KeepBest",
    "NoCheckpoints",
    "Pretraining",
    "Progress",
    "STGCHBTrainingPlan",
    "StayFinite",
    "StopEarly",
    "TrainingData",
    "history_frames",
    "history_points",
    "key_of",
]
