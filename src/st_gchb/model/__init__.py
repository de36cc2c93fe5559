"""The model that users touch."""

import lazy_loader

# The stub says where each name is, also those that other rooms ask for; users see these.
__getattr__, _, _ = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["ModelSettings", "Predictor", "STGCHB"]


def __dir__() -> list[str]:
    return __all__
