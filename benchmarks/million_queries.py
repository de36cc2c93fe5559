"""Search of 10,000 queries in a million reference spots: exact search against the matrix product alone, and the index.

    python benchmarks/million_queries.py --docs docs/results/speed
    python benchmarks/million_queries.py --spots 200000 --queries 2000

Synthetic embeddings have a spectrum as uneven as those of a model trained on her2st (half of the variance in about five
of 128 directions), and the same similarity of a query to the key of its own spot (cosine 0.66). The worst case, an
isotropic distribution, is measured too: there the index has to probe most of its lists.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Watch, apart, timed
from tables import markdown, number, write_figures, write_table

from st_gchb.retrieval import SearchIndex, find_neighbors
from st_gchb.retrieval._exact import _KEYS, _QUERIES
from st_gchb.retrieval._faiss import overlap

WIDTH = 128
OWN = 0.66
"""Cosine of a query and the key of its own spot, as in a trained model."""


def unit(values: np.ndarray) -> np.ndarray:
    """Scale rows to unit length, float32."""
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def embeddings(n_keys: int, n_queries: int, *, uneven: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw keys and queries, ``(n_keys, 128)`` and ``(n_queries, 128)``."""
    rng = np.random.default_rng(0)
    share = np.arange(1, WIDTH + 1) ** (-1.25 if uneven else 0.0)
    share[48:] *= 0.05 if uneven else 1.0
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)

    def drawn(n: int, spread: np.ndarray) -> np.ndarray:
        return unit((rng.standard_normal((n, WIDTH), dtype=np.float32) * spread.astype(np.float32)) @ turn)

    keys = drawn(n_keys, np.sqrt(share))
    own = keys[rng.integers(0, n_keys, n_queries)]
    # The deviation of a query from its key, which comes from the image, has a more even spectrum than expression.
    return keys, unit(OWN * own + np.sqrt(1 - OWN**2) * drawn(n_queries, share**0.25))


def product(queries: np.ndarray, keys: np.ndarray) -> Callable[[], None]:
    """Build a function that computes the matrix product alone, in blocks of the size of the search."""
    one, other = torch.from_numpy(queries), torch.from_numpy(keys)

    def run() -> None:
        for part in one.split(_QUERIES):
            for block in other.split(_KEYS):
                torch.mm(part, block.T)

    return run


def searches(n_keys: int, n_queries: int, k: int, uneven: bool, rounds: int, threads: int) -> dict[str, Any]:
    """Measure the product, the exact search and the index alternately, and recall and peak memory."""
    torch.set_num_threads(threads)
    keys, queries = embeddings(n_keys, 2 * n_queries, uneven=uneven)
    for_tuning, queries = queries[n_queries:], queries[:n_queries]
    made: dict[str, Any] = {}
    building = timed(lambda: made.update(index=SearchIndex.build(keys, for_tuning, k)))
    calls = {
        "product": product(queries, keys),
        "exact": lambda: made.update(exact=find_neighbors(queries, keys, k=k)),
        "index": lambda: made.update(found=find_neighbors(queries, keys, k=k, index=made["index"])),
    }
    find_neighbors(queries[:8], keys, k=k, index=made["index"])
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    with Watch() as watch:
        for _ in range(rounds):
            for name, call in calls.items():
                seconds[name].append(timed(call))
    return {
        "k": k,
        "uneven": uneven,
        "seconds": seconds,
        "building": building,
        "stated_recall": made["index"].recall,
        "recall": overlap(made["found"].ids, made["exact"].ids),
        "n_probe": made["index"].n_probe,
        "n_lists": len(made["index"].centers),
        "peak_mib": watch.own / 1024,
    }


def ratio(found: dict[str, Any], over: str, under: str) -> float:
    """Compute the median over the rounds of the ratio of two wall-clock times."""
    pairs = zip(found["seconds"][over], found["seconds"][under], strict=True)
    return statistics.median(one["wall_s"] / other["wall_s"] for one, other in pairs)


def table(results: list[dict[str, Any]]) -> str:
    """Format one line per number of neighbors and kind of embeddings."""
    header = ["embeddings", "k", "exact / bare product", "index, times faster than exact", "recall stated", "recall"]
    header += ["lists probed", "index built in, s"]
    lines = [
        [
            "as a model's" if found["uneven"] else "all directions alike",
            str(found["k"]),
            f"{ratio(found, 'exact', 'product'):.2f}",
            f"{ratio(found, 'exact', 'index'):.1f}",
            f"{found['stated_recall']:.3f}",
            f"{found['recall']:.3f}",
            f"{found['n_probe']} of {found['n_lists']}",
            number(found["building"]["wall_s"]),
        ]
        for found in results
    ]
    return markdown(header, lines)


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--neighbors", type=int, nargs="+", default=[50, 400])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for all figures, JSON")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    cases = [(k, True, given.rounds) for k in given.neighbors] + [(given.neighbors[0], False, 1)]
    results = []
    for k, uneven, rounds in cases:
        results.append(apart(searches, given.spots, given.queries, k, uneven, rounds, given.threads))
        print(json.dumps(results[-1]), flush=True)
    peak = max(found["peak_mib"] for found in results) / 1024
    settings = (
        f"{given.queries:,} queries, {given.spots:,} reference spots, {WIDTH} numbers each, {given.threads} thread(s)"
    )
    text = table(results) + f"\n\n{settings}; medians of {given.rounds} rounds in turn, wall clock; peak of the "
    text += (
        f"process's own memory {peak:.1f} GiB, of which keys and queries {4 * WIDTH * given.spots / 2**30:.1f} GiB.\n"
    )
    print(text)
    if given.out:
        write_figures(given.out, results)
    if given.docs:
        write_table(given.docs, "million_queries", text)


if __name__ == "__main__":
    main()
