"""Reading of patches by several threads beside one, in turn: JPEG-tiled TIFF and SVS.

    python benchmarks/parallel_reading.py --docs docs/results/speed
    python benchmarks/parallel_reading.py --threads 4 --spots 14400

All patches of a slide of DLPFC's geometry in full resolution are read and resampled to 224 px, without an encoder, and
its pixels are decoded by one thread, with nothing done with them. As many processes as threads, each of which reads the
whole slide with one thread, show what the machine gives to several at most: cores slow each other down by what they
share. Before anything is timed, the patches that several threads give are compared to those of one thread, byte by
byte. Valid on an otherwise idle machine only: a round in which other processes took more than a tenth of a core is
repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from anndata import AnnData
from bench_limits import INPUT_PX, PATCH_UM, decode
from measuring import Sample, timed
from slides import DLPFC_SPOTS, DLPFC_UM_PER_PX, svs_slide, tiff_slide
from tables import between, markdown, number, write_figures, write_table

from st_gchb.pp import read_patches, slices_of

OTHERS = 0.1
"""Cores that other processes may take in a round that counts."""
PATIENCE = 10
"""Rounds that are tried for each one that counts."""
KINDS: dict[str, Callable[[Path, int, float], AnnData]] = {"slide.tif": tiff_slide, "slide.svs": svs_slide}


def read(adata: AnnData, path: Path, threads: int, take: Callable[[memoryview], Any] = len) -> None:
    """Read all patches with a number of threads, from opening the file on; ``take`` is given rows and patches."""
    torch.set_num_threads(threads)
    (only,) = slices_of(adata, image=path, um_per_px=DLPFC_UM_PER_PX)
    for rows, patches in read_patches(only, PATCH_UM / DLPFC_UM_PER_PX, INPUT_PX):
        take(rows.data)
        take(patches.data)
    only.image.release()


def hashed(adata: AnnData, path: Path, threads: int) -> str:
    """Read all patches, and return a hash of them and of their order."""
    digest = hashlib.sha256()
    read(adata, path, threads, digest.update)
    return digest.hexdigest()


def answer(asked: Connection, adata: AnnData, path: Path) -> None:
    """Read all patches with one thread whenever asked, and answer with the CPU time that it took, s."""
    read(adata, path, 1)
    asked.send(0.0)
    while asked.recv():
        asked.send(timed(lambda: read(adata, path, 1))["cpu_s"])


class Processes:
    """Processes that read the whole slide at once, each with one thread; they end with the ``with`` block."""

    def __init__(self, adata: AnnData, path: Path, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._asked = []
        for _ in range(number):
            own, other = spawn.Pipe()
            spawn.Process(target=answer, args=(other, adata, path), daemon=True).start()
            self._asked.append(own)

    def __enter__(self) -> Processes:
        for own in self._asked:
            own.recv()
        return self

    def __exit__(self, *_: object) -> None:
        for own in self._asked:
            own.send(False)

    def read(self) -> Sample:
        """Have all of them read."""
        start = time.perf_counter()
        for own in self._asked:
            own.send(True)
        cpu_s = sum(own.recv() for own in self._asked)
        return {"wall_s": time.perf_counter() - start, "cpu_s": cpu_s}


def busy_s() -> float:
    """Return the seconds for which the machine's cores have been busy since it started, all together."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + soft) / 100


def quiet(rounds: Callable[[], list[Sample]]) -> list[Sample] | None:
    """Measure a round; None if other processes disturbed it."""
    busy, wall = busy_s(), time.perf_counter()
    found = rounds()
    others = busy_s() - busy - sum(sample["cpu_s"] for sample in found)
    return found if others < OTHERS * (time.perf_counter() - wall) else None


def measure(adata: AnnData, path: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Read by one thread and by several, decode alone, and read by several processes, in turn."""
    same = hashed(adata, path, 1) == hashed(adata, path, threads)
    tried = 0
    kept: list[list[Sample]] = []
    with Processes(adata, path, threads) as processes:

        def once() -> list[Sample]:
            calls = (lambda: read(adata, path, 1), lambda: read(adata, path, threads), lambda: decode(path))
            return [*(timed(call) for call in calls), processes.read()]

        while len(kept) < rounds and tried < rounds * PATIENCE:
            tried += 1
            found = quiet(once)
            if found is not None:
                kept.append(found)
    if not kept:
        raise SystemExit(f"No round of {tried} was undisturbed: end other processes first.")
    one, several, decoded, apart = zip(*kept, strict=True)
    results = {"one": one, "several": several, "decode": decoded, "processes": apart}
    return {"case": path.name, "same": same, "tried": tried} | results


def spread(
    over: list[Sample], under: list[Sample], which: str = "wall_s", times: int = 1
) -> tuple[float, float, float]:
    """Compute the median, smallest and largest ratio of the rounds, of a number of ``over`` to one ``under``."""
    found = [times * a[which] / b[which] for a, b in zip(over, under, strict=True)]
    return statistics.median(found), min(found), max(found)


def table(results: list[dict[str, Any]], spots: int, threads: int) -> str:
    """Format one line per slide."""
    header = ["", "one thread, s", f"{threads} threads, s", "times faster", f"{threads} processes, times"]
    header += [f"CPU time of {threads} threads"]
    header += ["read and decode / one thread", f"read and decode / {threads} threads", "same patches"]
    lines = [
        [
            Path(found["case"]).suffix[1:].upper(),
            number(statistics.median(sample["wall_s"] for sample in found["one"])),
            number(statistics.median(sample["wall_s"] for sample in found["several"])),
            between(spread(found["one"], found["several"])),
            between(spread(found["one"], found["processes"], times=threads)),
            between(spread(found["several"], found["one"], "cpu_s")),
            between(spread(found["decode"], found["one"])),
            between(spread(found["decode"], found["several"])),
            "yes" if found["same"] else "NO",
        ]
        for found in results
    ]
    counted = " and ".join(f"{len(found['one'])} of {found['tried']}" for found in results)
    return (
        f"{markdown(header, lines)}\n\n{spots:,} spots of a slide of {DLPFC_UM_PER_PX} µm a pixel, patches of "
        f"{PATCH_UM:g} µm as {INPUT_PX} px; medians of rounds in turn with their range, wall clock but for the CPU "
        f"time; {counted} rounds were undisturbed. *{threads} processes*: what they read, each the whole slide "
        "with one thread and all at once, beside one alone.\n"
    )


def main() -> None:
    """Parse the command line, write the slides, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=DLPFC_SPOTS, help=f"spots of a slide (default: {DLPFC_SPOTS})")
    parser.add_argument("--threads", type=int, default=2, help="threads beside one (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count, of each slide (default: 15)")
    parser.add_argument("--out", type=Path, help="file for all figures, JSON")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="parallel_reading_") as folder:
        for name, write in KINDS.items():
            path = Path(folder) / name
            adata = write(path, given.spots, DLPFC_UM_PER_PX)
            results.append(measure(adata, path, given.threads, given.rounds))
    text = table(results, given.spots, given.threads)
    print(text)
    if given.out:
        write_figures(given.out, results)
    if given.docs:
        write_table(given.docs, "parallel_reading", text)


if __name__ == "__main__":
    main()
