"""Cost of predicting 10,000 slides on CPUs: seconds per step of a slide, overhead of dask, and resulting core hours.

    python benchmarks/many_slides.py                                    # prints the tables; two to five minutes
    python benchmarks/many_slides.py --out many.json --docs docs/results/speed/many_slides.md

For each encoder, a synthetic slide (as in large_slide.py, but smaller) is predicted by a LocalCluster of one worker
with one thread, after a first slide that includes imports and loading. Encoders have random weights, which take as long
as trained ones. Then 10,000 slides that are already done are submitted, so that only the work of the scheduler and of
the receipts remains. Figures are valid on an otherwise idle machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from large_slide import make_slide, status
from tables import write_figures

PARTS = ("read", "encode", "predict", "write")
SLIDES = 10_000
SPOTS = (3_000, 20_000)


def main() -> None:
    """Parse the command line, measure, and print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["texture", "mobilenet_v2", "resnet50"])
    parser.add_argument("--size", type=int, default=5_000, help="side of the slide, px of 0.5 µm (default: 5000)")
    parser.add_argument("--views", dest="n_views", type=int, default=1, help="rotations of a patch (default: 1)")
    parser.add_argument("--genes", type=int, default=1000, help="genes that are predicted (default: 1000)")
    parser.add_argument("--tasks", type=int, default=SLIDES, help="slides of the scheduler's part (default: 10000)")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--docs", type=Path, help="file for the tables, Markdown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many_slides_") as folder:
        figures = measure(arguments, Path(folder))
    text = tables(figures)
    print(text)
    if arguments.out:
        write_figures(arguments.out, figures)
    if arguments.docs:
        arguments.docs.parent.mkdir(parents=True, exist_ok=True)
        arguments.docs.write_text(text)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one slide for each encoder, and many tasks."""
    import torch
    from dask.distributed import Client, LocalCluster

    import st_gchb

    torch.set_num_threads(1)
    slide = folder / "slide.tif"
    make_slide(slide, arguments.size, 4)
    small = folder / "small.tif"
    make_slide(small, 2048, 3)
    figures: dict[str, Any] = {
        "slide_px": arguments.size,
        "n_views": arguments.n_views,
        "genes": arguments.genes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a worker",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "st_gchb": st_gchb.__version__},
        "encoders": {},
    }
    for encoder in arguments.encoders:
        train(folder / encoder, encoder, arguments)
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as dask,
        ):
            figures["encoders"][encoder] = one_slide(folder / encoder, small, slide, dask)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as dask:
        figures["tasks"] = many_tasks(arguments.tasks, small, folder / "kept", dask)
    return figures


def train(folder: Path, encoder: str, arguments: argparse.Namespace) -> None:
    """Train a small model for one epoch, since the cost of a prediction does not depend on its quality."""
    import st_gchb
    from st_gchb.model import STGCHB

    reference = st_gchb.datasets.synthetic_tissue(2, n_rows=16, n_cols=16, n_genes=arguments.genes)
    made = {"encoder": encoder, "weights": None, "patch_um": 150, "n_views": arguments.n_views}
    st_gchb.pp.embed_patches(reference, **made, cache=False)
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=arguments.genes)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=True)
    model.save(folder)


def one_slide(model: Path, small: Path, slide: Path, dask: Any) -> dict[str, Any]:
    """Measure the seconds of each step of a slide, those that a worker needs once, and the worker's peak memory."""
    import st_gchb

    start = time.perf_counter()
    st_gchb.cohort.predict_slides(model, [small], model / "first", client=dask, device="cpu")
    first = time.perf_counter() - start
    (report,) = st_gchb.cohort.predict_slides(model, [slide], model / "second", client=dask, device="cpu").itertuples()
    receipt = json.loads((model / "second" / "receipts" / f"{slide.stem}.json").read_text())
    (peak,) = dask.run(status, "VmHWM").values()
    known = json.loads((model / "first" / "receipts" / f"{small.stem}.json").read_text())["seconds"]
    return {
        "spots": report.n_spots,
        "seconds": {part: receipt["seconds"].get(part, 0.0) for part in PARTS},
        "first_seconds": round(first - sum(known.get(part, 0.0) for part in PARTS), 1),
        "peak_mb": round(peak),
        "result_mb": round(Path(report.output).stat().st_size / 1e6, 1),
    }


def many_tasks(n: int, slide: Path, out: Path, dask: Any) -> dict[str, Any]:
    """Measure a call on slides that are all done; their results are links to one file, with a receipt for each."""
    from dataclasses import asdict

    import st_gchb
    from st_gchb.cohort._manifest import slides_of
    from st_gchb.cohort._receipts import receipt_path

    options = {
        "encoder": "texture",
        "patch_um": 150,
        "weights": None,
        "n_views": 1,
        "spacing_um": 200.0,
        "device": "cpu",
    }
    table = pd.DataFrame({"path": str(slide), "name": [f"s{index:05d}" for index in range(n)]})
    st_gchb.cohort.embed_slides(table[:1], out, client=dask, **options)
    receipt = json.loads(receipt_path(out, "s00000").read_text())
    for one in slides_of(table, spacing_um=options["spacing_um"])[1:]:
        os.link(out / "s00000.h5ad", out / f"{one.name}.h5ad")
        said = receipt | {"name": one.name, "made_of": receipt["made_of"] | {"slide": asdict(one)}}
        receipt_path(out, one.name).write_text(json.dumps(said))
    seconds = {}
    for name, client in (("dask", dask), ("here", None)):
        start = time.perf_counter()
        report = st_gchb.cohort.embed_slides(table, out, client=client, **options)
        seconds[name] = round(time.perf_counter() - start, 2)
        assert (report["status"] == "kept").all()
    return {"tasks": n, "seconds": seconds, "ms_per_task": round(1e3 * (seconds["dask"] - seconds["here"]) / n, 2)}


def core_hours(figures: dict[str, Any], encoder: str, spots: int, slides: int = SLIDES) -> dict[str, float]:
    """Compute core hours as slides x (read + spots x (encode + predict + write) per spot + scheduler)."""
    one = figures["encoders"][encoder]
    per_spot = {part: one["seconds"][part] / one["spots"] for part in PARTS if part != "read"}
    hours = {part: slides * spots * seconds / 3600 for part, seconds in per_spot.items()}
    hours["read"] = slides * one["seconds"]["read"] / 3600
    hours["scheduler"] = slides * figures["tasks"]["ms_per_task"] / 3.6e6
    return hours | {"all": sum(hours.values())}


def tables(figures: dict[str, Any]) -> str:
    """Format the measured and the computed figures as Markdown."""
    encoders = figures["encoders"]
    head = "| | " + " | ".join(encoders) + " |\n| --- |" + " --- |" * len(encoders) + "\n"

    def line(name: str, values: list[Any]) -> str:
        return f"| {name} | " + " | ".join(map(str, values)) + " |\n"

    says = {"read": "open, find tissue, lay positions", "encode": "patches: read and encode"}
    says |= {"predict": "predict", "write": "write"}
    text = (
        f"Measured on one slide of {figures['slide_px']:,} x {figures['slide_px']:,} px, {figures['genes']:,} genes, "
        f"{figures['n_views']} orientation(s) of each patch; {figures['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
        + f":\n\n{head}"
    )
    text += line("spots", [f"{one['spots']:,}" for one in encoders.values()])
    for part in PARTS:
        text += line(f"{says[part]}, s", [f"{one['seconds'][part]:.2f}" for one in encoders.values()])
    text += line(
        "the worker's first slide beyond that (imports, loading), s", [e["first_seconds"] for e in encoders.values()]
    )
    text += line("peak of the worker's resident memory, MB", [f"{one['peak_mb']:,}" for one in encoders.values()])
    text += line("size of the result, MB", [one["result_mb"] for one in encoders.values()])
    tasks = figures["tasks"]
    text += (
        f"\nA call on {tasks['tasks']:,} slides that are done already: {tasks['seconds']['dask']:.0f} s through dask "
        f"with one worker, {tasks['seconds']['here']:.0f} s in one process; the scheduler adds "
        f"{tasks['ms_per_task']:.1f} ms a slide.\n\nComputed from it, core hours for {SLIDES:,} slides:\n\n{head}"
    )
    for spots in SPOTS:
        hours = [core_hours(figures, encoder, spots) for encoder in encoders]
        text += line(f"{spots:,} spots each", [f"{one['all']:,.0f}" for one in hours])
        text += line("of it in the encoder's part", [f"{one['encode'] / one['all']:.0%}" for one in hours])
    return text


if __name__ == "__main__":
    main()
