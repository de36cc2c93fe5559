"""The drawings of the first page: boxes stand for what is in the code, and their text is right and fits."""

from __future__ import annotations

import inspect
import re
from operator import attrgetter
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

import st_gchb
from st_gchb import nn
from st_gchb.model import PRESETS, STGCHB
from studies import schematics as study

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "st_gchb"


@pytest.fixture(params=sorted(study.DRAWINGS))
def drawing(request):
    made = study.DRAWINGS[request.param]()
    yield made
    plt.close(made.figure)


@pytest.fixture
def model():
    made = study.model()
    yield made
    plt.close(made.figure)


def lines_of(drawing: study.Drawing, title: str) -> str:
    return " ".join(" ".join(box.lines) for box in drawing.boxes if box.title == title)


def test_every_box_stands_for_what_is_in_the_code(drawing):
    assert len(drawing.boxes) > 10
    for box in drawing.boxes:
        assert box.places, box.title
        for place in box.places:
            if place.endswith(".py"):
                assert (SOURCE / place).is_file(), place
            else:
                assert attrgetter(place)(st_gchb) is not None


def test_calls_are_of_public_names_and_slots_are_those_that_are_written(drawing):
    slots = {*re.findall(r'(?:Final = )"(\w+)"', (SOURCE / "_constants.py").read_text(encoding="utf-8"))}
    calls = ", ".join(call for box in drawing.boxes for call in box.calls)
    for call in calls.split(", ") if calls else ():
        if found := re.fullmatch(r'\w+\["(\w+)"\]', call):
            assert found[1] in slots
        elif call.startswith(("STGCHB.", "model.")):
            assert callable(getattr(STGCHB, call.split(".")[1]))
        else:
            assert attrgetter(call.removeprefix("st_gchb."))(st_gchb) is not None


def test_text_fits_its_box(drawing):
    drawing.figure.set_dpi(2 * study.PX_PER_INCH)  # as in the files: fewer would round each letter to whole px
    renderer = drawing.figure.canvas.get_renderer()
    to_px = drawing.ax.transData.inverted()
    n_inside = 0
    for text in drawing.ax.texts:
        (left, low), (right, high) = to_px.transform(text.get_window_extent(renderer).get_points())
        assert left >= 8
        assert right <= study.WIDTH_PX - 8, text.get_text()
        x, y = text.get_position()
        for box in drawing.boxes:
            (x0, y0), (x1, y1) = box.at, box.side("right", 1.0)
            if x0 < x < x1 and y0 < y < y1:
                n_inside += 1
                assert x0 + 2 < left < right < x1 - 2, text.get_text()
                assert y0 + 1 < min(low, high), text.get_text()
                assert max(low, high) < y1 - 1, text.get_text()
    assert n_inside == sum(1 + len(box.lines) + len(box.calls) for box in drawing.boxes)


def test_boxes_do_not_lie_on_one_another(drawing):
    for number, one in enumerate(drawing.boxes):
        for other in drawing.boxes[number + 1 :]:
            beside = one.side("right")[0] < other.at[0] or other.side("right")[0] < one.at[0]
            below = one.side("bottom")[1] < other.at[1] or other.side("bottom")[1] < one.at[1]
            assert beside or below, (one.title, other.title)


def test_losses_have_the_equations_that_their_functions_state(model):
    drawn = [box for box in model.boxes if box.kind == "loss"]
    assert len(drawn) == 2
    for box in drawn:
        (place,) = box.places
        summary = inspect.getdoc(attrgetter(place)(st_gchb)).splitlines()[0]
        assert re.findall(r"\d", " ".join(box.lines)) == re.findall(r"\d", summary.partition("equation")[2])
    text = [text.get_text() for text in model.ax.texts if "bottleneck" in text.get_text()]
    assert text == ["HSIC bottleneck, eq. 3 to 5"] * 2
    for function, number in ((nn.hsic, "3"), (nn.nhsic, "4"), (nn.bottleneck_loss, "5")):
        assert f"equation {number}" in inspect.getdoc(function).splitlines()[0]


def test_numbers_are_those_of_the_default(model):
    default, paper = PRESETS["default"], PRESETS["paper"]
    assert f"the {default.k} most" in lines_of(model, "retrieval")
    shares = f"{1 - default.kernel_weight:.1f} and {default.kernel_weight:.1f}"
    assert shares in lines_of(model, "blend")
    assert f"{default.n_top_genes:,} most" in lines_of(model, "panel $R$")
    patches = inspect.signature(st_gchb.pp.embed_patches).parameters["patch_um"].default
    assert f"{', '.join(f'{um:g}' for um in patches)} µm" in lines_of(model, "H&E patches")
    encoders = inspect.signature(st_gchb.pp.embed_patches).parameters["encoder"].default
    assert ", ".join(encoders) in lines_of(model, "frozen encoder").lower()
    # What is dashed, and what the notes say that the paper has or lacks.
    for off in ("dgi_image", "dgi_expression"):
        assert getattr(default, off) == 0 < getattr(paper, off)
    for graph in ("image_graph", "expression_graph"):
        assert (getattr(default, graph), getattr(paper, graph)) == ("none", "gcn")
    assert default.bottleneck > 0
    assert paper.n_image_adapter > 0 == default.n_image_adapter
    for added in ("context_rings", "context_surroundings", "kernel_weight", "sharpening"):
        assert getattr(paper, added) == 0 < getattr(default, added)


def test_the_command_writes_the_same_pictures_each_time(tmp_path):
    for folder in ("one", "two"):
        assert study.main(["--out", str(tmp_path / folder)]) == 0
    names = [path.name for path in sorted((tmp_path / "one").iterdir())]
    assert names == ["model.png", "model.svg", "walk.png", "walk.svg"]
    for name in names:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name
        assert (ROOT / "docs" / "_static" / name).is_file()
        assert len(one) < 250_000
    for name in ("model", "walk"):
        with Image.open(ROOT / "docs" / "_static" / f"{name}.png") as picture:
            assert picture.width == 2 * study.WIDTH_PX
