"""The model that users touch."""

from st_gchb.model._presets import ModelSettings
from st_gchb.model._stgchb import STGCHB

__all__ = ["STGCHB", "ModelSettings"]
