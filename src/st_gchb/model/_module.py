"""scvi-tools' module around the pure torch network."""

from __future__ import annotations

from typing import Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import nn

from st_gchb.nn import GraphBatch, LossSettings, NetworkSettings, STGCHBNetwork


class STGCHBModule(BaseModuleClass):
    """Thin adapter: batches in, :class:`scvi.module.base.LossOutput` out.

    Parameters
    ----------
    network
        Sizes of the network.
    loss
        Terms of the loss.
    stage
        Last stage of the trunk, where that is trained too.
    """

    def __init__(self, network: NetworkSettings, loss: LossSettings, stage: nn.Module | None = None) -> None:
        super().__init__()
        self.network = STGCHBNetwork(network, stage)
        self.loss_settings = loss
        self.pretraining = False

    def forward(self, batch: GraphBatch, **_: Any) -> tuple[None, None, LossOutput]:
        """Loss of one step, in the place where scvi-tools' training plan expects it."""
        return None, None, self.loss(batch)

    def loss(self, batch: GraphBatch) -> LossOutput:
        """Sum of the weighted terms; each is logged by its name."""
        step = self.network.pretraining_loss if self.pretraining else self.network.loss
        terms = step(batch, self.loss_settings)
        total = torch.stack(list(terms.values())).sum()
        metrics = {name: value.detach() for name, value in terms.items()}
        return LossOutput(loss=total, n_obs_minibatch=len(batch.rows), extra_metrics=metrics)

    def _get_inference_input(self, tensors: GraphBatch, **_: Any) -> dict[str, GraphBatch]:
        return {"batch": tensors}

    def _get_generative_input(self, tensors: GraphBatch, inference_outputs: Any, **_: Any) -> dict[str, Any]:
        return {}

    def inference(self, batch: GraphBatch) -> dict[str, Any]:
        """Representations of both branches."""
        return {
            "image": self.network.image(self.network.image_inputs(batch.image), batch.edge_index),
            "expression": self.network.expression(batch.expression, batch.edge_index),
        }

    def generative(self) -> dict[str, Any]:
        """Nothing: prediction is retrieval, which needs the reference."""
        return {}
