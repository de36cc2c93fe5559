"""Thousands of slides: prediction and patch features, in this process or on a dask cluster."""

import lazy_loader

# The stub says where each name is, also those that other rooms ask for; users see these.
__getattr__, _, _ = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["embed_slides", "predict_slides"]


def __dir__() -> list[str]:
    return __all__
