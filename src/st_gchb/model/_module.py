"""scvi-tools module around the torch network."""

from __future__ import annotations

from typing import Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput

from st_gchb.nn import GraphBatch, LossSettings, STGCHBNetwork


class STGCHBModule(BaseModuleClass):
    """Adapter from batches to :class:`scvi.module.base.LossOutput`.

    Parameters
    ----------
    network
        The network.
    loss
        Settings of the loss.
    """

    def __init__(self, network: STGCHBNetwork, loss: LossSettings) -> None:
        super().__init__()
        self.network = network
        self.loss_settings = loss
        self.pretraining = False

    def forward(self, batch: GraphBatch, **_: Any) -> tuple[None, None, LossOutput]:
        """Compute the loss of one step, and return it in the position where scvi-tools' training plan expects it."""
        return None, None, self.loss(batch)

    def loss(self, batch: GraphBatch) -> LossOutput:
        """Sum the weighted terms of the loss, and pass each on for logging under its name."""
        step = self.network.pretraining_loss if self.pretraining else self.network.loss
        terms = step(batch, self.loss_settings)
        total = torch.stack(list(terms.values())).sum()
        metrics = {name: value.detach() for name, value in terms.items()}
        return LossOutput(loss=total, n_obs_minibatch=len(batch.rows), extra_metrics=metrics)
