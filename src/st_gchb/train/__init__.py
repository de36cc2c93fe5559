"""Training: mini-batches of spots with their graph, the Lightning training plan, and checkpoints for resuming."""

from st_gchb._lazy import attach_stub

# The stub says where each name is. Prediction asks for the subgraphs alone, without Lightning and scvi-tools.
__getattr__, _, _ = attach_stub(__name__, __file__)
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


def __dir__() -> list[str]:
    return __all__
