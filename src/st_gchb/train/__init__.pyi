from ._checkpoints import (
    CheckpointFolder as CheckpointFolder,
    NoCheckpoints as NoCheckpoints,
    Progress as Progress,
    history_frames as history_frames,
    history_points as history_points,
    key_of as key_of,
    read_checkpoint as read_checkpoint,
    write_checkpoint as write_checkpoint,
)
from ._data import (
    BLOCK_SIZE as BLOCK_SIZE,
    GraphDataModule as GraphDataModule,
    Rows as Rows,
    TrainingData as TrainingData,
)
from ._plan import (
    KeepBest as KeepBest,
    Pretraining as Pretraining,
    StayFinite as StayFinite,
    STGCHBTrainingPlan as STGCHBTrainingPlan,
    StopEarly as StopEarly,
)
from ._subgraph import (
    edges_between as edges_between,
    share_of as share_of,
    spatial_blocks as spatial_blocks,
    with_halo as with_halo,
)
