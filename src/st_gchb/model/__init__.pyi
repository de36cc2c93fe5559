from ._features import NeighborhoodAggregator as NeighborhoodAggregator
from ._settings import ModelSettings as ModelSettings, check_k as check_k, settings_for as settings_for
from ._stgchb import STGCHB as STGCHB
from ._validation import check_features as check_features, check_names as check_names
