"""Pathology encoders by short name: the one table of what they are, where they lie, and how they are used.

Facts are those of the models' cards and of the recipes of TRIDENT and LazySlide; what these do not say, or contradict
each other in, is None. No code belongs to a single model: all are built by :mod:`st_gchb.pp.encoders._hub_models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import pandas as pd

from st_gchb._arguments import checked

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPTIMUS: Final = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_CLIP: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_CC: Final = "CC BY-NC-ND 4.0"

Loader = Literal["timm", "transformers", "own code"]
Pooling = Literal["class token", "class token + mean"]
Gate = Literal["no", "terms", "by hand"]


@dataclass(frozen=True)
class PathologyEncoder:
    """Facts on a published encoder.

    Parameters
    ----------
    repo_id
        Repository on the Hugging Face hub.
    network
        Kind of network.
    millions
        Parameters, in millions; None if unknown.
    license
        License of the weights.
    gated
        ``"no"``; ``"terms"``: terms are to be accepted on the model's page; ``"by hand"``: the owner answers each
        request; None if unknown.
    loader
        Package that builds the network: ``"timm"``, ``"transformers"``, or ``"own code"``, a package of the authors.
    n_features
        Features per patch.
    input_px
        Side of the input, px.
    patch_um
        Side of the patch on the tissue that fills the input as the authors use it, µm.
    normalization
        Mean and standard deviation per channel, in 0 to 1.
    pooling
        Tokens that become features; None if unknown.
    architecture, arguments
        timm's name of the network, and arguments that make it the published one, for a weights file without its
        ``config.json``. ``arguments`` with the name of a layer hold the name alone.
    note
        Remark.
    """

    repo_id: str
    network: str
    millions: int | None
    license: str
    gated: Gate | None
    loader: Loader
    n_features: int
    input_px: int
    patch_um: float
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    pooling: Pooling | None
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def um_per_px(self) -> float:
        """Size of a pixel of the input, µm."""
        return self.patch_um / self.input_px


_SWIGLU: Final = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}

PATHOLOGY_ENCODERS: Final[Mapping[str, PathologyEncoder]] = {
    "uni": PathologyEncoder(
        *("MahmoodLab/UNI", "ViT-L/16", 303, _CC, "terms", "timm", 1024, 224, 112.0, IMAGENET, "class token"),
        architecture="vit_large_patch16_224",
        arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": PathologyEncoder(
        *("MahmoodLab/UNI2-h", "ViT-H/14", 681, _CC, "terms", "timm", 1536, 224, 112.0, IMAGENET, "class token"),
        architecture="vit_giant_patch14_224",
        arguments={
            **{"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "reg_tokens": 8},
            **{"init_values": 1e-5, "mlp_ratio": 5.33334, "no_embed_class": True, "dynamic_img_size": True},
            **_SWIGLU,
        },
    ),
    "virchow2": PathologyEncoder(
        *("paige-ai/Virchow2", "ViT-H/14", 631, _CC, "terms", "timm", 2560, 224, 112.0, IMAGENET, "class token + mean"),
        architecture="vit_huge_patch14_224",
        arguments={
            **{"img_size": 224, "reg_tokens": 4, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": ""},
            **{"dynamic_img_size": True},
            **_SWIGLU,
        },
        note="trained at 2.0, 1.0, 0.5 and 0.25 µm per px",
    ),
    "h-optimus-0": PathologyEncoder(
        *("bioptimus/H-optimus-0", "ViT-g/14", 1135, "Apache 2.0", "no", "timm", 1536, 224, 112.0, _OPTIMUS),
        pooling="class token",
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "global_pool": "token"},
    ),
    "h-optimus-1": PathologyEncoder(
        *("bioptimus/H-optimus-1", "ViT-g/14", 1135, _CC, "by hand", "timm", 1536, 224, 112.0, _OPTIMUS, "class token"),
        architecture="vit_giant_patch14_reg4_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5, "global_pool": "token"},
    ),
    "gigapath": PathologyEncoder(
        *("prov-gigapath/prov-gigapath", "ViT-g/16", 1135),
        license="Apache 2.0, with conditions that limit its use to research",
        gated="terms",
        loader="timm",
        n_features=1536,
        input_px=224,
        patch_um=112.0,
        normalization=IMAGENET,
        pooling="class token",
        architecture="vit_giant_patch14_dinov2",
        arguments={
            **{"img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24},
            **{"mlp_ratio": 5.33334},
        },
        note="the tile encoder; its authors cut the middle 224 px out of a tile of 256 px at 0.5 µm per px",
    ),
    "phikon-v2": PathologyEncoder(
        *("owkin/phikon-v2", "ViT-L/16", 303, "Owkin non-commercial", "no", "transformers", 1024, 224, 112.0, IMAGENET),
        pooling="class token",
    ),
    "midnight": PathologyEncoder(
        *("kaiko-ai/midnight", "ViT-g/14", 1136, "MIT", None, "transformers", 3072, 224, 112.0, _HALF),
        pooling="class token + mean",
        note="Midnight-12k; some tools keep the class token alone (1536 features)",
    ),
    "conch": PathologyEncoder(
        *("MahmoodLab/CONCH", "ViT-B/16", None, _CC, "terms", "own code", 512, 448, 256.0, _CLIP, None),
        note="its network is in the authors' package alone (git+https://github.com/mahmoodlab/CONCH)",
    ),
}
"""Published encoders by the short name by which :func:`get_encoder` takes them."""


@checked
def list_encoders() -> pd.DataFrame:
    """List the published pathology encoders that are known by a short name.

    Returns
    -------
    pandas.DataFrame
        One row per encoder, named as :func:`get_encoder` and :func:`embed_patches` take it: ``repo_id``, ``network``,
        ``millions`` of parameters, ``license``, ``gated``, ``loader``, ``n_features``, ``input_px``, ``patch_um`` (the
        patch size to pass, µm), ``um_per_px``, ``mean``, ``std``, ``pooling`` and ``note``. None and NaN stand for
        what is not known.

    Examples
    --------
    >>> import st_gchb
    >>> table = st_gchb.pp.list_encoders()
    >>> table.loc["uni", "repo_id"], int(table.loc["uni", "n_features"])
    ('MahmoodLab/UNI', 1024)
    """
    rows = {}
    for name, entry in PATHOLOGY_ENCODERS.items():
        facts = {key: value for key, value in asdict(entry).items() if key not in ("architecture", "arguments")}
        mean, std = facts.pop("normalization")
        rows[name] = facts | {"um_per_px": entry.um_per_px, "mean": mean, "std": std}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("encoder")
    table["millions"] = table["millions"].astype("Int64")
    order = ["repo_id", "network", "millions", "license", "gated", "loader", "n_features", "input_px", "patch_um"]
    return table[[*order, "um_per_px", "mean", "std", "pooling", "note"]]


def pathology_encoder(name: str) -> PathologyEncoder | None:
    """Find the facts on an encoder by its short name, or by ``hf-hub:owner/name``; None if there are none."""
    if name in PATHOLOGY_ENCODERS:
        return PATHOLOGY_ENCODERS[name]
    repo_id = name.removeprefix("timm:").removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")[0].lower()
    return next((entry for entry in PATHOLOGY_ENCODERS.values() if entry.repo_id.lower() == repo_id), None)
