"""Read sections from disk: Space Ranger (Visium, Visium HD), SpatialData, AnnData, legacy Spatial Transcriptomics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
