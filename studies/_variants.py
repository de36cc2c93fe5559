"""Variants of the model that the ablation study compares: for each question, one model with one part changed.

Network, retrieval and ridge head were chosen together, so their questions are asked with the ridge head as read-out.
The question ``read-out`` compares it with the kernel head and the sharpening of today's default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from st_gchb.evaluate import METHODS

RIDGE_HEAD = {"ridge_weight": 0.4, "kernel_weight": 0.0, "sharpening": 0.0, "context_surroundings": 0}
"""Read-out with which the parts of network and retrieval are compared."""


@dataclass(frozen=True)
class Variant:
    """A model that differs from a preset.

    Parameters
    ----------
    name
        Name in the tables, which says what is changed.
    settings
        Fields of :class:`~st_gchb.model.ModelSettings`; of the default preset, :data:`RIDGE_HEAD` unless given here.
    preset
        Preset of the other settings.
    features
        Arguments of :func:`~st_gchb.pp.embed_patches` that differ from the study's own, such as ``patch_um``.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    preset: str = "default"
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Any:
        """The variant as a method of :func:`~st_gchb.evaluate.evaluate`."""
        read_out = RIDGE_HEAD if self.preset == "default" else {}
        return partial(METHODS[self.preset], **(read_out | self.settings))


def each(setting: str, *values: Any, label: str | None = None, **also: Any) -> list[Variant]:
    """Make one variant per value of a setting."""
    return [Variant(f"{label or setting} {value}", {setting: value, **also}) for value in values]


_DEFAULT = Variant("default")
_SAGE: dict[str, Any] = {"context_rings": 0, "image_graph": "sage", "expression_graph": "sage"}
_PAPER_BOTTLENECK: dict[str, Any] = {"dependence": "nhsic", "sigma": 10.0, "beta": 25.0, "bottleneck": 1.0}

_TOGETHER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bleep", {}),
    ("+ the default's 128 half-whitened image components", {"n_image_components": 128, "image_whitening": 0.5}),
    ("+ softmax over 400", {"k": 400, "weighting": "softmax"}),
    ("+ centered slices", {"center_slices": True}),
    ("+ rings of neighbors", {"context_rings": 2}),
    ("+ bottleneck", {"bottleneck": 0.05}),
    ("+ ridge head, 40 % of every gene", {"ridge_weight": 0.4, "ridge_full_at": 0.0}),
    ("+ ridge head by gene (default)", {"ridge_full_at": 0.3}),
)


def _cumulative() -> Iterator[Variant]:
    settings: dict[str, Any] = {}
    for name, added in _TOGETHER:
        settings = settings | added
        yield Variant(name, settings, preset="bleep")


def _read_outs() -> Iterator[Variant]:
    """Read-outs on features of three patch sizes, which the kernel head has a kernel each for."""
    alone = {"ridge_weight": 0.0, "kernel_weight": 0.0, "sharpening": 0.0, "context_surroundings": 12}
    heads: list[tuple[str, dict[str, Any]]] = [
        ("retrieval alone", {}),
        ("ridge head by gene, at most 0.4", {"ridge_weight": 0.4}),
        *((f"kernel head {share}", {"kernel_weight": share}) for share in (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)),
        ("kernel head 0.6 and ridge head by gene", {"kernel_weight": 0.6, "ridge_weight": 0.4}),
        *((f"kernel head 0.6, rank {n}", {"kernel_weight": 0.6, "kernel_rank": n}) for n in (5, 10, 40)),
        *(
            (f"kernel head 0.6, sharpened by {share}", {"kernel_weight": 0.6, "sharpening": share})
            for share in (0.2, 0.4, 0.5, 1.0)
        ),
    ]
    for name, settings in heads:
        yield Variant(name, alone | settings, features={"patch_um": (80.0, 150.0, 300.0)})


STUDY: dict[str, list[Variant]] = {
    "together": list(_cumulative()),
    "alone": [
        _DEFAULT,
        Variant("without rings of neighbors", {"context_rings": 0}),
        Variant("without centered slices", {"center_slices": False}),
        Variant("without bottleneck", {"bottleneck": 0.0}),
        Variant("ridge head with the same share of every gene", {"ridge_full_at": 0.0}),
        Variant("without ridge head", {"ridge_weight": 0.0}),
        Variant("without retrieval (ridge head alone)", {"ridge_weight": 1.0, "ridge_full_at": 0.0}),
        Variant("plain mean of 50", {"k": 50, "weighting": "mean"}),
    ],
    "graph": [
        *each("context_rings", 0, 1, 2, 3, label="rings of neighbors:"),
        Variant("GraphSAGE, image branch", _SAGE | {"expression_graph": "none"}),
        Variant("GraphSAGE, expression branch", _SAGE | {"image_graph": "none"}),
        Variant("GraphSAGE, both branches", _SAGE),
        Variant("GCN, both branches", _SAGE | {"image_graph": "gcn", "expression_graph": "gcn"}),
        Variant("2 rings and GraphSAGE in both branches", _SAGE | {"context_rings": 2}),
    ],
    "dgi": [
        Variant("GraphSAGE without DGI", _SAGE),
        *(
            Variant(f"joint, {name}, weight {weight}", _SAGE | dict.fromkeys(keys, weight))
            for name, keys in (
                ("image", ("dgi_image",)),
                ("expression", ("dgi_expression",)),
                ("both", ("dgi_image", "dgi_expression")),
            )
            for weight in (0.1, 1.0)
        ),
        Variant(
            "pre-trained 50 epochs, both, weight 0.1",
            _SAGE | {"dgi_image": 0.1, "dgi_expression": 0.1, "pretrain_epochs": 50},
        ),
        Variant("2 rings, joint, both, weight 0.1", {"dgi_image": 0.1, "dgi_expression": 0.1}),
    ],
    "bottleneck": [
        *each("bottleneck", 0.0, 0.02, 0.05, 0.1, 0.5, 1.0, label="CKA, median bandwidth, beta 5, weight"),
        *each("beta", 1.0, 25.0, label="CKA, median bandwidth, weight 0.05, beta"),
        Variant("CKA, sigma 10, beta 5, weight 0.05", {"sigma": 10.0}),
        Variant("equation 4, median bandwidth, beta 5, weight 0.05", {"dependence": "nhsic"}),
        Variant("equation 4, sigma 10, beta 25, weight 0.05", _PAPER_BOTTLENECK | {"bottleneck": 0.05}),
        Variant("equation 4, sigma 10, beta 25, weight 1 (as published)", _PAPER_BOTTLENECK),
    ],
    "alignment": [
        *each("temperature", 0.05, 0.1, 0.2, 0.5, label="soft targets, temperature"),
        *each("temperature", 0.1, 0.2, label="hard targets, temperature", soft_targets=False),
        Variant(
            "equations 6 and 7 to the letter (no L2 norm, targets times 1)",
            {"paper_equations": True, "temperature": 1.0},
        ),
    ],
    "components": [
        *each("n_image_components", 32, 64, 128, 256, None, label="image components:"),
        *each("image_whitening", 0.0, 0.5, 1.0, label="whitening"),
        *each("n_expression_components", 16, 64, 256, None, label="expression components:"),
    ],
    "query": [
        *each("k", 50, 100, 200, 400, label="softmax, temperature 0.2, k ="),
        *each("k", 50, 100, 200, label="plain mean, k =", weighting="mean"),
        *each("query_temperature", 0.05, 0.1, 0.5, label="softmax, k = 400, temperature"),
    ],
    "ridge-head": [
        *each("ridge_weight", 0.0, 0.2, 0.4, 0.6, 0.8, label="by gene, at most"),
        *each("ridge_weight", 0.2, 0.4, 0.6, 0.8, 1.0, label="every gene,", ridge_full_at=0.0),
    ],
    "read-out": list(_read_outs()),
    "training": [
        *each("max_epochs", 5, 10, 20, 40, label="epochs:"),
        *each("validation_share", 0.0, 0.1, label="spots kept for early stopping:"),
        *each("dropout", 0.2, 0.4, 0.6, label="dropout"),
    ],
    "patch": [Variant(f"patch of {side} µm", features={"patch_um": float(side)}) for side in (75, 100, 150, 200, 300)],
    "views": [
        Variant(f"mean of {n} view{'s' * (n > 1)}{note}", features={"n_views": n})
        for n, note in ((1, ""), (4, " (rotations)"), (8, " (rotations and mirror images)"))
    ],
}
"""Variants by question. Each question is one table of the study."""


def candidates() -> list[Variant]:
    """List the candidates for the default preset: each neighborhood with and without each other part."""
    neighborhoods: dict[str, dict[str, Any]] = {
        "no graph": {"context_rings": 0},
        "GraphSAGE + DGI": _SAGE | {"dgi_image": 0.1, "dgi_expression": 0.1},
        "1 ring": {"context_rings": 1},
        "2 rings": {"context_rings": 2},
    }
    heads: dict[str, dict[str, Any]] = {
        "retrieval alone": {"ridge_weight": 0.0},
        "ridge head for every gene": {"ridge_full_at": 0.0},
        "ridge head by gene": {},
    }
    return [
        Variant(
            f"{name}, {'bottleneck' if bottleneck else 'no bottleneck'}, {head}, "
            f"{'centered' if centered else 'not centered'}",
            around | changed | {"bottleneck": bottleneck, "center_slices": centered},
        )
        for name, around in neighborhoods.items()
        for bottleneck in (0.0, 0.05)
        for head, changed in heads.items()
        for centered in (False, True)
    ]
