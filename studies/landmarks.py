"""Loss of the kernel head's landmarks: Nyström's approximation against the exact solution, by size of the reference.

Inputs and targets are simulated, so that a reference can have a million spots: a hidden state of eight numbers gives 64
half-whitened inputs and 20 components of expression, smooth functions of the state with noise. Correlations are those
with held-out components, noise included, as means over the components; the ridge is the best on spots that are neither
reference nor held out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from st_gchb.metrics import pearson
from st_gchb.retrieval import RIDGES, Landmarks, median_scale, rbf, ridge_weights
from studies._command import new_parser, run_study
from studies._files import write_text

N_INPUTS, N_STATES, N_COMPONENTS, N_WAVES = 64, 8, 20, 200
N_HELD_OUT = 2500
"""Number of spots on which the ridge is chosen, and of those that are held out."""
NOISE = 1.5
"""Standard deviation of the noise of the components, whose own is 1: correlations are as high as on tissue."""
EXACT_UP_TO = 20_000
"""Largest reference of which the exact solution is computed; its kernel has 3.2 GB."""


def simulate(n_spots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw inputs, ``(n_spots, 64)`` float32, and components of expression, ``(n_spots, 20)``."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng([seed, 1])
    loadings = fixed.normal(size=(N_STATES, N_INPUTS)) / np.sqrt(N_STATES)
    waves = fixed.normal(size=(N_STATES, N_WAVES)) * np.geomspace(0.2, 1.0, N_WAVES)
    phases = fixed.uniform(0, 2 * np.pi, N_WAVES)
    weights = fixed.normal(size=(N_WAVES, N_COMPONENTS)) * np.geomspace(1.0, 0.3, N_WAVES)[:, None]
    state = rng.normal(size=(n_spots, N_STATES))
    spread = np.geomspace(2.0, 0.5, N_INPUTS)
    inputs = (np.tanh(state @ loadings) + 0.5 * rng.normal(size=(n_spots, N_INPUTS))) * spread
    signal = np.cos(state @ waves + phases) @ weights
    noise = rng.normal(size=signal.shape) * NOISE
    return inputs.astype(np.float32), signal / np.sqrt((weights**2).sum(0) / 2) + noise


def with_landmarks(
    x: np.ndarray, z: np.ndarray, scale: float, n_points: int, n_used: int
) -> tuple[np.ndarray, dict[float, np.ndarray]]:
    """Solve by landmarks, on a part of the spots: the landmarks, and their coefficients for every ridge."""
    rng = np.random.default_rng(0)
    used = np.sort(rng.permutation(len(x))[:n_used])
    space = Landmarks.at(x[np.sort(rng.permutation(used)[:n_points])], partial(rbf, scale=scale))
    gram, product = space.sums(x[used], z[used])
    return space.points, {ridge: space.coefficients(ridge_weights(gram, product, ridge)) for ridge in RIDGES}


def exactly(x: np.ndarray, z: np.ndarray, scale: float, ridges: Sequence[float]) -> dict[float, np.ndarray]:
    """Solve kernel ridge regression exactly, for some ridges."""
    found = {}
    for ridge in ridges:
        kernel = rbf(x, x, scale)
        kernel.flat[:: len(x) + 1] += ridge
        found[ridge] = cho_solve(cho_factor(kernel, overwrite_a=True, check_finite=False), z)
    return found


def correlation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Mean Pearson correlation over the components."""
    return float(pearson(measured, predicted).mean())


def measure(n_spots: int, points: Sequence[int], used: Sequence[int]) -> list[dict[str, object]]:
    """Measure every number of landmarks, every number of spots used, and the exact solution where it can be had."""
    x, z = simulate(n_spots, seed=0)
    other, truth = simulate(2 * N_HELD_OUT, seed=1)
    choose, held_out = slice(0, N_HELD_OUT), slice(N_HELD_OUT, None)
    scale = median_scale(x, np.random.default_rng(0))
    rows: list[dict[str, object]] = []

    def add(name: str, seconds: float, predictions: dict[float, np.ndarray]) -> float:
        best = max(predictions, key=lambda ridge: correlation(predictions[ridge][choose], truth[choose]))
        found = correlation(predictions[best][held_out], truth[held_out])
        rows.append({"spots": n_spots, "solution": name, "ridge": best, "correlation": found, "seconds": seconds})
        print(rows[-1], flush=True)
        return best

    best = 1.0
    ways = [(n, u) for n in points for u in used if n <= min(u, n_spots) and (u < n_spots or u == max(used))]
    for n_points, n_used in ways:
        start = time.process_time()
        landmarks, solved = with_landmarks(x, z, scale, n_points, min(n_used, n_spots))
        took = time.process_time() - start
        kernels = rbf(other, landmarks, scale)
        name = f"{n_points:,} landmarks" + (f", solved on {n_used:,} spots" if n_used < n_spots else "")
        best = add(name, took, {ridge: kernels @ weights for ridge, weights in solved.items()})
    if n_spots <= EXACT_UP_TO:
        at = RIDGES.index(best)
        start = time.process_time()
        exact = exactly(x, z, scale, RIDGES[max(at - 1, 0) : at + 2])
        took = (time.process_time() - start) / len(exact)
        kernels = rbf(other, x, scale)
        add("exact", took, {ridge: kernels @ weights for ridge, weights in exact.items()})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Format the measurements as Markdown."""
    lines = [
        "| reference spots | solution | correlation | of the best | CPU s, one kernel |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        best = max(float(one["correlation"]) for one in rows if one["spots"] == row["spots"])  # type: ignore[arg-type]
        share = float(row["correlation"]) / best  # type: ignore[arg-type]
        lines.append(
            f"| {row['spots']:,} | {row['solution']} | {row['correlation']:.4f} | {share:.1%} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("landmarks", __doc__, "--out docs/results/tissues")
    add = parser.add_argument
    add("--spots", nargs="+", type=int, default=[2000, 20_000, 1_000_000], help="sizes of the reference")
    add("--points", nargs="+", type=int, default=[500, 1000, 2000, 4000], help="numbers of landmarks")
    add("--used", nargs="+", type=int, default=[100_000, 1_000_000], help="numbers of spots to solve on")
    add("--out", type=Path, default=Path("docs/results/tissues"), help="folder of the table (default: %(default)s)")
    add("--quiet", action="store_true", help="warnings only")
    return parser


def run(arguments: argparse.Namespace) -> list[Path]:
    """Measure every size, and write the table."""
    rows = [row for n in arguments.spots for row in measure(n, arguments.points, arguments.used)]
    return [write_text(table(rows), arguments.out / "landmarks.md")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument ends it with status 2."""
    return run_study("landmarks", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
