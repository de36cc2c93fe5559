"""Exact search beside the least that it can take: the matrix product, and the k largest of each row.

    python benchmarks/search.py --docs docs/results/speed

The bare things are measured in turn with the search, in the same blocks of queries and keys, with one thread:

- *product*: the matrix product alone, of which nothing is kept;
- *product and top-k*: the product, the ``k`` largest values of each block in order (with ``torch.topk``, and with
  numpy's ``argpartition`` and a sort of what it found), and those of all blocks together. The faster of the two counts,
  in each round anew.

With ``--base``, the search of another commit is measured in the same rounds, and must find the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from compare import source_of
from figures import spread
from tables import between, markdown, number, write_table

from st_gchb.retrieval import _exact

SIZES = {500: 1024, 3600: 1024, 14_400: 1024, 57_600: 512, 230_400: 256, 1_000_000: 128}
"""Reference spots, and queries."""
WIDTH, K = 128, 400
"""Embedding dimension and number of neighbors of the default model."""

Pair = tuple[torch.Tensor, torch.Tensor]
Select = Callable[[torch.Tensor, int], Pair]


def normalized(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw L2-normalized embeddings, ``(n, WIDTH)``."""
    values = rng.standard_normal((n, WIDTH), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def by_torch(block: torch.Tensor, k: int) -> Pair:
    """Select the ``k`` largest of each row with torch."""
    top = block.topk(k, dim=1)
    return top.values, top.indices


def by_numpy(block: torch.Tensor, k: int) -> Pair:
    """Select the ``k`` largest of each row with numpy."""
    values = block.numpy()
    columns = np.argpartition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1)
    return tuple(torch.from_numpy(np.take_along_axis(one, order, axis=1)) for one in (found, columns))  # type: ignore[return-value]


def product(
    queries: torch.Tensor, keys: torch.Tensor, select: Callable[[torch.Tensor, int], Pair] | None, k: int
) -> None:
    """Compute all similarities in the blocks of the search and, with ``select``, the ``k`` largest of each row."""
    for part in queries.split(_exact._QUERIES):
        best: Pair | None = None
        for number_of, block in enumerate(keys.split(_exact._KEYS)):
            similarity = torch.mm(part, block.T)
            if select is None:
                continue
            values, columns = select(similarity, min(k, similarity.shape[1]))
            columns = columns + number_of * _exact._KEYS
            if best is not None:
                values, order = select(torch.cat([best[0], values], dim=1), k)
                columns = torch.cat([best[1], columns], dim=1).gather(1, order)
            best = values, columns


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Measure the CPU seconds of a call."""
    before = time.process_time()
    call()
    return time.process_time() - before


def search_of(source: Path) -> ModuleType:
    """Load the search of another commit, which imports nothing but the package's errors."""
    spec = importlib.util.spec_from_file_location("other_search", source / "st_gchb" / "retrieval" / "_exact.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_size(n: int, n_queries: int, rounds: int, other: ModuleType | None) -> list[str]:
    """Measure one size of the reference, and return the line of the table."""
    rng = np.random.default_rng(0)
    arrays = normalized(n_queries, rng), normalized(n, rng)
    tensors = [torch.from_numpy(one) for one in arrays]
    k = min(K, n)
    calls: dict[str, Callable[[], Any]] = {
        "search": lambda: _exact.nearest(*arrays, k),
        "product": lambda: product(tensors[0], tensors[1], None, k),
        "torch": lambda: product(tensors[0], tensors[1], by_torch, k),
        "numpy": lambda: product(tensors[0], tensors[1], by_numpy, k),
    }
    if other is not None:
        calls["before"] = lambda: other.nearest(*arrays, k)
        for ours, theirs in zip(_exact.nearest(*arrays, k), other.nearest(*arrays, k), strict=True):
            if not np.array_equal(ours, theirs):
                raise SystemExit(f"error: with {n} reference spots, the two commits find different neighbors.")
    for call in calls.values():
        call()
    times = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(rounds)]
    least = [min(one["torch"], one["numpy"]) for one in times]
    search = [one["search"] for one in times]
    line = [f"{n:,}", f"{n_queries:,}", number(1000 * spread(search)[0])]
    line.append(between(spread([one / bare for one, bare in zip(search, least, strict=True)])))
    line.append(number(1000 * spread([one - bare for one, bare in zip(search, least, strict=True)])[0]))
    line.append(between(spread([one["product"] / one["search"] for one in times])))
    if other is not None:
        line.append(between(spread([one["search"] / one["before"] for one in times])))
    print(" | ".join(line), flush=True)
    return line


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="reference spots")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", help="commit whose search is measured too")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        other = None
        if given.base:
            name, source = stack.enter_context(source_of(given.base))
            other = search_of(source)
        lines = [one_size(n, SIZES.get(n, 1024), given.rounds, other) for n in given.sizes]
    header = ["reference spots", "queries", "search, CPU ms", "search / product and top-k", "beyond it, CPU ms"]
    header += ["product's share of the search", *([f"search / that of {name}"] if given.base else [])]
    same = " Both commits find the same neighbors, bit for bit." if given.base else ""
    note = f"{K} neighbors (at most all), {WIDTH} numbers each, one thread, {given.rounds} rounds in turn.{same}"
    text = markdown(header, lines) + f"\n\n{note}\n"
    print(text)
    if given.docs:
        write_table(given.docs, "search", text)


if __name__ == "__main__":
    main()
