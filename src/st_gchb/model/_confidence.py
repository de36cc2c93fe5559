"""What the reference's own leave-one-slice-out says of a prediction: confidence, outliers, expected correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb.metrics import pearson
from st_gchb.retrieval import Neighbors, ReferenceTable

PREDICTORS = ("similarity", "spread", "distance", "level")

_OUTLIER_QUANTILE = 0.99

_OUTLIER_SLIDE = 1.4
"""How many times farther than the farthest reference slice the middle of a slide must lie to be flagged as a whole."""

_SLIDE_SPOTS = 20
"""A slide of fewer spots has no middle to speak of: its spots are judged one by one."""

_LEAST_FOLD = 2
"""Spots of a fold at least: of one, nothing correlates."""

_MAX_FOLDS = 5
"""Networks that are trained for calibration at most."""


@dataclass(frozen=True)
class Calibration:
    """How signs of a prediction translate into its error, learned on held-out reference slices.

    Parameters
    ----------
    center, scale, coefficients
        Linear model of a spot's error from its standardized :data:`SIGNS`; the coefficients end with the intercept.
    expected_errors
        Sorted expected errors of the reference spots, ``(n_reference,)``: confidence is the share that is worse.
    outlier_distance
        Distance to the nearest reference patches beyond which a spot is flagged, the 99 % quantile of the reference's.
    outlier_slide
        Median distance beyond which a whole slide is flagged: a stain shifts all spots a little, none very far.
    expected_pcc
        Pearson correlation of each panel gene on held-out reference slices, mean over slices, ``(n_genes,)``.
    """

    center: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    expected_errors: np.ndarray
    outlier_distance: float
    outlier_slide: float
    expected_pcc: np.ndarray

    def confidence(self, predictors: np.ndarray, slices: np.ndarray) -> np.ndarray:
        """Share of the held-out reference spots that are expected to be predicted worse, ``(n_query,)``, 0 to 1.

        Beyond the reference's range nothing was learned of the error: there the share is divided by how many times
        farther than its limit a spot, or its slide, lies.
        """
        error = _linear(predictors, self.center, self.scale, self.coefficients)
        share = 1.0 - np.searchsorted(self.expected_errors, error) / len(self.expected_errors)
        distance = predictors[:, PREDICTORS.index("distance")]
        beyond = distance > self.outlier_distance
        share = share * np.divide(self.outlier_distance, distance, out=np.ones_like(share), where=beyond)
        for name, row in self.slides(predictors, slices).iterrows():
            if not row["in_range"]:
                share[slices == name] *= row["limit"] / row["distance"]
        return share

    def outlier(self, predictors: np.ndarray, slices: np.ndarray) -> np.ndarray:
        """Whether a spot's patch, or its slide as a whole, is unlike those of the reference, ``(n_query,)``."""
        flagged = predictors[:, PREDICTORS.index("distance")] > self.outlier_distance
        for name, row in self.slides(predictors, slices).iterrows():
            if not row["in_range"]:
                flagged |= slices == name
        return flagged

    def slides(self, predictors: np.ndarray, slices: np.ndarray) -> pd.DataFrame:
        """How far each slide as a whole lies from the reference, one row per slide.

        Returns
        -------
        ``distance`` (median of its spots), ``limit`` beyond which it is out of range, ``n_spots``, ``in_range`` and
        ``says``, the same in words. A slide of few spots has no middle to speak of and counts as in range.
        """
        distance = predictors[:, PREDICTORS.index("distance")]
        names = np.unique(slices)
        own = [distance[slices == name] for name in names]
        frame = pd.DataFrame({"distance": [float(np.median(one)) for one in own]}, index=names.astype(str))
        frame["limit"] = self.outlier_slide
        frame["n_spots"] = [len(one) for one in own]
        few = frame["n_spots"] < _SLIDE_SPOTS
        frame["in_range"] = (frame["distance"] <= frame["limit"]) | few
        share = (frame["distance"] / frame["limit"]).map("{:.0%}".format)
        frame["verdict"] = "stain and tissue look like the reference's: at " + share + " of the limit"
        frame.loc[~frame["in_range"], "verdict"] = (
            "stain, scanner or tissue is unlike any reference slide: at " + share + " of the limit; do not rely on it"
        )
        frame.loc[few, "verdict"] = f"fewer than {_SLIDE_SPOTS} positions: too few to judge the slide as a whole"
        return frame


def signs_of(
    neighbors: Neighbors, retrieved: np.ndarray, prediction: np.ndarray, table: ReferenceTable, distance: np.ndarray
) -> np.ndarray:
    """What can be seen of a prediction without the truth, ``(n_query, 4)``.

    The weighted similarity of the neighbors, the spread of their expression around its mean ``retrieved``, the
    distance to the nearest reference patches, and the predicted level of expression.
    """
    similarity = (neighbors.weights * neighbors.similarity).sum(1)
    second = (neighbors.weights * table.mean_squares[neighbors.ids]).sum(1)
    first = np.einsum("ij,ij->i", retrieved, retrieved, dtype=np.float64) / max(retrieved.shape[1], 1)
    spread = np.sqrt(np.maximum(second - first, 0.0))
    return np.stack([similarity, spread, distance, prediction.mean(1)], axis=1)


def calibrate(
    folds: list[np.ndarray],
    predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    truth: sparse.csr_matrix,
    slices: np.ndarray,
) -> Calibration:
    """Leave each fold of the reference out once, and learn from what happens.

    Parameters
    ----------
    folds
        Rows of each held-out part of the reference.
    predict
        From held-out rows to their prediction ``(n, n_genes)`` and signs ``(n, 4)``, made without these rows.
    truth
        Log-normalized panel of the reference, ``(n_reference, n_genes)``.
    slices
        Slice of each reference spot, ``(n_reference,)``.
    """
    predictors = np.zeros((truth.shape[0], len(PREDICTORS)))
    errors = np.zeros(truth.shape[0])
    correlations = []
    for rows in folds:
        prediction, predictors[rows] = predict(rows)
        measured = truth[rows].toarray()
        errors[rows] = np.sqrt(((prediction - measured) ** 2).mean(1))
        correlations.append(pearson(measured, prediction))
    center, scale = predictors.mean(0), np.maximum(predictors.std(0), 1e-8)
    design = np.column_stack([(predictors - center) / scale, np.ones(len(predictors))])
    # A touch of ridge: similarity and distance carry nearly the same message.
    penalty = np.diag([*[0.01 * len(predictors)] * len(PREDICTORS), 0.0])
    coefficients = np.linalg.solve(design.T @ design + penalty, design.T @ errors)
    expected = np.sort(_linear(predictors, center, scale, coefficients))
    distance = predictors[:, PREDICTORS.index("distance")]
    farthest = max(float(np.median(distance[slices == name])) for name in np.unique(slices))
    limits = float(np.quantile(distance, _OUTLIER_QUANTILE)), _OUTLIER_SLIDE * farthest
    return Calibration(center, scale, coefficients, expected, *limits, np.mean(correlations, axis=0))


def calibration_folds(slices: np.ndarray, coordinates: np.ndarray) -> list[np.ndarray]:
    """Rows of each slice (of groups of slices where there are many); for a single slice, its left and right half."""
    names = list(dict.fromkeys(slices))
    if len(names) > 1:
        groups = [names[start::_MAX_FOLDS] for start in range(min(_MAX_FOLDS, len(names)))]
        return [np.flatnonzero(np.isin(slices, group)) for group in groups]
    left = coordinates[:, 0] <= np.median(coordinates[:, 0])
    if min(left.sum(), (~left).sum()) < _LEAST_FOLD:
        # Spots one above the other: halves by rank.
        left = np.zeros(len(slices), dtype=bool)
        left[np.lexsort((coordinates[:, 1], coordinates[:, 0]))[: len(slices) // 2]] = True
    return [np.flatnonzero(left), np.flatnonzero(~left)]


def _linear(predictors: np.ndarray, center: np.ndarray, scale: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return ((predictors - center) / scale) @ coefficients[:-1] + coefficients[-1]
