"""Training: mini-batches of spots with their graph, and the Lightning plan."""

from st_gchb.train._data import GraphDataModule, TrainingData
from st_gchb.train._plan import KeepBest, Pretraining, STGCHBTrainingPlan, StopEarly

__all__ = ["GraphDataModule", "KeepBest", "Pretraining", "STGCHBTrainingPlan", "StopEarly", "TrainingData"]
