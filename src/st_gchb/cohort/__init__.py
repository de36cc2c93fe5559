"""Prediction and patch features for thousands of slides, in one process or on a dask cluster."""

from st_gchb._lazy import attach_stub

# The stub lists where each name is defined, including names for other modules; ``__all__`` lists those for users.
__getattr__, _, _ = attach_stub(__name__, __file__)
__all__ = ["embed_slides", "predict_slides"]


def __dir__() -> list[str]:
    return __all__
