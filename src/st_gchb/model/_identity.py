"""What a training depends on, by name, so that a checkpoint is never taken for that of another training."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from st_gchb.model._fitting import Fitted
from st_gchb.model._presets import ModelSettings
from st_gchb.pp._cache import cache_folder
from st_gchb.train import key_of

_ROWS = 2000
"""Spots whose numbers are compared: all of a million, with 2,048 features each, would be read from disk for it."""

_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""Arguments of the trainer that change the result."""


def training_identity(
    adata: AnnData, fitted: Fitted, settings: ModelSettings, seed: int, arguments: dict[str, Any]
) -> dict[str, str]:
    """Settings in words, data as hashes.

    Parameters
    ----------
    adata, fitted
        The training slices and what was fitted on them.
    settings, seed
        Of the model.
    arguments
        Those of the call that change the result; its number of epochs does not, up to the last.
    """
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:_ROWS])
    graph = fitted.adjacency
    plain = {key: value for key, value in asdict(settings).items() if key != "max_epochs"}
    trainer = {key: arguments["trainer_kwargs"][key] for key in _TRAINER if key in arguments["trainer_kwargs"]}
    plan = {key: getattr(value, "__qualname__", repr(value)) for key, value in arguments["plan_kwargs"].items()}
    return {
        "settings": _short(repr(sorted(plain.items()))),
        "seed": str(seed),
        "batch_size": str(arguments["batch_size"]),
        "block_size": str(arguments["block_size"]),
        "early_stopping": str(arguments["early_stopping"]),
        "plan_kwargs": repr(sorted(plan.items())),
        "trainer_kwargs": repr(sorted(trainer.items())),
        "spots": _short("\n".join(adata.obs_names), "\n".join(fitted.slices)),
        "genes": _short("\n".join(fitted.rules.expression.genes)),
        "features": _short(np.asarray(fitted.features[rows])),
        "expression": _short(fitted.panel[rows].toarray()),
        "graph": _short(graph.indptr.astype(np.int64), graph.indices.astype(np.int64)),
    }


def checkpoint_folder(given: str | Path | None, identity: dict[str, str]) -> Path:
    """Where the checkpoints of a training lie: as given, else a folder beside the cached features."""
    return cache_folder().with_name("checkpoints") / key_of(identity) if given is None else Path(given)


def _short(*parts: str | np.ndarray) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return sha.hexdigest()[:12]
