from ._confidence import (
    Calibration as Calibration,
    HeldOut as HeldOut,
    calibrate as calibrate,
    calibration_folds as calibration_folds,
    choice_folds as choice_folds,
)
from ._features import (
    BlockedContext as BlockedContext,
    Context as Context,
    NeighborhoodAggregator as NeighborhoodAggregator,
    centered as centered,
    context_of as context_of,
    neighbor_mean as neighbor_mean,
)
from ._fit import without_loops as without_loops
from ._inference import predict as predict
from ._kernel_inputs import fit_kernel_map as fit_kernel_map
from ._loading import read_settings as read_settings
from ._module import STGCHBModule as STGCHBModule
from ._predictor import (
    Predictor as Predictor,
    load_predictor as load_predictor,
    network_device as network_device,
)
from ._projections import fit_appearance as fit_appearance, fit_map as fit_map
from ._query import prepare_query as prepare_query
from ._read_out import TrainedParts as TrainedParts, sharpened as sharpened
from ._settings import (
    PRESETS as PRESETS,
    ModelSettings as ModelSettings,
    check_k as check_k,
    settings_for as settings_for,
)
from ._stgchb import STGCHB as STGCHB
from ._training import checkpoint_folder as checkpoint_folder, strategy_for as strategy_for
from ._validation import check_features as check_features, check_names as check_names
