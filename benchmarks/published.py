"""Total training time on four her2st slices: the published schedule, a plain loop, and this package.

    python benchmarks/published.py --data her2st --weights mobilenet_v2_imagenet.safetensors --docs docs/results/speed
    python benchmarks/published.py --encoders resnet50            # synthetic sections, random weights: cost the same

This package is measured as a whole, from the image files to the trained model. For the other schedules each part is
measured and multiplied by its number of repetitions: the encoder's forward pass over a slice (with patches in memory,
without reading or resampling), and a step of the trainable layers (those of this package, on one of its batches,
without Lightning). The encoder is run in two ways: with the network and batches of this package, in which batch norm is
folded, and with torchvision's unmodified image encoder, as in the published code. All parts are measured alternately in
every round, and ratios are computed within a round.
"""

from __future__ import annotations

import argparse
import copy
import logging
from pathlib import Path
from typing import Any

import torch
from figures import spread
from lightning.pytorch import Callback
from measuring import Sample, timed
from raw_forward import Caught, network_of
from schedules import BATCH, JOINT_EPOCHS, Parts, encodings, seconds
from tables import between, markdown, number, write_figures, write_table
from training_size import accelerator_of

import st_gchb
from st_gchb.model import STGCHB

SECTIONS = ["C2", "C3", "C4", "C5"]
SPOTS = [187, 180, 184, 181]
"""Number of spots of these slices; synthetic slices have about as many."""
PATCH_PX = 112
"""Side of the published patches, px of the image in full resolution."""
PLAIN_EPOCHS = 20
CLOCKS = ("wall_s", "cpu_s")
OURS, THEIRS = "as here", "as torchvision has it"
HALF = "bfloat16"


class Batches(Callback):
    """Record one batch of the infomax stage and one of the joint stage of each slice during training."""

    def __init__(self) -> None:
        self.infomax: dict[int, Any] = {}
        self.joint: dict[int, Any] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        kept = self.infomax if pl_module.module.pretraining else self.joint
        kept.setdefault(int(batch.groups[0]), batch)


def as_it_comes(encoder: Any, caught: Caught) -> Caught:
    """Build the image encoder without folding, on the same patches in torch's default memory format."""
    device = caught.inputs[0].device
    # A copy, because this package may have changed the memory format of the module.
    module = copy.deepcopy(encoder.module).to(device, memory_format=torch.contiguous_format).eval()
    return Caught(module, [batch.float().contiguous() for batch in caught.inputs])


class Bench:
    """Four slices, an encoder, and the parts that are timed."""

    def __init__(self, adata: Any, encoder: Any, device: str) -> None:
        self.adata, self.encoder, self.device = adata, encoder, device
        self.names = list(dict.fromkeys(adata.obs["slice"]))
        self.spots = [int((adata.obs["slice"] == name).sum()) for name in self.names]
        parts = [adata[adata.obs["slice"] == name].copy() for name in self.names]
        caught = [network_of(lambda part=part: self.embed(part)) for part in parts]
        self.image_encoders = {OURS: caught, THEIRS: [as_it_comes(encoder, one) for one in caught]}
        self.embed(adata)
        STGCHB.setup_anndata(adata, slice_key="slice")
        self.steps = {"paper": self.batches("paper", pretrain_epochs=1), "bleep": self.batches("bleep")}

    def embed(self, adata: Any, precision: str = "float32") -> None:
        """Embed all patches, from the image files."""
        options = {"patch_px": PATCH_PX, "n_views": 1, "cache": False, "device": self.device, "slice_key": "slice"}
        st_gchb.pp.embed_patches(adata, encoder=self.encoder, precision=precision, **options)

    def train(self, preset: str, n_epochs: int, *callbacks: Any, **settings: Any) -> Any:
        """Fit and train a model."""
        model = STGCHB(self.adata, preset, n_top_genes=min(2000, self.adata.n_vars), **settings)
        options = {"calibrate": False, "early_stopping": False, "enable_progress_bar": False}
        model.train(n_epochs, accelerator=accelerator_of(self.device), callbacks=list(callbacks), **options)
        return model

    def batches(self, preset: str, **settings: Any) -> tuple[Any, Batches]:
        """Train for one epoch and return the network and the recorded batches."""
        kept = Batches()
        model = self.train(preset, 1, kept, **settings)
        return model.module, kept

    def step(self, preset: str, stage: str, group: int) -> None:
        """Run one optimizer step of the trainable layers, without the encoder."""
        module, kept = self.steps[preset]
        optimizer = torch.optim.AdamW(module.parameters())
        module.train()
        module.pretraining = stage == "infomax"
        module.loss(getattr(kept, stage)[group]).loss.backward()
        optimizer.step()
        module.zero_grad()

    def forward(self, image_encoder: str, number: int) -> Sample:
        """Time the encoder on one slice."""
        return timed(self.image_encoders[image_encoder][number].forward, self.device)

    def stepped(self, preset: str, stage: str, group: int, n: int = 3) -> Sample:
        """Time several steps and return the median."""
        samples = [timed(lambda: self.step(preset, stage, group), self.device) for _ in range(n)]
        return {clock: spread([sample[clock] for sample in samples])[0] for clock in CLOCKS}


def one_round(bench: Bench) -> dict[str, Sample]:
    """Measure all parts once, and compute the seconds of the published schedule, the plain loop and this package."""
    groups = list(bench.steps["paper"][1].joint)
    numbers = range(len(bench.names))
    forward = {kind: [bench.forward(kind, i) for i in numbers] for kind in bench.image_encoders}
    infomax = [bench.stepped("paper", "infomax", group) for group in groups]
    joint = [bench.stepped("paper", "joint", group) for group in groups]
    (some,) = list(bench.steps["bleep"][1].joint)[:1]
    plain = bench.stepped("bleep", "joint", some)
    half = timed(lambda: bench.embed(bench.adata, HALF), bench.device)
    embed = timed(lambda: bench.embed(bench.adata), bench.device)
    paper = timed(lambda: bench.train("paper", JOINT_EPOCHS), bench.device)
    bleep = timed(lambda: bench.train("bleep", PLAIN_EPOCHS), bench.device)
    plain_batch = len(bench.steps["bleep"][1].joint[some].rows)

    def theirs(image_encoder: str, clock: str) -> dict[str, float]:
        each = ([sample[clock] for sample in part] for part in (forward[image_encoder], infomax, joint))
        found = seconds(bench.spots, Parts(*each, plain[clock]), PLAIN_EPOCHS, plain_batch)
        return {f"{name}; {image_encoder}": value for name, value in found.items()}

    def total(clock: str) -> dict[str, float]:
        return (
            theirs(OURS, clock)
            | theirs(THEIRS, clock)
            | {
                "ours, the same schedule": embed[clock] + paper[clock],
                "ours, preset bleep": embed[clock] + bleep[clock],
                "of it encoding": embed[clock],
                f"of it encoding in {HALF}": half[clock],
            }
        )

    by_clock = {clock: total(clock) for clock in CLOCKS}
    return {name: {clock: by_clock[clock][name] for clock in CLOCKS} for name in by_clock["wall_s"]}


RATIOS = [
    ("published, encoding in joint epochs", "ours, the same schedule"),
    ("published, encoding in infomax too", "ours, the same schedule"),
    ("plain loop", "ours, preset bleep"),
]


def in_half(one: dict[str, Sample], ours: str) -> float:
    """Compute the CPU seconds of this package if patches are encoded in half precision."""
    return one[ours]["cpu_s"] - one["of it encoding"]["cpu_s"] + one[f"of it encoding in {HALF}"]["cpu_s"]


def lines_of(encoder: str, report: dict[str, Any]) -> list[list[str]]:
    """Format the lines of the table: numbers of encodings, seconds and speed-ups."""
    count = report["encodings"]
    counted = [count["joint"], count["joint"] + count["infomax"], count["every_epoch"]]
    rounds, lines = report["rounds"], []
    for (against, ours), n_encoded in zip(RATIOS, counted, strict=True):
        encoded = f"{n_encoded:,} / {count['needed']:,}"
        for image_encoder in (OURS, THEIRS):
            theirs = f"{against}; {image_encoder}"
            faster = [spread([one[theirs][clock] / one[ours][clock] for one in rounds]) for clock in CLOCKS]
            both = [number(spread([one[name]["cpu_s"] for one in rounds])[0]) for name in (theirs, ours)]
            faster.append(spread([one[theirs]["cpu_s"] / in_half(one, ours) for one in rounds]))
            lines.append([encoder, against, encoded, image_encoder, f"{both[0]} / {both[1]}", *map(between, faster)])
    return lines


HEADER = [
    *("encoder", "against", "encodings, theirs / ours", "their image encoder", "CPU s, theirs / ours"),
    *("times faster, wall", "CPU time", f"CPU time, ours encoding in {HALF}"),
]


def sections(data: Path | None) -> Any:
    """Load the her2st slices, or generate synthetic ones of their size."""
    if data is not None:
        return st_gchb.datasets.her2st(SECTIONS, path=data)
    return st_gchb.datasets.synthetic_tissue(4, n_rows=15, n_cols=13, n_genes=2000)


def main() -> None:
    """Parse the command line, measure, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the her2st sections (default: synthetic ones)")
    parser.add_argument("--encoders", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--weights", help="weights file of mobilenet_v2 (default: random, as for the others)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file for all figures, JSON")
    parser.add_argument("--docs", type=Path, help="folder for the table, such as docs/results/speed")
    given = parser.parse_args()
    for name in ("lightning.pytorch", "st_gchb"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    lines, reports = [], {}
    for name in given.encoders:
        encoder = st_gchb.pp.get_encoder(name, given.weights if name == "mobilenet_v2" else None)
        bench = Bench(sections(given.data), encoder, given.device)
        count = vars(encodings(bench.spots, PLAIN_EPOCHS))
        rounds = [one_round(bench) for _ in range(given.rounds)]
        reports[name] = {"spots": bench.spots, "encodings": count, "rounds": rounds}
        lines += lines_of(name, reports[name])
    what = "her2st sections C2 to C5" if given.data else "Synthetic sections"
    settings = f"{what}, {given.threads} thread(s), device {given.device}, {given.rounds} rounds, batches of {BATCH}."
    text = markdown(HEADER, lines) + f"\n\n{settings}\n"
    print(text)
    if given.out:
        write_figures(given.out, reports)
    if given.docs:
        write_table(given.docs, "published", text)


if __name__ == "__main__":
    main()
