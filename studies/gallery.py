"""Measured and predicted expression of one marker gene in four tissues, each on a section that was held out.

Makes the pictures of the documentation's first page, with captions that name data set, split, model and seed. Which
of a tissue's markers is drawn is decided by the training sections alone: the one of highest expected correlation.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from anndata import AnnData
from matplotlib.figure import Figure

import st_gchb
from st_gchb._artifacts import write_whole
from st_gchb.errors import InputError
from st_gchb.evaluate import machine_and_versions
from st_gchb.model import STGCHB
from studies._command import add_tissues, new_parser, run_study
from studies._files import write_record, write_text
from studies._tissues import PATCHES_UM, TISSUES, embedded

MAX_BYTES = 150_000
"""Largest size of a picture, so that the first page loads at once."""
_QUALITIES = (90, 80, 70, 60, 50)
_SIZE_INCH = (8.6, 2.75)
"""Width and height, inch: at the page's width of about 700 px, the smallest text is 9 px high."""


@dataclass(frozen=True)
class Exhibit:
    """Section that is held out, and the marker genes of its tissue.

    Parameters
    ----------
    title
        Tissue, technology and source.
    held_out
        Section that no model sees before it is predicted; all others of the data set are trained on.
    markers
        Marker genes by symbol, with what they mark; none to choose among all genes of the panel.
    ids
        Names of markers in the data set where these are not the symbols.
    """

    title: str
    held_out: str
    markers: dict[str, str]
    ids: dict[str, str]

    def named(self, gene: str) -> str:
        """Return the name of a marker in the data set."""
        return self.ids.get(gene, gene)


EXHIBITS: dict[str, Exhibit] = {
    "her2st": Exhibit(
        "HER2+ breast tumor, legacy ST (Andersson et al. 2021)",
        "C5",
        {"ERBB2": "the HER2 receptor", "CD74": "antigen presentation", "FASN": "tumor cells", "COL1A1": "stroma"},
        {},
    ),
    "mob_st2k": Exhibit(
        "Mouse olfactory bulb, legacy ST 2k (Bergenstråhle et al. 2020)",
        "MOB2",
        {"Penk": "granule cells", "Doc2g": "mitral and tufted cells", "Slc17a7": "mitral and tufted cells"},
        {"Penk": "ENSMUSG00000045573.9", "Doc2g": "ENSMUSG00000024871.10", "Slc17a7": "ENSMUSG00000070570.5"},
    ),
    "visium_mousebrain": Exhibit(
        "Mouse brain, Visium FFPE (Gracia Villacampa et al. 2021)",
        "V10F24-078_B1",
        {},
        {},
    ),
    "visium_lung": Exhibit(
        "Human lung with COVID-19, Visium FFPE (Gracia Villacampa et al. 2021)",
        "V10F24-110_D1",
        {"SFTPC": "alveolar type 2 cells", "SCGB1A1": "club cells", "COL1A1": "scars", "IGHG1": "plasma cells"},
        {gene: f"GRCh38__{gene}" for gene in ("SFTPC", "SCGB1A1", "COL1A1", "IGHG1")},
    ),
}
"""Exhibits by data set. Markers are those of textbooks: which of them a model predicts well has no part in the list. Of
brain, only one of those that came to mind is in the panel, in few spots, so its gene is chosen among all."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data ../shared/data --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
    parser = new_parser("gallery", __doc__, example)
    add_tissues(parser)
    parser.set_defaults(out=Path("docs/results/gallery"))
    parser.add_argument("--tissues", nargs="+", metavar="NAME", default=list(EXHIBITS), help=f"{', '.join(EXHIBITS)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the models (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("gallery", run, build_parser().parse_args(argv))


def run(arguments: argparse.Namespace) -> list[Path]:
    """Predict each held-out section, and write the pictures, their captions and the settings."""
    unknown = [name for name in arguments.tissues if name not in EXHIBITS]
    if unknown:
        raise InputError(f"--tissues {unknown}: unknown; known are {', '.join(EXHIBITS)}.")
    paths, captions, record = [], [], {}
    for name in arguments.tissues:
        exhibit = EXHIBITS[name]
        adata = embedded(TISSUES[name], arguments.data, arguments.weights, arguments.device)
        pred = predict_held_out(adata, exhibit, arguments)
        gene = choose(pred, exhibit)
        found = scores(pred, exhibit.named(gene))
        paths.append(write_picture(draw(pred, gene, exhibit), arguments.out / f"{name}.jpg"))
        trained_on = list(pred.uns["st_gchb"]["reference_slices"])
        record[name] = {"held_out": exhibit.held_out, "trained_on": trained_on, "gene": gene, **found}
        captions.append(caption(name, exhibit, record[name], arguments.seed))
    settings = {"n_top_genes": arguments.n_top_genes, "seed": arguments.seed, "patch_um": list(PATCHES_UM)}
    return [
        *paths,
        write_text("\n\n".join(captions), arguments.out / "gallery.md"),
        write_record(settings | {"tissues": record} | machine_and_versions(), arguments.out / "gallery.json"),
    ]


def predict_held_out(adata: AnnData, exhibit: Exhibit, arguments: argparse.Namespace) -> AnnData:
    """Train on all sections but the one that is held out, and predict that one from its H&E.

    Raises
    ------
    InputError
        There is no such section, or no other one.
    """
    held_out = (adata.obs["slice"] == exhibit.held_out).to_numpy()
    if not held_out.any() or held_out.all():
        raise InputError(f"sections {sorted(set(adata.obs['slice']))}: expected {exhibit.held_out!r} and another one.")
    reference, query = adata[~held_out].copy(), adata[held_out].copy()
    # The model never holds the measured counts: they are laid beside its prediction afterwards.
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=arguments.n_top_genes, seed=arguments.seed)
    accelerator = {"cuda": "gpu"}.get(arguments.device, arguments.device)
    model.train(enable_progress_bar=not arguments.quiet, accelerator=accelerator)
    pred = model.predict(query)
    if exhibit.held_out in set(pred.uns["st_gchb"]["reference_slices"]):
        raise InputError(f"section {exhibit.held_out!r} is part of the reference; nothing of it may be trained on.")
    return pred


def choose(pred: AnnData, exhibit: Exhibit) -> str:
    """Choose the marker, or gene, of the highest expected correlation, which comes from the training sections alone.

    Raises
    ------
    InputError
        No marker is in the panel, which holds the most variable genes of the training sections.
    """
    expected = pred.var["st_gchb_expected_pcc"]
    if not exhibit.markers:
        return str(expected.idxmax())
    found = {gene: expected[exhibit.named(gene)] for gene in exhibit.markers if exhibit.named(gene) in expected}
    if not found:
        raise InputError(f"none of the markers {list(exhibit.markers)} is in the panel of {pred.n_vars} genes.")
    return max(found, key=lambda gene: found[gene])


def draw(pred: AnnData, gene: str, exhibit: Exhibit) -> Figure:
    """Draw the H&E of the held-out section, and its measured and predicted expression of a gene."""
    figure, axs = plt.subplots(1, 3, figsize=_SIZE_INCH, squeeze=False, layout="constrained")
    st_gchb.pl.measured_vs_predicted(pred, exhibit.named(gene), slice=exhibit.held_out, axs=axs)
    axs[0, 0].set_title(f"{exhibit.held_out}, held out", fontsize=10)
    axs[0, 0].set_ylabel("")
    for ax in axs[0, 1:]:
        ax.set_title(f"{gene} {ax.get_title()[0].lower()}{ax.get_title()[1:]}", fontsize=10)
    return figure


def write_picture(figure: Figure, path: Path) -> Path:
    """Write a picture of at most :data:`MAX_BYTES`, in the best quality of JPEG that allows it.

    Raises
    ------
    InputError
        None does.
    """
    for quality in _QUALITIES:
        picture = io.BytesIO()
        figure.savefig(picture, format="jpeg", dpi=160, pil_kwargs={"quality": quality, "optimize": True})
        if picture.tell() <= MAX_BYTES:
            break
    else:
        raise InputError(f"{path.name} has {picture.tell()} bytes; expected at most {MAX_BYTES}. Draw it smaller.")
    plt.close(figure)
    with write_whole(path) as part:
        part.write_bytes(picture.getvalue())
    return path


def scores(pred: AnnData, gene: str) -> dict[str, float]:
    """Compute the correlation of a gene, and means over the panel and its 50 most variable genes."""
    table = st_gchb.metrics.per_gene(pred.layers["measured"], pred.layers["st_gchb"], pred.var_names)
    means = st_gchb.metrics.summary(table)
    numbers = {"r": table.loc[gene, "pearson"], "HVG": means["HVG"], "AG": means["AG"]}
    return {name: round(float(value), 4) for name, value in numbers.items()} | {"n_genes": pred.n_vars}


def caption(name: str, exhibit: Exhibit, record: dict[str, Any], seed: int) -> str:
    """Write the picture and what it shows: data set, split, model, seed, and how well other genes fare."""
    gene, held_out = record["gene"], exhibit.held_out
    marks = exhibit.markers.get(gene)
    told = f"a marker of {marks}" if marks else "the gene of the highest expected correlation"
    *others, last = record["trained_on"]
    trained_on = f"{', '.join(others)} and {last}" if others else last
    return (
        f"![{exhibit.title}: H&E of section {held_out}, {gene} as measured and as predicted]({name}.jpg)\n\n"
        f"*{exhibit.title}.* {gene}, {told}, on section {held_out}, which was held out; "
        f"trained on {trained_on}. Preset `default`, MobileNetV2 and texture, seed {seed}. Correlation of this gene "
        f"{record['r']:.2f}; mean of the section's 50 most variable genes {record['HVG']:.2f}, of all "
        f"{record['n_genes']:,} in the panel {record['AG']:.2f}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
