"""Published methods as methods of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from st_gchb.baselines import BASELINES, Baseline, Spots
from st_gchb.evaluate._task import Method, Task
from st_gchb.pp.expression import as_csr


def spots_of(task: Task) -> tuple[Spots, Spots]:
    """Return the training spots and the held-out spots of a task as published methods take them."""
    parts = []
    for table in (task.train, task.test):
        parts.append(
            Spots(
                slices=table.obs[task.slice_key].astype(str).to_numpy(),
                positions=np.asarray(table.obsm["spatial"], dtype=np.float64)[:, :2],
                graph=task.graph(table),
                features=np.asarray(table.obsm[task.features_key], dtype=np.float32),
                read=partial(task.patches, table),
            )
        )
    train, test = parts
    panel = as_csr(task.train.X)[:, task.train.var_names.get_indexer(task.panel)].toarray()
    return replace(train, targets=task.targets(), counts=panel.astype(np.float32)), test


def published(task: Task, *, name: str, preset: str, **settings: Any) -> np.ndarray:
    """Train a published method on a task, and predict its held-out spots; ``settings`` differ from the preset's."""
    method = BASELINES[name](preset, seed=task.seed, device=task.device, **settings)
    train, test = spots_of(task)
    return method.fit(train).predict(test)


PUBLISHED: dict[str, Method] = {
    **{name: partial(published, name=name, preset="small") for name in BASELINES},
    **{f"{name}-published": partial(published, name=name, preset="published") for name in BASELINES},
}
"""Published methods by name: of a size for two cores, and with the settings of the publication."""


def baseline_of(method: Method, device: str = "cpu") -> Baseline | None:
    """Make the baseline that a method trains; ``None`` for a method that is not of :data:`PUBLISHED`.

    Parameters
    ----------
    method
        Method of an evaluation: one of :data:`PUBLISHED`, or a partial of one with other settings.
    device
        Device on which it would be trained.

    Raises
    ------
    InputError
        A preset or a setting is unknown.
    DeviceError
        There is no such device, or the published preset of a method that reads pixels needs a GPU.
    """
    if not isinstance(method, partial) or method.func is not published or method.args:
        return None
    keywords = dict(method.keywords)
    return BASELINES[keywords.pop("name")](**keywords, device=device)


def resolved_settings(method: Method) -> dict[str, Any] | None:
    """Return all settings of a published method; ``None`` for any other method."""
    baseline = baseline_of(method)
    return None if baseline is None else asdict(baseline.settings)
