"""Published results of HEST-Bench, with which tables of the package are compared."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

_TASKS = ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "LUNG", "LYMPH_IDC")

LEADERBOARD = pd.DataFrame.from_dict(
    {
        "ResNet50": (0.4741, 0.3075, 0.3889, 0.4822, 0.2528, 0.0812, 0.2231, 0.4917, 0.2322),
        "CTransPath": (0.5110, 0.3427, 0.4378, 0.5106, 0.2285, 0.1100, 0.2279, 0.4985, 0.2353),
        "Phikon": (0.5327, 0.3420, 0.4432, 0.5355, 0.2585, 0.1517, 0.2423, 0.5468, 0.2373),
        "CONCH": (0.5363, 0.3548, 0.4475, 0.5791, 0.2533, 0.1674, 0.2179, 0.5312, 0.2507),
        "GigaPath": (0.5508, 0.3708, 0.4768, 0.5538, 0.3010, 0.1860, 0.2391, 0.5399, 0.2493),
        "UNI": (0.5702, 0.3140, 0.4764, 0.6254, 0.2630, 0.1762, 0.2427, 0.5511, 0.2565),
        "H0-mini": (0.5862, 0.3684, 0.4919, 0.6011, 0.2494, 0.1863, 0.2670, 0.5481, 0.2629),
        "Virchow": (0.5702, 0.3309, 0.4875, 0.6088, 0.3110, 0.2019, 0.2637, 0.5459, 0.2594),
        "Virchow2": (0.5922, 0.3465, 0.4661, 0.6174, 0.2578, 0.2084, 0.2788, 0.5605, 0.2582),
        "UNI v1.5": (0.5989, 0.3645, 0.4902, 0.6401, 0.2925, 0.2240, 0.2522, 0.5586, 0.2597),
        "H-optimus-0": (0.5982, 0.3850, 0.4932, 0.6432, 0.2991, 0.2292, 0.2654, 0.5582, 0.2595),
    },
    orient="index",
    columns=list(_TASKS),
)
"""Mean correlation by encoder and task, as the repository of HEST published it in August 2024: ridge on 256 principal
components. ResNet50 is the third stage of the first ImageNet weights, 1,024 features."""


def published_scores(tasks: Sequence[str]) -> pd.DataFrame:
    """Select the published results of tasks.

    Parameters
    ----------
    tasks
        Names of tasks; those without published results are NaN.

    Returns
    -------
    pandas.DataFrame
        One row per encoder, one column per task and ``"mean"``, which is NaN unless all tasks have results; empty if
        none of the tasks has.
    """
    if not set(tasks) & set(_TASKS):
        return pd.DataFrame(columns=[*tasks, "mean"], dtype=float)
    chosen = LEADERBOARD.reindex(columns=list(tasks))
    return chosen.assign(mean=chosen.mean(axis=1, skipna=False))
