"""Training on a million spots with features on disk: peak memory, and seconds of each stage.

python benchmarks/million.py --docs docs/results/speed
python benchmarks/million.py --spots 100000 --epochs 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measuring import apart
from slides import N_FEATURES
from tables import markdown, number, write_figures, write_table
from training_size import NETWORKS, one_size


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=1_000_000)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--network", choices=list(NETWORKS), default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file for all figures, JSON")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    found = apart(one_size, given.spots, given.slices, given.epochs, given.network, given.device, given.threads)
    gib = {
        "features in files": given.spots * N_FEATURES * 2 / 2**30,
        "peak of the process's own memory, beyond the imports": found["own_mib"] / 1024,
        "the imports": found["imports_mib"] / 1024,
    }
    lines = [[name, number(value), "GiB"] for name, value in gib.items()]
    for stage, samples in found["seconds"].items():
        lines.append([stage, number(samples[-1]["cpu_s"]), "CPU s"])
    settings = f"{given.spots:,} spots in {given.slices} slices, network {given.network}, {given.threads} thread(s)"
    text = markdown(["", "", ""], lines) + f"\n\n{settings}, device {given.device}.\n"
    print(text)
    if given.out:
        write_figures(given.out, found)
    if given.docs:
        write_table(given.docs, "million", text)


if __name__ == "__main__":
    main()
