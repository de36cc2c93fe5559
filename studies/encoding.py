"""What fewer views, folding, half precision, int8 and compilation are worth: time, and what changes in scores.

    python -m studies.encoding --data ../shared/data/her2st \
        --weights ../shared/weights/mobilenet_v2_imagenet.safetensors --out docs/results/speed

Ways are timed in turn, so that other work on the machine meets all of them; medians. ``ways.md`` is about whole
sections, from the file to features, in the CPU time of one thread, and about scores; ``encoding.md`` is about the
network alone, by the wall clock (``--only`` makes one of them).
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import anndata
import numpy as np
import pandas as pd
import torch
import torchvision
from anndata import AnnData

import st_gchb
from st_gchb.evaluate import METHODS, evaluate
from st_gchb.pp import Encoder, FeatureSet, embed_patches, get_encoder, read_patches, slices_of
from st_gchb.pp.encoders import EncoderRunner, EncodingOptions
from studies._files import write_text

N_PATCHES = 64
NETWORK_WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, compiled": {"compiled": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compiled": True},
}
"""Ways in which the network alone computes, as options of an encoder's run."""

SECTIONS = ("C2", "C3", "C4", "C5")
PATCHES_UM = (80.0, 150.0, 300.0)
BEFORE, ONE_VIEW, HALF, INT8 = "4 views, float32", "1 view, float32", "1 view, bfloat16", "1 view, int8"
WAYS: dict[str, dict[str, Any]] = {
    BEFORE: {"n_views": 4},
    ONE_VIEW: {"n_views": 1},
    HALF: {"n_views": 1, "precision": "bfloat16"},
    INT8: {"n_views": 1},
}
"""Ways to encode a section, as arguments of :func:`~st_gchb.pp.embed_patches`."""

FEATURES: dict[str, tuple[list[int], Sequence[str]]] = {
    "MobileNetV2 and texture, 80, 150 and 300 µm": ([0, 1, 2, 3, 4, 5], tuple(WAYS)),
    "MobileNetV2 alone, 150 µm": ([1], (BEFORE, ONE_VIEW)),
}
"""Features that are scored: parts of those that were made, and the ways by which."""


def plain(encoder: Encoder, patches: np.ndarray) -> Callable[[], None]:
    """The image encoder as its library gives it, on patches that are standardized already."""
    values = encoder._prepare(torch.from_numpy(patches).permute(0, 3, 1, 2)).contiguous()
    module = encoder.module.to(memory_format=torch.contiguous_format)

    def run() -> None:
        with torch.inference_mode():
            for part in values.split(8):
                module(part)

    return run


def milliseconds(encoder: Encoder, n_rounds: int) -> dict[str, float]:
    """Median time of a patch by each way, ms."""
    patches = np.random.default_rng(0).integers(0, 256, (N_PATCHES, *2 * (encoder.input_px,), 3), dtype=np.uint8)
    calls = {"as torchvision gives it": plain(get_encoder(encoder.name, None), patches)}
    for name, options in NETWORK_WAYS.items():
        runner = EncoderRunner(encoder, 1, EncodingOptions(N_PATCHES, torch.device("cpu"), 1000.0, **options))
        calls[name] = partial(runner.run, [(0, patches, [])], lambda *_: None)
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n_rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start) / N_PATCHES)
    return {name: statistics.median(found) for name, found in times.items()}


def of_int8(encoder: Encoder, patches: np.ndarray) -> Encoder:
    """The encoder with weights and activations of eight bits, by torch's static quantization, calibrated on patches."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "onednn"
    values = encoder._prepare(torch.from_numpy(patches).permute(0, 3, 1, 2))
    observed = prepare_fx(copy.deepcopy(encoder.module), get_default_qconfig_mapping("onednn"), (values[:1],))
    with torch.inference_mode():
        for part in values.split(8):
            observed(part)
    return replace(encoder, name="module:int8", weights="module", module=convert_fx(observed))


def of_section(name: str, data: Path, encoders: dict[str, Encoder], kept: Path) -> dict[str, AnnData]:
    """Encode a section by each way in turn, unless it was; CPU seconds are in ``uns["cpu_seconds"]``."""
    files = {way: kept / f"{name}, {way}.h5ad" for way in WAYS}
    if all(file.is_file() for file in files.values()):
        return {way: anndata.read_h5ad(file) for way, file in files.items()}
    section = st_gchb.datasets.her2st([name], path=data)
    found: dict[str, AnnData] = {}
    for way, options in WAYS.items():
        options = options | {"encoder": (encoders[way], "texture"), "patch_um": PATCHES_UM, "device": "cpu"}
        start = time.process_time()
        found[way] = cast("AnnData", embed_patches(section, cache=False, copy=True, **options))
        found[way].uns["cpu_seconds"] = time.process_time() - start
        # The image is large, and not asked for any more.
        del found[way].uns["spatial"]
    kept.mkdir(parents=True, exist_ok=True)
    for way, file in files.items():
        found[way].write_h5ad(file)
    print(name, {way: round(one.uns["cpu_seconds"], 1) for way, one in found.items()}, flush=True)
    return found


def encoded(data: Path, weights: Path, kept: Path) -> tuple[dict[str, AnnData], pd.DataFrame]:
    """Encode all sections: them with their features by way, and CPU seconds by section and way."""
    encoder = get_encoder("mobilenet_v2", weights)
    (slide,) = slices_of(st_gchb.datasets.her2st([SECTIONS[0]], path=data))
    ((_, patches),) = islice(read_patches(slide, 150.0 / (slide.um_per_px or 1.0), encoder.input_px), 1)
    encoders = dict.fromkeys(WAYS, encoder) | {INT8: of_int8(encoder, patches)}
    made = {name: of_section(name, data, encoders, kept) for name in SECTIONS}
    seconds = pd.DataFrame({name: {way: ways[way].uns["cpu_seconds"] for way in WAYS} for name, ways in made.items()}).T
    joined = {}
    for way in WAYS:
        tables = {name: ways[way] for name, ways in made.items()}
        joined[way] = anndata.concat(tables, join="inner", index_unique="-")
        joined[way].uns["X_patch"] = tables[SECTIONS[0]].uns["X_patch"]
    return joined, seconds


def score(adata: AnnData, parts: list[int], seeds: range, runs: Path) -> pd.Series:
    """AG, HVG and HEG of the default with some parts of the features, each section left out once."""
    rule = FeatureSet.from_uns(adata.uns["X_patch"])
    chosen = [rule.parts[number] for number in parts]
    part = AnnData(adata.X, obs=adata.obs, var=adata.var, obsm={"spatial": adata.obsm["spatial"]})
    part.obsm["X_patch"] = np.concatenate([adata.obsm["X_patch"][:, one.columns] for one in chosen], axis=1)
    part.uns["X_patch"] = FeatureSet([one.spec for one in chosen]).to_dict()
    found = evaluate(
        part, methods={"default": METHODS["default"]}, n_top_genes=1000, seeds=seeds, device="cpu", runs_dir=runs
    )
    return found.table().loc["default"].unstack()["mean"][["AG", "HVG", "HEG"]]


def ways_page(data: Path, weights: Path, seeds: range, runs: Path) -> str:
    """Tables of the ways to encode a section, as Markdown."""
    joined, seconds = encoded(data, weights, runs)
    faster = seconds.rdiv(seconds[BEFORE], axis=0).median()
    lines = ["| features | encoded in | times as fast | AG | HVG | HEG |", "| --- | --- | --- | --- | --- | --- |"]
    for title, (parts, ways) in FEATURES.items():
        for way in ways:
            row = score(joined[way], parts, seeds, runs)
            # What was timed is the encoding of all parts.
            gain = f"{faster[way]:.2f}" if len(parts) == 6 else ""
            lines.append(" | ".join([f"| {title}", way, gain, *(f"{value:.3f}" for value in row)]) + " |")
            print(lines[-1], flush=True)
    exact = joined[ONE_VIEW].obsm["X_patch"]
    exact = exact[:, : exact.shape[1] - 3 * get_encoder("texture").n_features]
    away = {
        way: float(np.linalg.norm(joined[way].obsm["X_patch"][:, : exact.shape[1]] - exact) / np.linalg.norm(exact))
        for way in (HALF, INT8)
    }
    spread = seconds.rdiv(seconds[BEFORE], axis=0)[ONE_VIEW]
    lines += [
        "",
        f"Sections C2 to C5 of her2st ({len(exact)} spots), each predicted from the other three, the default's "
        f"1,000 genes, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}. "
        "Times are those of `embed_patches` from the file to all six parts, CPU time of one thread, "
        "ways in turn, median of four sections "
        f"(one view: {spread.min():.2f} to {spread.max():.2f}). "
        f"MobileNetV2's features differ from those in float32 by {away[HALF]:.1%} of their norm in bfloat16 and by "
        f"{away[INT8]:.1%} in int8, which torch calibrated on {N_PATCHES} patches of C2. {platform.machine()}, "
        f"{os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def network_page(weights: Path, n_rounds: int, threads: int) -> str:
    """The table of the network alone, as Markdown."""
    times = {}
    for name, file in (("mobilenet_v2", weights), ("resnet50", None)):
        times[name] = milliseconds(get_encoder(name, file), n_rounds)
        print(name, {way: round(value, 2) for way, value in times[name].items()}, flush=True)
    names = list(times)
    lines = ["| " + " | ".join(["encoder computes in", *(f"{name}, times as fast" for name in names)]) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    base = {name: times[name]["as torchvision gives it"] for name in names}
    for way in times[names[0]]:
        cells = [f"{base[name] / times[name][way]:.2f}" for name in names]
        lines.append("| " + " | ".join([way, *cells]) + " |")
    lines += [
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread(s); Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the her2st sections C2 to C5")
    parser.add_argument("--weights", type=Path, required=True, help="weights of MobileNetV2")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of a score (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("ways", "network"), help="measure whole sections, or the network alone")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("encoding_runs"),
        help="folder in which encoded sections and finished runs are kept (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the pages")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pages = {}
    if given.only != "network":
        pages["ways"] = ways_page(given.data, given.weights, range(given.seeds), given.runs)
    if given.only != "ways":
        pages["encoding"] = network_page(given.weights, given.rounds, given.threads)
    for name, text in pages.items():
        write_text(text.rstrip(), given.out / f"{name}.md")
        print(text)


if __name__ == "__main__":
    main()
