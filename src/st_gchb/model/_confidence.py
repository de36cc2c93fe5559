"""Uncertainty calibration by leave-one-slice-out cross-validation on the reference.

It gives the confidence of each spot, flags spots and slides outside of the reference's range, and the correlation
expected of each gene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._logging import track
from st_gchb.metrics import pearson
from st_gchb.retrieval import Neighbors, ReferenceTable

PREDICTORS = ("similarity", "spread", "distance", "level")

_OUTLIER_QUANTILE = 0.99

_OUTLIER_SLIDE = 1.4
"""Factor by which a slide's median distance must exceed that of the farthest reference slice to flag it as a whole."""

_SLIDE_SPOTS = 20
"""Fewest spots for which a slide is judged as a whole: the median over fewer spots is not reliable."""

_LEAST_FOLD = 2
"""Fewest spots of a fold: a single spot has no correlation."""

_MAX_FOLDS = 5
"""Largest number of networks that are trained for calibration."""


@dataclass(frozen=True)
class Calibration:
    """Model of a prediction's error, fitted on held-out reference slices.

    Parameters
    ----------
    center, scale, coefficients
        Linear model of a spot's error, in the standardized :data:`PREDICTORS`; the last coefficient is the intercept.
    expected_errors
        Sorted expected errors of the reference spots, ``(n_reference,)``; confidence is the share of larger ones.
    outlier_distance
        Distance to the nearest reference patches beyond which a spot is flagged: the 99 % quantile for the reference.
    outlier_slide
        Median distance beyond which a whole slide is flagged; another stain shifts all spots a little, but none far.
    expected_pcc
        Pearson correlation of each panel gene on held-out reference slices, mean over slices, ``(n_genes,)``.
    retrieval_pcc
        The same of retrieval alone, without the ridge head and the kernel head; None in models of earlier versions.
    """

    center: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    expected_errors: np.ndarray
    outlier_distance: float
    outlier_slide: float
    expected_pcc: np.ndarray
    retrieval_pcc: np.ndarray | None = None

    def confidence(self, predictors: np.ndarray, slices: np.ndarray) -> np.ndarray:
        """Compute the confidence: the share of reference spots with a larger expected error, ``(n_query,)``, 0 to 1.

        The error model does not extend beyond the reference's range. There, the share is divided by the ratio of the
        distance to its limit, for the spot and for its slide.
        """
        error = _linear(predictors, self.center, self.scale, self.coefficients)
        share = 1.0 - np.searchsorted(self.expected_errors, error) / len(self.expected_errors)
        distance = predictors[:, PREDICTORS.index("distance")]
        beyond = distance > self.outlier_distance
        share = share * np.divide(self.outlier_distance, distance, out=np.ones_like(share), where=beyond)
        names, medians, _, in_range = self._by_slide(predictors, slices)
        for name, median in zip(names[~in_range], medians[~in_range], strict=True):
            share[slices == name] *= self.outlier_slide / median
        return share

    def outlier(self, predictors: np.ndarray, slices: np.ndarray) -> np.ndarray:
        """Flag spots whose patch, or whose slide as a whole, is out of the reference's range, ``(n_query,)``."""
        flagged = predictors[:, PREDICTORS.index("distance")] > self.outlier_distance
        names, _, _, in_range = self._by_slide(predictors, slices)
        return flagged | np.isin(slices, names[~in_range])

    def slides(self, predictors: np.ndarray, slices: np.ndarray) -> pd.DataFrame:
        """Compare each slide as a whole with the reference.

        Returns
        -------
        pandas.DataFrame
            One row per slide: ``distance`` (median of its spots), ``limit`` beyond which it is out of range,
            ``n_spots``, ``in_range`` and ``verdict``, a description. A slide of few spots counts as in range.
        """
        names, medians, n_spots, in_range = self._by_slide(predictors, slices)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = medians / self.outlier_slide
        verdicts = []
        for share, few, alike in zip(shares, n_spots < _SLIDE_SPOTS, in_range, strict=True):
            if few:
                verdicts.append(f"fewer than {_SLIDE_SPOTS} positions: too few to judge the slide as a whole")
            elif alike:
                verdicts.append(f"stain and tissue look like the reference's: at {share:.0%} of the limit")
            else:
                unlike = "stain, scanner or tissue is unlike any reference slide"
                verdicts.append(f"{unlike}: at {share:.0%} of the limit; do not rely on it")
        columns = {"distance": medians, "limit": self.outlier_slide, "n_spots": n_spots, "in_range": in_range}
        return pd.DataFrame(columns | {"verdict": verdicts}, index=names.astype(str))

    def _by_slide(
        self, predictors: np.ndarray, slices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the names of the slides, their median distances and numbers of spots, and which are in range."""
        distance = predictors[:, PREDICTORS.index("distance")]
        names, n_spots = np.unique(slices, return_counts=True)
        medians = np.array([np.median(distance[slices == name]) for name in names])
        return names, medians, n_spots, (medians <= self.outlier_slide) | (n_spots < _SLIDE_SPOTS)


def error_predictors(
    neighbors: Neighbors, retrieved: np.ndarray, prediction: np.ndarray, table: ReferenceTable, distance: np.ndarray
) -> np.ndarray:
    """Compute the predictors of a prediction's error, which need no measured expression, ``(n_query, 4)``.

    In the order of :data:`PREDICTORS`: the weighted similarity of the neighbors, the spread of their expression around
    its mean ``retrieved``, the distance to the nearest reference patches, and the mean of the predicted expression.
    """
    similarity = (neighbors.weights * neighbors.similarity).sum(1)
    second = (neighbors.weights * table.mean_squares[neighbors.ids]).sum(1)
    first = np.einsum("ij,ij->i", retrieved, retrieved, dtype=np.float64) / max(retrieved.shape[1], 1)
    spread = np.sqrt(np.maximum(second - first, 0.0))
    return np.stack([similarity, spread, distance, prediction.mean(1)], axis=1)


@dataclass(frozen=True)
class HeldOut:
    """Prediction of spots that were held out.

    Parameters
    ----------
    prediction
        Predicted panel, ``(n_spots, n_genes)``.
    retrieved
        What retrieval alone predicts, ``(n_spots, n_genes)``.
    predictors
        Predictors of the prediction's error, ``(n_spots, 4)``.
    """

    prediction: np.ndarray
    retrieved: np.ndarray
    predictors: np.ndarray


def calibrate(
    folds: list[np.ndarray],
    predict: Callable[[np.ndarray], HeldOut],
    truth: sparse.csr_matrix,
    slices: np.ndarray,
) -> Calibration:
    """Hold each fold of the reference out once, and fit the calibration on the errors of its prediction.

    Parameters
    ----------
    folds
        Rows of each held-out part of the reference.
    predict
        Function from held-out rows to their prediction, which is computed without these rows.
    truth
        Log-normalized panel of the reference, ``(n_reference, n_genes)``.
    slices
        Slice of each reference spot, ``(n_reference,)``.
    """
    predictors = np.zeros((truth.shape[0], len(PREDICTORS)))
    errors = np.zeros(truth.shape[0])
    correlations, of_retrieval = [], []
    for rows in track(folds, "Calibration"):
        found = predict(rows)
        predictors[rows] = found.predictors
        measured = truth[rows].toarray()
        errors[rows] = np.sqrt(((found.prediction - measured) ** 2).mean(1))
        correlations.append(pearson(measured, found.prediction))
        of_retrieval.append(pearson(measured, found.retrieved))
    center, scale = predictors.mean(0), np.maximum(predictors.std(0), 1e-8)
    design = np.column_stack([(predictors - center) / scale, np.ones(len(predictors))])
    # Small ridge penalty: similarity and distance are nearly collinear.
    penalty = np.diag([*[0.01 * len(predictors)] * len(PREDICTORS), 0.0])
    coefficients = np.linalg.solve(design.T @ design + penalty, design.T @ errors)
    expected = np.sort(_linear(predictors, center, scale, coefficients))
    distance = predictors[:, PREDICTORS.index("distance")]
    farthest = max(float(np.median(distance[slices == name])) for name in np.unique(slices))
    limits = float(np.quantile(distance, _OUTLIER_QUANTILE)), _OUTLIER_SLIDE * farthest
    by_gene = np.mean(correlations, axis=0), np.mean(of_retrieval, axis=0)
    return Calibration(center, scale, coefficients, expected, *limits, *by_gene)


def calibration_folds(slices: np.ndarray, coordinates: np.ndarray) -> list[np.ndarray]:
    """Split the reference into folds for calibration.

    Returns
    -------
    list of numpy.ndarray
        Rows of each slice, or of groups of slices if there are many; for a single slice, of its left and right half.
    """
    names = list(dict.fromkeys(slices))
    if len(names) > 1:
        groups = [names[start::_MAX_FOLDS] for start in range(min(_MAX_FOLDS, len(names)))]
        return [np.flatnonzero(np.isin(slices, group)) for group in groups]
    left = coordinates[:, 0] <= np.median(coordinates[:, 0])
    if min(left.sum(), (~left).sum()) < _LEAST_FOLD:
        # Most spots have the same x: split by rank.
        left = np.zeros(len(slices), dtype=bool)
        left[np.lexsort((coordinates[:, 1], coordinates[:, 0]))[: len(slices) // 2]] = True
    return [np.flatnonzero(left), np.flatnonzero(~left)]


def choice_folds(slices: np.ndarray, coordinates: np.ndarray) -> list[np.ndarray]:
    """Split the reference into folds on which settings of the kernel head are chosen, which needs no training.

    Returns
    -------
    list of numpy.ndarray
        As :func:`calibration_folds`; for a single slice, its quadrants, without those that hold no spot.
    """
    if len(np.unique(slices)) > 1:
        return calibration_folds(slices, coordinates)
    beyond = coordinates[:, :2] > np.median(coordinates[:, :2], axis=0)
    quadrant = 2 * beyond[:, 0] + beyond[:, 1]
    return [np.flatnonzero(quadrant == number) for number in np.unique(quadrant)]


def _linear(predictors: np.ndarray, center: np.ndarray, scale: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return ((predictors - center) / scale) @ coefficients[:-1] + coefficients[-1]
