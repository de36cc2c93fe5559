"""Training: mini-batches of spots with their graph, the Lightning plan, and checkpoints to go on from."""

from st_gchb.train._data import BLOCK_SIZE, GraphDataModule, TrainingData
from st_gchb.train._plan import KeepBest, Pretraining, StayFinite, STGCHBTrainingPlan, StopEarly
from st_gchb.train._progress import CheckpointFolder, NoCheckpoints, Progress, history_frames, history_points, key_of

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
