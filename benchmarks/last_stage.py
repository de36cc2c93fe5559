"""Cost of training the image encoder's last stage: an epoch on cached feature maps, and one that encodes patches.

    python benchmarks/last_stage.py --encoder resnet50 --spots 242 --docs last_stage.md

Both train the same network in the same loop, in alternating epochs; the cached maps are read from files. Random weights
take as long as trained ones. On a shared machine only ratios are valid.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH = 32
SIZES = ("mobilenet_v2", "efficientnet_b0", "resnet18", "resnet50", "convnext_tiny", "densenet121")


class Cut(Exception):
    """Raised to stop a forward pass once the feature maps before the last stage are computed."""


class WholeEncoder:
    """Feature maps that are computed from the patches whenever a batch requests them."""

    def __init__(self, encoder: Any, patches: np.ndarray) -> None:
        from st_gchb.pp.patches._last_stage import first_of

        self.encoder, self.patches = encoder, torch.from_numpy(patches).permute(0, 3, 1, 2)
        self.maps: list[Tensor] = []
        first_of(encoder.module).register_forward_pre_hook(self._cut)

    def _cut(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        self.maps.append(inputs[0].half())
        raise Cut

    def __getitem__(self, index: Tensor) -> Tensor:
        self.maps = []
        # The batch size of pp.embed_patches on a CPU.
        for part in self.patches[index].split(8):
            try:
                self.encoder(part)
            except Cut:
                pass
        return torch.cat(self.maps)[:, None]


def measure(name: str, n_spots: int, n_epochs: int) -> dict[str, Any]:
    """Measure the CPU seconds of both kinds of epoch, and of encoding all patches once."""
    import st_gchb
    from st_gchb.model import STGCHB, _fit as fitting
    from st_gchb.pp.encoders import get_encoder
    from st_gchb.pp.patches import _feature_maps as maps_module
    from st_gchb.train import GraphDataModule

    maps_module.MEMORY_BYTES = 0
    side = math.ceil(math.sqrt(n_spots / 2))
    adata = st_gchb.datasets.synthetic_tissue(2, n_rows=side, n_cols=side, n_genes=60)
    made = {"encoder": name, "weights": None, "patch_um": 150, "n_views": 1, "device": "cpu"}
    start = time.process_time()
    st_gchb.pp.embed_patches(adata, **made, save_feature_maps=True)
    encode = time.process_time() - start
    on_disk = sum(Path(file).stat().st_size for file in adata.uns["X_patch"]["maps"]) / adata.n_obs
    STGCHB.setup_anndata(adata, slice_key="slice")
    plain = {"image_graph": "none", "expression_graph": "none", "dgi_image": 0.0, "dgi_expression": 0.0}
    model = STGCHB(adata, "paper", finetune="last_stage", sampler="spots", n_top_genes=40, k=10, **plain)
    cached = fitting.training_data(model._fit(), adata)
    encoder = get_encoder(name, None)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (adata.n_obs, encoder.input_px, encoder.input_px, 3), dtype=np.uint8)
    whole = fitting.training_data(model._fit(), adata)
    whole.image = WholeEncoder(encoder, patches)  # type: ignore[assignment]
    optimizer = torch.optim.AdamW([one for one in model.module.parameters() if one.requires_grad], lr=1e-5)
    options = {"n_hops": 0, "batch_size": BATCH, "sampler": "spots", "validation_share": 0.0, "seed": 0}
    loaders = {
        kind: GraphDataModule(data, **options).train_dataloader()  # type: ignore[arg-type]
        for kind, data in (("cached", cached), ("whole", whole))
    }
    model.module.train()
    seconds: dict[str, list[float]] = {kind: [] for kind in loaders}
    for _ in range(n_epochs + 1):
        for kind, loader in loaders.items():
            start = time.process_time()
            for batch in loader:
                optimizer.zero_grad()
                model.module.loss(batch).loss.backward()
                optimizer.step()
            seconds[kind].append(time.process_time() - start)
    # The first epoch of each kind is a warm-up.
    epochs = {kind: statistics.median(found[1:]) for kind, found in seconds.items()}
    ratios = [whole / cached for cached, whole in zip(seconds["cached"][1:], seconds["whole"][1:], strict=True)]
    return {"encoder": name, "spots": adata.n_obs, "encode": encode, "on_disk": on_disk, "ratio": ratios} | epochs


def sizes() -> list[tuple[str, tuple[int, int, int]]]:
    """Determine the shape of the feature maps of one patch for each encoder, at its own input size."""
    from st_gchb.pp.encoders import get_encoder
    from st_gchb.pp.patches._last_stage import shape_of_maps

    return [(name, shape_of_maps(get_encoder(name, None))) for name in SIZES]


def report(found: list[dict[str, Any]], n_epochs: int) -> str:
    """Format both tables as Markdown."""
    lines = [
        "| encoder | spots | encoded once, CPU s | epoch on cached maps, CPU s | "
        "epoch with the whole image encoder, CPU s | times longer (range) | file, kB a spot |",
        "| --- |" + " ---: |" * 6,
    ]
    lines += [
        f"| {one['encoder']} | {one['spots']} | {one['encode']:.1f} | {one['cached']:.1f} | {one['whole']:.1f} | "
        f"{one['whole'] / one['cached']:.1f} ({min(one['ratio']):.1f} to {max(one['ratio']):.1f}) | "
        f"{one['on_disk'] / 1e3:.0f} |"
        for one in found
    ]
    lines += [
        "",
        f"*Median of {n_epochs} epochs of each kind in turn, {torch.get_num_threads()} thread(s), steps of {BATCH} "
        "spots, one view, `benchmarks/last_stage.py`.*",
        "",
        "| encoder | maps before the last stage | kB a spot and view | GB for 100,000 spots |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, (c, h, w) in sizes():
        n_bytes = 2 * c * h * w
        lines.append(f"| {name} | {c} × {h} × {w} | {n_bytes / 1e3:.1f} | {n_bytes / 1e4:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, and print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--spots", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--docs", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    logging.getLogger("st_gchb").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ST_GCHB_CACHE"] = folder
        text = report([measure(name, given.spots, given.epochs) for name in given.encoder], given.epochs)
    print(text)
    if given.docs:
        given.docs.parent.mkdir(parents=True, exist_ok=True)
        given.docs.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
