"""Settings of small networks and of their loss, which tests of several rooms build; each states what matters to it."""

from __future__ import annotations

from typing import Any

from st_gchb.nn import LossSettings, NetworkSettings

_SIZES: dict[str, Any] = {
    "n_image_inputs": None,
    "n_expression_inputs": None,
    "n_image_adapter": 0,
    "n_hidden": 8,
    "n_embedding": 4,
    "image_graph": "sage",
    "expression_graph": "sage",
    "dropout": 0.4,
}
_ALIGNMENT_ALONE: dict[str, Any] = {
    "paper_equations": False,
    "temperature": 0.2,
    "soft_targets": True,
    "dgi_image": 0.0,
    "dgi_expression": 0.0,
    "bottleneck": 0.0,
    "beta": 5.0,
    "dependence": "cka",
    "sigma": None,
}


def sizes_of(n_features: int, n_genes: int, **chosen: Any) -> NetworkSettings:
    """Settings of a network of 8 hidden units whose branches have GraphSAGE and no input projection."""
    return NetworkSettings(n_features=n_features, n_genes=n_genes, **(_SIZES | chosen))


def loss_of(**chosen: Any) -> LossSettings:
    """Settings of a loss of alignment alone."""
    return LossSettings(**(_ALIGNMENT_ALONE | chosen))
