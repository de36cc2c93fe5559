"""Training on four her2st sections, by stage, beside the same training by the code of another commit.

    python benchmarks/small_training.py --data her2st --weights mobilenet_v2_imagenet.safetensors --base v0.1.0
    python benchmarks/small_training.py                                    # synthetic sections, this checkout alone

Patches are encoded once, beforehand. Two processes, one for each source, then train in turn with one thread, the first
of a round last in the next, so that other load on the machine affects both; ratios are computed within a round. Cost is
CPU time beyond imports, in a process in which the first training is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

STAGES = ("set up", "fit", "train", "calibrate", "all")
N_GENES = 1000
PATCH_UM = 150.0
HERE = Path(__file__).parent


def one_round(adata: Any, predicted: Path) -> dict[str, Any]:
    """Train twice, without and with calibration, and return CPU seconds by stage and a hash of the result.

    What the model predicts for the sections is written to ``predicted``.
    """
    import numpy as np
    import torch

    from st_gchb.model import STGCHB

    options = {"accelerator": "cpu", "enable_progress_bar": False}
    times = [time.process_time()]

    def passed() -> float:
        times.append(time.process_time())
        return times[-1] - times[-2]

    found: dict[str, Any] = {}
    table = adata.copy()
    passed()
    STGCHB.setup_anndata(table, slice_key="slice")
    model = STGCHB(table, n_top_genes=min(N_GENES, adata.n_vars), seed=0)
    found["set up"] = passed()
    # Else the first line of train.
    model._fit()
    found["fit"] = passed()
    model.train(calibrate=False, **options)
    found["train"] = passed()
    table = adata.copy()
    passed()
    STGCHB.setup_anndata(table, slice_key="slice")
    model = STGCHB(table, n_top_genes=min(N_GENES, adata.n_vars), seed=0)
    model.train(**options)
    found["all"] = passed()
    found["calibrate"] = found["all"] - found["set up"] - found["fit"] - found["train"]
    arrays = [*model.module.state_dict().values(), torch.from_numpy(model.bank_.keys)]
    arrays += [torch.as_tensor(value) for value in vars(model.calibration_).values() if value is not None]
    np.save(predicted, model.predict(table).layers["st_gchb"])
    found["result"] = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in arrays)).hexdigest()
    return found


def work(path: Path) -> None:
    """Train once for each line on standard input, the file for predictions, and print what was found."""
    import anndata
    import torch

    import st_gchb

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "st_gchb"):
        logging.getLogger(name).setLevel(logging.ERROR)
    adata = anndata.read_h5ad(path)
    for line in sys.stdin:
        predicted = line.rstrip("\n")
        extra = {"source": st_gchb.__file__, "predicted": predicted}
        print(json.dumps(one_round(adata, Path(predicted)) | extra), flush=True)


@contextmanager
def worker(source: Path, sections: Path, predicted: Path) -> Iterator[Any]:
    """Start a process that trains with the package of a source folder; yields a function that asks for a round.

    Its predictions for the sections are written to ``predicted``.
    """
    command = [sys.executable, str(HERE / "small_training.py"), "--worker", str(sections)]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask() -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{predicted}\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                if Path(found["source"]).parents[1].resolve() != source.resolve():
                    raise SystemExit(f"error: {found['source']} was imported, not the package below {source}")
                return found
        raise SystemExit(f"error: training with the package below {source} failed (exit status {process.wait()}).")

    try:
        yield ask
    finally:
        process.terminate()
        process.wait()


def embedded(data: Path | None, weights: str | None, path: Path) -> str:
    """Write sections with features to a file; returns what they are."""
    from published import sections

    import st_gchb

    adata = sections(data)
    encoder = st_gchb.pp.get_encoder("mobilenet_v2", weights)
    st_gchb.pp.embed_patches(adata, encoder=encoder, patch_um=PATCH_UM, cache=False, slice_key="slice")
    adata.write_h5ad(path)
    where = "her2st sections C2 to C5" if data else "four synthetic sections"
    return f"{where}, {adata.n_obs} spots, {min(N_GENES, adata.n_vars)} genes"


def alike(sides: list[list[dict[str, Any]]]) -> str:
    """Say whether all trainings, rounds of one or two sources, have the same result, else how far predictions differ.

    The difference is that of the last round, as a share of a gene's standard deviation, root mean square.
    """
    import numpy as np

    results = [{one["result"] for one in side} for side in sides]
    if len(set.union(*results)) == 1:
        return "weights, keys and calibration are the same bit for bit in all of them"
    if max(map(len, results)) > 1:
        return "results are NOT the same from round to round"
    one, other = (np.load(side[-1]["predicted"]) for side in sides)
    share = np.sqrt(((one - other) ** 2).mean() / one.var(0).mean())
    return (
        "weights, keys and calibration are the same bit for bit in all rounds of one code; predictions of the two "
        f"differ by {share:.1g} of a gene's standard deviation"
    )


def lines_of(rounds: list[list[dict[str, Any]]]) -> list[list[str]]:
    """Format CPU seconds of each side by stage, and their ratio where there are two."""
    from figures import spread
    from tables import between

    lines = []
    for stage in STAGES:
        line = [stage, *(between(spread([sides[i][stage] for sides in rounds])) for i in range(len(rounds[0])))]
        if len(rounds[0]) > 1:
            line.append(between(spread([sides[1][stage] / sides[0][stage] for sides in rounds])))
        lines.append(line)
    return lines


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the her2st sections (default: synthetic ones)")
    parser.add_argument("--weights", help="weights file of mobilenet_v2 (default: random)")
    parser.add_argument("--sections", type=Path, help="the sections with features, kept from an earlier run, h5ad")
    parser.add_argument("--base", help="commit to compare with (default: none)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker)
        return
    from compare import source_of
    from tables import markdown, write_table

    rounds = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path, what = given.sections or Path(folder) / "sections.h5ad", "sections as given"
        if given.sections is None or not path.exists():
            what = embedded(given.data, given.weights, path)
        sources = [stack.enter_context(source_of(one)) for one in ([given.base, None] if given.base else [None])]
        files = [Path(folder) / f"{i}.npy" for i in range(len(sources))]
        starts = zip(sources, files, strict=True)
        sides = [stack.enter_context(worker(source, path, file)) for (_, source), file in starts]
        for ask in sides:
            ask()
        for number in range(given.rounds):
            order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
            found = {i: sides[i]() for i in order}
            rounds.append([found[i] for i in sorted(found)])
            print(f"round {number + 1} of {given.rounds}: {[round(one['all'], 2) for one in rounds[-1]]}", flush=True)
        said = alike([list(side) for side in zip(*rounds, strict=True)])
    header = ["", *(f"{name}, CPU s" for name, _ in sources), *(["ratio"] if given.base else [])]
    note = f"{what}, one thread, {given.rounds} rounds; {said}."
    text = markdown(header, lines_of(rounds)) + f"\n\n{note[0].upper()}{note[1:]}\n"
    print(text)
    if given.docs:
        write_table(given.docs, "small_training", text)


if __name__ == "__main__":
    main()
