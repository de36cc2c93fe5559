"""Closed sets of values that arguments and settings take, and defaults that several functions share, each stated once.

The command line offers and shows them, so that importing this module must be quick: nothing else is imported here.
"""

from __future__ import annotations

from typing import Final, Literal

# ---- Model and training ----

Preset = Literal["default", "paper", "bleep"]
GraphKind = Literal["gcn", "gcn_sum", "sage", "none"]
"""Kind of a branch's graph encoder."""
Dependence = Literal["cka", "nhsic"]
"""Measure of dependence in the bottleneck."""
Finetune = Literal["none", "last_stage"]
Sampler = Literal["spots", "slices"]
"""Whether a batch holds spots of all slices or of one."""

# ---- Prediction and evaluation ----

Weighting = Literal["softmax", "mean"]
"""Weights of the retrieved reference spots."""
Search = Literal["auto", "exact", "index"]
HeldOut = Literal["slice", "patient"]
"""Unit that an evaluation holds out."""

Split = Literal["section", "blocks"]
"""Whether whole sections (slices, or all of a patient) are held out, or quadrants of each section."""
EncoderKind = Literal["image", "texture", "both"]
"""Encoders whose features a kernel method takes."""

DEFAULT_WEIGHTING: Final[Weighting] = "softmax"
DEFAULT_HELD_OUT: Final[HeldOut] = "slice"
DEFAULT_SPLIT: Final[Split] = "section"
EVALUATION_GENES: Final = 1000
"""Size of the panel of an evaluation."""
PCC_THRESHOLD: Final = 0.3
"""Pearson correlation above which genes are counted as well predicted."""
TOP_GENES: Final = 50
"""Number of genes in the measures HVG and HEG."""
THINNING_REPEATS: Final = 10
"""Number of times that counts are split into halves."""

# ---- Patches ----

Views = Literal[1, 4, 8]
"""Number of views over which the features of a patch are averaged."""
Precision = Literal["float32", "bfloat16", "float16"]
OnDamage = Literal["raise", "nan"]
"""Treatment of patches that cannot be decoded."""
StainMethod = Literal["macenko", "vahadane", "reinhard"]
Device = Literal["auto", "cpu", "cuda", "mps"]

DEFAULT_ENCODER: Final = "resnet50"
DEFAULT_ENCODERS: Final = (DEFAULT_ENCODER, "texture")
"""Encoders whose features stand side by side: those of an image encoder, and colors and texture."""
DEFAULT_WEIGHTS: Final = "default"
"""Weights of the library or repository that an encoder comes from."""
DEFAULT_VIEWS: Final[Views] = 4
"""Views of encoders without texture features beside them."""
VIEWS_WITH_TEXTURE: Final[Views] = 1
"""Views of texture features, which depend on no direction, and of encoders beside them."""
DEFAULT_PRECISION: Final[Precision] = "float32"
DEFAULT_ON_DAMAGE: Final[OnDamage] = "raise"

# ---- Positions on tissue ----

GridKind = Literal["hex", "square"]
TissueMethod = Literal["stain", "squidpy", "all"]
GraphMode = Literal["radius", "knn", "delaunay", "grid"]
LengthUnit = Literal["um", "px"]
SpotShape = Literal["auto", "circle", "square"]
"""Outline of a spot or tile in files for viewers."""

DEFAULT_GRID: Final[GridKind] = "hex"
DEFAULT_TISSUE: Final[TissueMethod] = "stain"
DEFAULT_MIN_TISSUE: Final = 0.5
"""Share of a tile that is tissue, at least."""

# ---- Datasets ----

VisiumImage = Literal["hires", "full"]


def is_default(weights: str | None) -> bool:
    """Return whether weights are a library's or a repository's own, not a file of the caller's.

    Examples
    --------
    >>> from st_gchb._options import is_default
    >>> is_default("default"), is_default("default@0f3c2a"), is_default("uni.bin")
    (True, True, False)
    """
    return weights is not None and (weights == DEFAULT_WEIGHTS or weights.startswith(f"{DEFAULT_WEIGHTS}@"))
