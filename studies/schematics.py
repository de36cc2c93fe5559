"""Drawings of the documentation's first page: the model with its losses, and the way of the data through the package.

Each box names the place in the code that it stands for; the tests look these places up. Written as SVG, and as PNG for
readers that show no SVG.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from st_gchb._artifacts import write_whole

PX_PER_INCH = 100
WIDTH_PX = 700
"""The drawings are laid out in px of a page that is as wide as this."""
COLORS = {
    "image": ("#dbe8fb", "#3566a8"),
    "expression": ("#fdebc8", "#a8690b"),
    "loss": ("#fbe1e0", "#ab3a36"),
    "bank": ("#daf0e1", "#27734a"),
    "plain": ("#ffffff", "#7b8794"),
}
"""Fill and edge by what a box stands for."""
_INK = "#1f2933"
_FAINT = "#52606d"
_CODE = "DejaVu Sans Mono"
_LINE = 14.0
"""Distance of two lines of a box, px."""
_DASHES = (0, (3, 2))
_PNG_COLORS = 64

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Box of a drawing.

    Parameters
    ----------
    title
        First line.
    lines, calls
        Further lines, smaller: text, then code.
    kind
        Key of :data:`COLORS`.
    places
        Where it is in the code: paths below ``src/st_gchb``, or public names such as ``"io.read_section"``.
    dashed
        The part is off in the preset ``default``.
    at, size
        Upper left corner, and width and height, px.
    """

    title: str
    lines: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    kind: str = "plain"
    places: tuple[str, ...] = ()
    dashed: bool = False
    at: Point = (0.0, 0.0)
    size: Point = (116.0, 52.0)

    def side(self, which: str, along: float = 0.5) -> Point:
        """Return a point on a side: ``"left"``, ``"right"``, ``"top"`` or ``"bottom"``, at a share of its length."""
        (x, y), (width, height) = self.at, self.size
        if which in ("left", "right"):
            return (x if which == "left" else x + width), y + along * height
        return x + along * width, (y if which == "top" else y + height)


@dataclass
class Drawing:
    """Boxes and lines on a white card, which is legible on light and on dark pages.

    Parameters
    ----------
    height
        Height of the card, px.
    boxes
        Boxes in the order in which they were drawn.
    """

    height: float
    boxes: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figure: Figure = plt.figure(figsize=(WIDTH_PX / PX_PER_INCH, self.height / PX_PER_INCH), facecolor="white")
        self.ax: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, WIDTH_PX), ylim=(self.height, 0))
        self.ax.axis("off")

    def band(self, top: float, bottom: float, title: str) -> None:
        """Draw the ground of a part of the drawing, with its title."""
        self._round((8, top), (WIDTH_PX - 16, bottom - top), radius=8, facecolor="#f1f3f6", edgecolor="none", zorder=1)
        self.text((20, top + 14), title, size=9, weight="bold", align="left", color=_FAINT)

    def add(self, box: Box) -> Box:
        """Draw a box."""
        face, edge = COLORS[box.kind]
        style: dict[str, Any] = {"facecolor": face, "edgecolor": edge, "lw": 1.1, "ls": _DASHES if box.dashed else "-"}
        self._round(box.at, box.size, radius=6, zorder=4, **style)
        rows = [*((line, None) for line in box.lines), *((call, _CODE) for call in box.calls)]
        x, middle = box.side("left")[0] + box.size[0] / 2, box.side("left")[1]
        top = middle - _LINE / 2 * len(rows)
        self.text((x, top), box.title, size=8.6, weight="bold")
        for number, (line, family) in enumerate(rows, start=1):
            self.text((x, top + _LINE * number), line, family=family, size=7.6 if family else 8)
        self.boxes.append(box)
        return box

    def arrow(self, *points: Point, kind: str = "", dashed: bool = False, head: bool = True) -> None:
        """Draw a line over the points, with a head at its end."""
        color = COLORS[kind][1] if kind else _INK
        xs, ys = zip(*points, strict=True)
        self.ax.plot(xs, ys, color=color, lw=1.2, ls=_DASHES if dashed else "-", zorder=3)
        if head:
            # The head alone, so that the line to it stays dashed.
            (x0, y0), (x1, y1) = points[-2:]
            near = (x1 + 0.01 * (x0 - x1), y1 + 0.01 * (y0 - y1))
            look = {"arrowstyle": "-|>,head_length=0.45,head_width=0.22", "color": color, "lw": 1.2}
            self.ax.annotate("", points[-1], near, arrowprops=look | {"shrinkA": 0, "shrinkB": 0})

    def text(
        self,
        at: Point,
        text: str,
        *,
        size: float = 8,
        weight: str = "normal",
        align: str = "center",
        color: str = _INK,
        family: str | None = None,
    ) -> None:
        """Write a line of text."""
        style: dict[str, Any] = {"fontsize": size, "fontweight": weight, "color": color, "ha": align, "va": "center"}
        if family:
            style["family"] = family
        self.ax.text(at[0], at[1], text, zorder=5, **style)

    def _round(self, at: Point, size: Point, *, radius: float, **style: Any) -> None:
        self.ax.add_patch(FancyBboxPatch(at, *size, boxstyle=f"round,pad=0,rounding_size={radius}", **style))


_COLUMNS = (20.0, 156.0, 292.0, 428.0, 564.0)
"""Left edges of the boxes of the model."""
_NOTES = (
    "Dashed: parts of the paper that the preset default leaves out; each is one argument, and preset paper has all of",
    "them, with a trainable layer after the encoder. Not in the paper: rings and surroundings, kernel head,",
    "sharpening, confidence. The branches are trained together by the losses; the kernel head is solved once.",
)


def model() -> Drawing:
    """Draw the model: two branches with their losses, the reference bank, and the prediction of a query."""
    d = Drawing(664)
    d.band(8, 332, "Training, on reference slides with H&E and counts")
    d.band(342, 602, "Prediction, for a query slide with H&E alone")
    image, expression = _branch(d, 66, "image"), _branch(d, 236, "expression")
    _between(d, image, expression)
    _bottleneck(d, image, "top", -12)
    _bottleneck(d, expression, "bottom", 12)
    _query(d, panel=expression[1], keys=expression[4])
    for number, note in enumerate(_NOTES):
        d.text((20, 617 + 15 * number), note, align="left", color=_FAINT, size=7.6)
    return d


def _branch(d: Drawing, y: float, kind: str) -> list[Box]:
    """Draw a branch, from its data to the joint embedding."""
    rule, layers = ("pp/expression/_expression.py",), ("nn/_layers.py",)
    seen = ("model/_features.py", "model/_projections.py")
    own = {
        "image": (
            ("H&E patches", ("80, 150, 300 µm",), ("pp/patches/_reader.py",)),
            ("frozen encoder", ("ResNet50, texture",), ("pp/encoders/_encoder.py",)),
            ("context", ("rings, surroundings", r"components $T_\alpha$"), seen),
        ),
        "expression": (
            ("counts", ("log1p per 10⁴",), rule),
            ("panel $R$", ("2,000 most", "variable genes"), rule),
            ("PCA", (r"components $T_\alpha$",), rule),
        ),
    }[kind]
    last = (
        ("graph encoder $F$", ("linear, or GCN on $A$", r"$Z = T_\rho$"), layers),
        ("head", ("$G_f$" if kind == "image" else "$T_l$",), layers),
    )
    boxes = [
        d.add(Box(title, lines, kind=kind, places=places, at=(x, y)))
        for x, (title, lines, places) in zip(_COLUMNS, (*own, *last), strict=True)
    ]
    for left, right in pairwise(boxes):
        d.arrow(left.side("right"), right.side("left"))
    return boxes


def _between(d: Drawing, image: list[Box], expression: list[Box]) -> None:
    """Draw what joins the branches: the spot graph, and the losses of infomax and of alignment."""
    y = 151.0
    graph = d.add(Box("spot graph $A$", ("neighboring spots",), places=("pp/graph/_graph.py",), at=(_COLUMNS[2], y)))
    d.arrow(graph.side("top"), image[2].side("bottom"))
    d.arrow(graph.side("right", 0.2), image[3].side("bottom", 0.1), dashed=True)
    d.arrow(graph.side("right", 0.8), expression[3].side("top", 0.1), dashed=True)
    losses = ((3, "graph infomax", "eq. 1", "dgi_loss"), (4, "alignment", "eq. 6 and 7", "literal_alignment_loss"))
    for column, title, equations, function in losses:
        off = title == "graph infomax"
        at = (_COLUMNS[column], y)
        box = d.add(Box(title, (equations,), kind="loss", places=(f"nn.{function}",), dashed=off, at=at))
        d.arrow(image[column].side("bottom"), box.side("top"), kind="loss", dashed=off)
        d.arrow(expression[column].side("top"), box.side("bottom"), kind="loss", dashed=off)


def _bottleneck(d: Drawing, row: list[Box], side: str, step: float) -> None:
    """Draw the bracket of the bottleneck: input, hidden representation and embedding of a branch."""
    ends = [row[column].side(side, 0.35) for column in (2, 3, 4)]
    level = ends[0][1] + step
    for end in ends:
        d.arrow((end[0], level), end, kind="loss", head=False)
    d.arrow((ends[0][0], level), (ends[2][0], level), kind="loss", head=False)
    d.text((ends[1][0], level + step), "HSIC bottleneck, eq. 3 to 5", color=COLORS["loss"][1])


def _query(d: Drawing, panel: Box, keys: Box) -> None:
    """Draw the prediction of a query from the reference bank and the kernel head."""
    top, middle, bottom = 374.0, 454.0, 534.0

    def box(column: int, y: float, title: str, lines: tuple[str, ...], place: str, kind: str = "plain") -> Box:
        return d.add(Box(title, lines, kind=kind, places=(place,), at=(_COLUMNS[column], y)))

    patches = box(0, middle, "H&E patches", ("of the query",), "pp/patches/_reader.py", "image")
    seen = box(1, middle, "context", ("frozen encoder,", "rings, surroundings"), "model/_features.py", "image")
    branch = box(2, top, "image branch", ("as trained,", "embedding $q$"), "nn/_network.py", "image")
    retrieval = box(3, top, "retrieval", ("the 400 most", "similar spots"), "retrieval/_search.py")
    bank = box(4, top, "reference bank", ("embedding $T_l$,", "expression $R$"), "retrieval/_bank.py", "bank")
    kernel = box(3, bottom, "kernel head", ("solved on", "the reference"), "retrieval/_kernel.py")
    blend = box(3, middle, "blend", ("0.4 and 0.6,", "then sharpened"), "model/_read_out.py")
    result = box(4, middle, "expression", ("and confidence",), "model/_confidence.py", "expression")
    for left, right in ((patches, seen), (branch, retrieval), (blend, result)):
        d.arrow(left.side("right"), right.side("left"))
    for side, other in (("top", branch), ("bottom", kernel)):
        corner = (seen.side(side)[0], other.side("left")[1])
        d.arrow(seen.side(side), corner, other.side("left"))
    d.arrow(retrieval.side("bottom"), blend.side("top"))
    d.arrow(kernel.side("top"), blend.side("bottom"))
    d.arrow(bank.side("left"), retrieval.side("right"), kind="bank")
    edge = bank.side("right")[0] + 6
    around = [(edge, other.side("right")[1]) for other in (bank, kernel)]
    d.arrow(bank.side("right"), *around, kernel.side("right"), kind="bank")
    # From the training above: expression of the panel, and its embedding.
    level, into = 322.0, bank.side("top", 0.35)
    d.arrow(panel.side("bottom"), (panel.side("bottom")[0], level), (into[0], level), into, kind="bank")
    d.arrow(keys.side("bottom", 0.75), bank.side("top", 0.75), kind="bank")


_MODEL = "model.STGCHB."
_REFERENCE = (
    Box("read sections", calls=("io.read_section",), places=("io.read_section",)),
    Box("embed patches", calls=("pp.embed_patches", 'obsm["X_patch"]'), kind="image", places=("pp.embed_patches",)),
    Box(
        "set up, train",
        calls=("STGCHB.setup_anndata", "model.train"),
        kind="loss",
        places=(f"{_MODEL}setup_anndata", f"{_MODEL}train"),
    ),
    Box(
        "saved model",
        ("network, rules, reference bank",),
        ("model.save",),
        kind="bank",
        places=(f"{_MODEL}save", "model/_saving.py"),
    ),
)
_QUERY = (
    Box(
        "read, or lay tiles",
        calls=("io.read_section", "pp.tile_tissue"),
        places=("io.read_section", "pp.tile_tissue"),
    ),
    Box(
        "features, spot graph",
        ("by the model's rules,", "inside predict"),
        kind="image",
        places=("model/_query.py", "pp.embed_patches_like"),
    ),
    Box(
        "predict",
        calls=("STGCHB.load", "model.predict"),
        kind="loss",
        places=(f"{_MODEL}load", f"{_MODEL}predict"),
    ),
    Box(
        "AnnData or SpatialData",
        calls=('layers["st_gchb"]', 'obsm["X_st_gchb"]', 'obs["st_gchb_confidence"]', 'var["st_gchb_expected_pcc"]'),
        kind="expression",
        places=("model/_inference.py", "_constants.py"),
    ),
)
_RESULTS = (
    Box(
        "figures",
        ("scanpy, squidpy,", "spatialdata-plot"),
        ("st_gchb.pl",),
        places=("pl.measured_vs_predicted", "pl.confidence", "pl.slide_overview"),
    ),
    Box("measures", ("against counts,", "with baselines"), ("metrics, evaluate",), places=("metrics", "evaluate")),
    Box(
        "page, QuPath",
        calls=("pl.report", "io.write_geojson", "io.read_geojson"),
        places=("pl.report", "io.write_geojson", "io.read_geojson"),
    ),
    Box(
        "maps that lie on the slide",
        calls=("pp.rasterize", "pp.to_spatialdata", "io.write_ome_tiff"),
        places=("pp.rasterize", "pp.to_spatialdata", "io.write_ome_tiff"),
    ),
)


def walk() -> Drawing:
    """Draw the way of the data: from slides to a saved model, and from a query slide to predictions and figures."""
    d = Drawing(416)
    d.band(8, 122, "Reference slides: H&E and counts")
    d.band(132, 272, "Query slide: H&E alone is enough")
    d.band(282, 408, "Results")
    reference, query = _row(d, 42, 64, _REFERENCE), _row(d, 166, 92, _QUERY)
    for left, right in (*pairwise(reference), *pairwise(query)):
        d.arrow(left.side("right"), right.side("left"))
    saved, predict = reference[3].side("bottom", 0.3), query[2].side("top")
    d.arrow(saved, (saved[0], 127), (predict[0], 127), predict, kind="bank")
    ends = [box.side("top") for box in _row(d, 320, 74, _RESULTS)]
    start, level = query[3].side("bottom"), 300.0
    d.arrow(start, (start[0], level), (ends[0][0], level), head=False)
    for end in ends:
        d.arrow((end[0], level), end)
    return d


def _row(d: Drawing, y: float, height: float, boxes: Sequence[Box]) -> list[Box]:
    """Draw a row of four boxes, of which the last one is wider."""
    columns = ((20.0, 132.0), (166.0, 150.0), (330.0, 146.0), (490.0, 190.0))
    return [
        d.add(Box(b.title, b.lines, b.calls, b.kind, b.places, at=(x, y), size=(width, height)))
        for (x, width), b in zip(columns, boxes, strict=True)
    ]


DRAWINGS = {"model": model, "walk": walk}
"""Drawings by the name of their files."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m studies.schematics", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/_static"), help="folder (default: %(default)s)")
    return parser


def write_png(figure: Figure, path: Path) -> None:
    """Write a drawing with few colors, which takes a third of the room."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=2 * PX_PER_INCH)
    few = Image.open(picture).convert("RGB").quantize(_PNG_COLORS, dither=Image.Dither.NONE)
    with write_whole(path) as part:
        few.save(part, format="png", optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write all drawings."""
    out: Path = build_parser().parse_args(argv).out
    for name, draw in DRAWINGS.items():
        figure = draw().figure
        # The same file each time: no date, no random names of clip paths.
        with plt.rc_context({"svg.hashsalt": name}), write_whole(out / f"{name}.svg") as part:
            figure.savefig(part, format="svg", metadata={"Date": None})
        write_png(figure, out / f"{name}.png")
        plt.close(figure)
        print(f"written: {out / name}.svg, {name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
