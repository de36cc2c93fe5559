"""The model that users touch."""

from st_gchb._lazy import attach_stub

# The stub says where each name is, also those that other rooms ask for; users see these.
__getattr__, _, _ = attach_stub(__name__, __file__)
__all__ = ["ModelSettings", "Predictor", "STGCHB"]


def __dir__() -> list[str]:
    return __all__
