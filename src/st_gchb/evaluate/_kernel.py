"""Baselines without a network: kernel ridge and reduced-rank ridge on the frozen features of a spot's neighborhood.

Both predict the leading principal components of expression, which leaves most of the counts' noise out of the targets.
Their settings are chosen by leaving out training slices; the held-out spots have no part in that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh

from st_gchb._errors import SliceError
from st_gchb._logging import logger
from st_gchb._options import EncoderKind
from st_gchb.evaluate._feature_parts import columns_of
from st_gchb.evaluate._folds import GAP_PITCHES, block_splits
from st_gchb.evaluate._task import Task
from st_gchb.io import spot_centers
from st_gchb.metrics import per_gene, summary
from st_gchb.model import NeighborhoodAggregator, fit_map
from st_gchb.retrieval import Landmarks, blocks, median_scale, rbf, ridge_weights

_RINGS = 2
_COMPONENTS = {"rbf": 64, "linear": 256}
"""Number of components of a spot's features."""
_WHITENING = {"rbf": 0.5, "linear": 0.0}

RANKS = (5, 10, 20, 40)
"""Numbers of components of expression that the choice is made from."""
WIDTHS = (0.7, 1.0, 1.4)
"""Widths ``w`` of the RBF kernel ``exp(-distance^2 / w^2)``, as multiples of the training spots' median distance."""
RIDGES = {"rbf": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "linear": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)}
"""Ridge penalties; of the linear kernel as shares of the inputs' total variance."""

N_EXACT = 8000
"""Largest number of training spots with which a kernel matrix is solved as it is: 0.5 GB."""
N_LANDMARKS = 2000
_MOST_PARTS = 5
"""Largest number of parts in which the training slices are left out in turn."""

KernelName = Literal["rbf", "linear"]


def kernel_ridge(task: Task, *, encoders: EncoderKind) -> np.ndarray:
    """Kernel ridge on the patch features of spots and their neighborhoods, with low-rank targets.

    A spot is described by its own features, centered on their slice, and their means over its first and second ring in
    the spot graph, as 64 half-whitened principal components. An RBF kernel is made for each patch size and encoder; the
    prediction is the mean of the kernels' predictions. Targets are the leading principal components of the panel's
    expression, centered on its slice. Width of the kernels, ridge of each component, and number of components are
    chosen by leaving out training slices, or quadrants where there is a single one.

    With more than 8,000 training spots the kernel takes 2,000 of them, drawn with the seed, as landmarks (Nyström).

    Parameters
    ----------
    task
        Training and held-out spots.
    encoders
        Features to use: those of image encoders, of the texture encoder, or both.

    Returns
    -------
    numpy.ndarray
        Predicted log-normalized expression, ``(n_test, n_genes)``.

    Raises
    ------
    MissingKeyError
        There are no such features.
    SliceError
        The only training slice is too small to leave out a part of it.
    """
    parts = columns_of(task.train, task.features_key, encoders)
    return _low_rank(task, _inputs(task, parts, "rbf"), "rbf")


def reduced_rank_ridge(task: Task) -> np.ndarray:
    """Ridge on the features of spots and their neighborhoods, with the targets of :func:`kernel_ridge`.

    It is linear in 256 principal components of the standardized features, of all encoders and patch sizes together.
    Ridge and number of components of expression are chosen by leaving out training slices, or quadrants where there is
    a single one.

    Raises
    ------
    SliceError
        The only training slice is too small to leave out a part of it.
    """
    return _low_rank(task, _inputs(task, [slice(None)], "linear"), "linear")


@dataclass(frozen=True)
class Inputs:
    """Components of the neighborhoods' features, ``(n_train, n_components)`` and ``(n_test, n_components)``."""

    train: np.ndarray
    test: np.ndarray


def _inputs(task: Task, parts: Sequence[slice], kernel: KernelName) -> list[Inputs]:
    """Describe spots by their neighborhoods, for each part of the features."""
    tables = (task.train, task.test)
    places = [(task.graph(table), table.obs[task.slice_key].astype(str).to_numpy()) for table in tables]
    result = []
    for columns in parts:
        plain = [np.asarray(table.obsm[task.features_key][:, columns], np.float32) for table in tables]
        look = NeighborhoodAggregator(_RINGS, plain[0].mean(0, dtype=np.float64))
        train, test = (look(features, *place) for features, place in zip(plain, places, strict=True))
        project = fit_map(train, _COMPONENTS[kernel], whitening=_WHITENING[kernel], seed=task.seed)
        result.append(Inputs(project(train).astype(np.float64), project(test).astype(np.float64)))
    return result


@dataclass(frozen=True)
class Targets:
    """Low-rank targets.

    Parameters
    ----------
    mean
        Mean log-normalized expression of the training spots, ``(n_genes,)``.
    scores
        Principal components of the expression that is centered on its slice, ``(n_train, rank)``.
    directions
        Their directions, ``(n_genes, rank)``, by descending variance.
    """

    mean: np.ndarray
    scores: np.ndarray
    directions: np.ndarray

    def expression(self, scores: np.ndarray, rank: int) -> np.ndarray:
        """Compute the expression of the first ``rank`` components, ``(n, n_genes)``."""
        return np.asarray(self.mean + scores[:, :rank] @ self.directions[:, :rank].T)


def fit_targets(truth: np.ndarray, slices: np.ndarray, rank: int) -> Targets:
    """Fit low-rank targets on expression ``(n_train, n_genes)`` of spots of the slices ``(n_train,)``."""
    centered = on_slices(truth, slices)
    n_genes = centered.shape[1]
    directions = eigh(centered.T @ centered, subset_by_index=[max(n_genes - rank, 0), n_genes - 1])[1][:, ::-1]
    return Targets(truth.mean(0, dtype=np.float64), centered @ directions, directions)


def on_slices(truth: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Center expression ``(n_spots, n_genes)`` on its slice; float64."""
    centered = truth.astype(np.float64)
    for name in np.unique(slices):
        centered[slices == name] -= centered[slices == name].mean(0)
    return centered


@dataclass(frozen=True)
class Kernel:
    """Kernel whose mean on its diagonal is 1 on the training spots.

    Parameters
    ----------
    name
        ``"rbf"``, ``exp(-scale * squared distance)``, or ``"linear"``, ``scale`` times the inner product.
    scale
        Factor of the squared distances or inner products.
    """

    name: KernelName
    scale: float

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Evaluate the kernel at pairs of spots, ``(n_a, n_b)``."""
        if self.name == "linear":
            return self.scale * (a @ b.T)
        return rbf(a, b, self.scale)


def candidates(name: KernelName, x: np.ndarray, seed: int) -> list[Kernel]:
    """Return the kernels from which the choice is made, for the components ``(n_spots, n_components)``."""
    if name == "linear":
        return [Kernel(name, 1.0 / max(float((x**2).sum(1).mean()), np.finfo(float).tiny))]
    scale = median_scale(x, np.random.default_rng(seed))
    return [Kernel(name, scale / width**2) for width in WIDTHS]


def solve(kernel: Kernel, x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Solve kernel ridge for each of the ridges: predictions are ``kernel(query, points) @ coefficients``.

    Parameters
    ----------
    kernel
        The kernel.
    x, y
        Inputs ``(n_spots, n_components)`` and targets ``(n_spots, n_targets)``.
    seed
        Seed with which landmarks are drawn.

    Returns
    -------
    tuple
        Points ``(n_points, n_components)``, which are all spots, or landmarks where there are more than 8,000; and
        coefficients ``(n_ridges, n_points, n_targets)``.
    """
    ridges = [ridge * (len(x) if kernel.name == "linear" else 1.0) for ridge in RIDGES[kernel.name]]
    if len(x) <= N_EXACT:
        whole = kernel(x, x)
        return x, np.stack([ridge_weights(whole, y, ridge) for ridge in ridges])
    points = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:N_LANDMARKS])]
    space = Landmarks.at(points, kernel)
    sums = space.sums(x, y)
    return points, np.stack([space.coefficients(ridge_weights(*sums, ridge)) for ridge in ridges])


def mean_prediction(kernels: Sequence[Kernel], inputs: Sequence[Inputs], y: np.ndarray, seed: int) -> np.ndarray:
    """Predict targets with each of the ridges, as mean over the kernels, ``(n_ridges, n_test, n_targets)``."""
    total = np.zeros((len(RIDGES[kernels[0].name]), len(inputs[0].test), y.shape[1]))
    for kernel, own in zip(kernels, inputs, strict=True):
        points, coefficients = solve(kernel, own.train, y, seed)
        for rows in blocks(len(own.test)):
            total[:, rows] += kernel(own.test[rows], points) @ coefficients
    return total / len(kernels)


@dataclass(frozen=True)
class Choice:
    """Settings that were chosen by leaving out training slices.

    Parameters
    ----------
    width
        Position of the kernels' width among the candidates.
    rank
        Number of components of expression.
    ridges
        Position of each component's ridge among the candidates, ``(n_components,)``.
    """

    width: int
    rank: int
    ridges: np.ndarray


Part = tuple[np.ndarray, np.ndarray]
"""Rows of the training spots that stay and that are left out."""


def choose(
    kernels: Sequence[Sequence[Kernel]],
    inputs: Sequence[np.ndarray],
    truth: np.ndarray,
    slices: np.ndarray,
    parts: Sequence[Part],
    seed: int,
) -> Choice:
    """Choose width, ridges and rank by predicting parts of the training spots from the others.

    The ridge of a component is the one with the least squared error of its scores; width and rank are those with the
    largest mean of AG, HVG and HEG. The components of expression are those of the spots that stay. Parts of a single
    slice differ more than slices do, and the order of their components with them: there, ridges are chosen for the
    components of the whole slice, by the error that is left when the part's mean is taken off.

    Parameters
    ----------
    kernels
        Kernels of each width: one per element of ``inputs``.
    inputs
        Components of the training spots' features, each ``(n_train, n_components)``.
    truth, slices
        Log-normalized panel ``(n_train, n_genes)`` and slices ``(n_train,)`` of the training spots.
    parts
        Rows that stay and that are left out.
    seed
        Seed with which landmarks are drawn.
    """
    rank = largest_rank(truth, parts)
    targets = [fit_targets(truth[stay], slices[stay], rank) for stay, _ in parts]
    same = fit_targets(truth, slices, rank) if len(np.unique(slices)) == 1 else None
    best, found = -np.inf, Choice(0, rank, np.zeros(rank, dtype=int))
    for width, some in enumerate(kernels):
        predicted = [
            mean_prediction(some, [Inputs(x[stay], x[out]) for x in inputs], one.scores, seed)
            for (stay, out), one in zip(parts, targets, strict=True)
        ]
        errors = np.zeros((len(RIDGES[some[0].name]), rank))
        for (stay, out), one, scores in zip(parts, targets, predicted, strict=True):
            if same is None:
                # Components are matched over parts by their order: the leading ones are alike.
                errors += ((scores - on_slices(truth[out], slices[out]) @ one.directions) ** 2).sum(1)
            else:
                own = mean_prediction(some, [Inputs(x[stay], x[out]) for x in inputs], same.scores[stay], seed)
                errors += (own - same.scores[out]).var(1) * len(out)
        ridges = np.argmin(errors, axis=0)
        taken = [_with_ridges(p, ridges) for p in predicted]
        for number in [r for r in RANKS if r <= rank] or [rank]:
            answers = [one.expression(scores, number) for one, scores in zip(targets, taken, strict=True)]
            score = float(np.mean([_score(truth[o], a, slices[o]) for (_, o), a in zip(parts, answers, strict=True)]))
            if score > best:
                best, found = score, Choice(width, number, ridges)
    return found


def largest_rank(truth: np.ndarray, parts: Sequence[Part]) -> int:
    """Return the largest number of components that all parts have."""
    return min(RANKS[-1], truth.shape[1], *(len(stay) - 1 for stay, _ in parts))


def _with_ridges(predicted: np.ndarray, ridges: np.ndarray) -> np.ndarray:
    """Take each component's prediction with its ridge, ``(n_spots, n_components)``."""
    return np.asarray(np.take_along_axis(predicted, ridges[None, None, :], axis=0)[0])


def _score(truth: np.ndarray, prediction: np.ndarray, slices: np.ndarray) -> float:
    """Compute the mean of AG, HVG and HEG, as mean over slices."""
    names = [str(column) for column in range(truth.shape[1])]
    rows = [summary(per_gene(truth[own], prediction[own], names)) for own in (slices == s for s in np.unique(slices))]
    return float(np.mean([[row[name] for name in ("AG", "HVG", "HEG")] for row in rows]))


def left_out_parts(task: Task) -> list[Part]:
    """Split the training spots by slice, or a single slice into quadrants with a gap.

    Raises
    ------
    SliceError
        There is a single slice, of which nothing is left beyond the gap around a quadrant.
    """
    slices = task.train.obs[task.slice_key].astype(str).to_numpy()
    names = np.unique(slices)
    everything = np.arange(len(slices))
    if len(names) > 1:
        out = [np.flatnonzero(np.isin(slices, some)) for some in np.array_split(names, min(len(names), _MOST_PARTS))]
        return [(np.setdiff1d(everything, rows), rows) for rows in out]
    blocks = block_splits(spot_centers(task.train))
    parts = [(stay, out) for _, stay, out in blocks if min(len(stay), len(out)) > 1]
    if not parts:
        raise SliceError(
            f"Ridge and rank are chosen by leaving out a quarter of the only training slice {names[0]!r}, but of its "
            f"{len(slices)} spots none are beyond the gap of {GAP_PITCHES} pitches around it. Pass more slices, or "
            "leave this method out."
        )
    return parts


def _low_rank(task: Task, inputs: Sequence[Inputs], name: KernelName) -> np.ndarray:
    slices = task.train.obs[task.slice_key].astype(str).to_numpy()
    truth, parts = task.targets(), left_out_parts(task)
    kernels = list(zip(*(candidates(name, own.train, task.seed) for own in inputs), strict=True))
    choice = choose(kernels, [own.train for own in inputs], truth, slices, parts, task.seed)
    logger.info(
        "Chosen by leaving out %d parts of the training spots: %d components of expression%s, ridges %s.",
        len(parts),
        choice.rank,
        f", width {WIDTHS[choice.width]:g} times the median distance" if name == "rbf" else "",
        ", ".join(f"{RIDGES[name][ridge]:g}" for ridge in choice.ridges[: choice.rank]),
    )
    targets = fit_targets(truth, slices, len(choice.ridges))
    scores = mean_prediction(kernels[choice.width], inputs, targets.scores, task.seed)
    return targets.expression(_with_ridges(scores, choice.ridges), choice.rank)
