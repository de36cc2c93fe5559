"""Keys that the package reads and writes in AnnData and SpatialData objects, and constants shared by its modules."""

from __future__ import annotations

from typing import Final


class Keys:
    """Keys in AnnData and SpatialData objects."""

    SPATIAL: Final = "spatial"
    """``obsm``: spot centers in full-resolution px, ``(n_spots, 2)`` as x, y; ``uns``: images per slice."""
    SLICE: Final = "slice"
    PATIENT: Final = "patient"
    COHORT: Final = "cohort"
    """``uns``: table of the samples that were read together, with what was dropped of each."""
    FEATURES: Final = "X_patch"
    """``obsm``: patch features from the frozen encoder; ``uns``: how they were computed."""
    CONNECTIVITIES: Final = "spatial_connectivities"
    DISTANCES: Final = "spatial_distances"
    EMBEDDING: Final = "X_st_gchb"
    LAYER: Final = "st_gchb"
    MEASURED: Final = "measured"
    """``layers``: measured log-normalized expression next to the prediction, where it is known."""
    CONFIDENCE: Final = "st_gchb_confidence"
    OUTLIER: Final = "st_gchb_outlier"
    EXPECTED_PCC: Final = "st_gchb_expected_pcc"
    RETRIEVAL_PCC: Final = "st_gchb_retrieval_pcc"
    """``var``: correlation that retrieval alone has; the rest of the expected one is added by the heads."""
    UNS: Final = "st_gchb"
    STAIN: Final = "stain"
    """``uns["st_gchb"]``: table of each slide's distance from the reference in stain and tissue."""
    TABLE: Final = "st_gchb"
    TILES: Final = "tiles"
    """``uns``: layout of the query positions on a slide without spots."""
    TISSUE_SHARE: Final = "tissue_share"
    """``obs``: share of a tile that is tissue."""
    SCALEFACTORS: Final = "scalefactors"
    IMAGES: Final = "images"
    METADATA: Final = "metadata"
    SOURCE_IMAGE: Final = "source_image_path"
    LAZYSLIDE: Final = "lazyslide"
    """``metadata``: set and size of LazySlide's tiles, where the positions are their centers."""
    TILE_SPEC: Final = "tile_spec"
    """Attribute of LazySlide's stores: specification of each set of tiles."""
    SLIDE_PROPERTIES: Final = "slide_properties"
    """Attribute of LazySlide's stores: shape and size of a pixel of the slide."""
    UM_PER_PX: Final = "microns_per_pixel"
    """``scalefactors``: size of a full-resolution pixel, µm, under Space Ranger's name."""
    SPOT_DIAMETER: Final = "spot_diameter_fullres"


VISIUM_SPOT_DIAMETER_UM: Final = 55.0
"""Diameter of a Visium spot, µm; converts ``spot_diameter_fullres`` (px) to µm per px."""

VISIUM_PITCH_UM: Final = 100.0
"""Distance between the centers of neighboring Visium spots, µm."""

MODEL_RECORD: Final = "model.json"
"""File of a model folder that says what the others are."""

DEFAULT_PATCH_UM: Final = (80.0, 150.0, 300.0)
"""Sides of the patches of a spot, µm."""

DEFAULT_SPACING_UM: Final = 100.0
"""Distance between grid positions on a slide without spots, µm."""

HEST_PATCH_UM: Final = 112.0
"""Side of the patches of HEST-1k and HEST-Bench, µm: 224 px of 0.5 µm."""

TARGET_SUM: Final = 1e4
"""Counts per spot after normalization, before ``log1p``."""
