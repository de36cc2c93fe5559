"""Read sections from disk: Space Ranger (Visium, Visium HD), SpatialData, AnnData, legacy Spatial Transcriptomics."""

from st_gchb._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
