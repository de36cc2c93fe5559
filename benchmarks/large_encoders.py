"""Start of encoders whose weights lie in a file, beside the code of another commit.

    python benchmarks/large_encoders.py --base v0.1.0 --docs docs/results/speed

Files with random weights are written once. Fresh processes then make each encoder of its file, by the source of either
commit in turn, the first of a round last in the next. Cost is CPU time beyond imports; the same is measured of reading
the file and doing nothing with it, which nothing can be faster than.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

ENCODERS = ("mobilenet_v2", "resnet50", "vit_l_16", "vit_h_14", "uni")
"""Names of encoders: of torchvision, and one of timm."""

PROCESS = """
import json, sys, time, warnings
name, file = sys.argv[1:]
warnings.filterwarnings("ignore")
import torch, torchvision
if name == "uni":
    import timm
from safetensors.torch import load_file
import st_gchb
from st_gchb.pp import get_encoder
torch.set_num_threads(1)
get_encoder("texture")
start = time.process_time()
numbers = [value.sum() for value in load_file(file).values()]
read = time.process_time()
encoder = get_encoder(name, file)
done = time.process_time()
from hashlib import sha256
held = sha256()
for value in encoder.module.state_dict().values():
    held.update(value.contiguous().numpy().tobytes())
found = {"read": read - start, "made": done - read, "weights": held.hexdigest(), "source": st_gchb.__file__}
print(json.dumps(found))
"""


def write_weights(name: str, file: Path) -> None:
    """Write a file of random weights of an encoder's architecture."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    import st_gchb

    encoder = st_gchb.pp.get_encoder(name, None)
    module: nn.Module = encoder.module
    torch.manual_seed(0)
    save_file({key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}, file)


def made(name: str, file: Path, source: Path) -> dict[str, float | str]:
    """Make an encoder of a file in a fresh process; seconds and a hash of its weights."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS, name, str(file)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"error: {name} could not be made by the package below {source}: {ran.stderr[-2000:]}")
    found: dict[str, float | str] = json.loads(ran.stdout.splitlines()[-1])
    if Path(str(found["source"])).parents[1].resolve() != source.resolve():
        raise SystemExit(f"error: {found['source']} was imported, not the package below {source}")
    return found


def measure(name: str, file: Path, sources: list[Path], rounds: int) -> list[list[dict[str, float | str]]]:
    """Make an encoder by each source in turn, in every round; the first round, which reads from disk, is left out."""
    found = []
    for number in range(rounds + 1):
        order = [*range(len(sources))]
        by_source = {i: made(name, file, sources[i]) for i in (order if number % 2 else order[::-1])}
        found.append([by_source[i] for i in order])
    return found[1:]


def line_of(name: str, size: int, rounds: list[list[dict[str, float | str]]]) -> list[str]:
    """Format the medians of one encoder, and the ratio of the two sides in a round."""
    from figures import spread
    from tables import between, number

    read = median(float(one["read"]) for sides in rounds for one in sides)
    sides = [between(spread([float(one[i]["made"]) for one in rounds])) for i in range(len(rounds[0]))]
    same = len({one["weights"] for one in (side for sides in rounds for side in sides)}) == 1
    line = [name, f"{size / 2**20:,.0f}", number(read), *sides]
    if len(rounds[0]) > 1:
        line += [between(spread([float(one[1]["made"]) / float(one[0]["made"]) for one in rounds]))]
    return [*line, "yes" if same else "NO"]


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="commit to compare with (default: none)")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    from compare import source_of
    from tables import markdown, write_table

    lines = []
    with tempfile.TemporaryDirectory(prefix="large_encoders_") as folder, ExitStack() as stack:
        sources = [stack.enter_context(source_of(one)) for one in ([given.base, None] if given.base else [None])]
        for name in given.encoders:
            file = Path(folder) / f"{name}.safetensors"
            write_weights(name, file)
            rounds = measure(name, file, [source for _, source in sources], given.rounds)
            lines.append(line_of(name, file.stat().st_size, rounds))
            print(" ".join(lines[-1]), flush=True)
            file.unlink()
    header = ["", "file, MiB", "read, CPU s", *(f"{name}, CPU s" for name, _ in sources)]
    header += [*(["ratio"] if given.base else []), "same weights"]
    import torch

    note = f"{given.rounds} rounds in turn, one thread, {platform.machine()}; torch {torch.__version__}."
    text = markdown(header, lines) + f"\n\n{note}\n"
    print(text)
    if given.docs:
        write_table(given.docs, "large_encoders", text)


if __name__ == "__main__":
    main()
