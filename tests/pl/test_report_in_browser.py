"""The page of a prediction in a browser: what is drawn and told is the table's, by pointer and by keyboard alone."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from matplotlib import colormaps
from PIL import Image

from pages import GENES, prediction
from st_gchb.pl import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu"]
"""As root there is no sandbox, and a GPU that the processor stands in for takes most of the time."""
WAIT_MS = 180_000
"""Machines that do other work at the same time are slow."""


def find_chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium here: install the package chromium, or name its program in CHROMIUM")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS, timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pred() -> AnnData:
    return prediction()


@pytest.fixture(scope="module")
def folder(pred: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(pred, tmp_path_factory.mktemp("report") / "page").parent


class Page:
    """A tab of the browser, for one page after the other: what a page says, asks of others or throws is kept."""

    def __init__(self, browser: Any, *, scale: float = 1.0) -> None:
        size = {"width": 1200, "height": 800}
        self.tab = browser.new_page(viewport=size, device_scale_factor=scale)
        self.tab.set_default_timeout(WAIT_MS)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.said.append(f"thrown: {error}"))
        self.tab.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.asked.append(request.url))

    def open(self, folder: Path) -> Page:
        """Load a page in place of the one before. The process of the tab, which takes long to start, is kept."""
        self.tab.mouse.move(0, 0)
        self.tab.goto("about:blank")
        self.said.clear()
        self.asked.clear()
        self.tab.goto(f"file://{folder}/index.html")
        self.settled()
        return self

    def run(self, script: str, argument: Any = None) -> Any:
        return self.tab.evaluate(script, argument)

    def settled(self) -> None:
        """Wait until the slide stands still and the chosen gene is drawn."""
        self.tab.wait_for_function(
            "() => { const slide = stGchb.slide; return slide?.item && slide.order && !slide.asked"
            " && Math.abs(slide.viewer.viewport.getZoom(true) / slide.viewer.viewport.getZoom() - 1) < 1e-3 }"
        )
        # Two frames on, what was asked to be drawn is drawn.
        self.run("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def choose(self, gene: str) -> None:
        self.tab.get_by_role("combobox", name="Search a gene").fill(gene)
        self.tab.keyboard.press("Enter")
        self.tab.wait_for_function("(name) => document.getElementById('gene').textContent === name", arg=gene)
        self.settled()

    def set_slider(self, name: str, value: float) -> None:
        self.run(
            "([id, value]) => { const one = document.getElementById(id); one.value = value;"
            " one.dispatchEvent(new Event('input', { bubbles: true })) }",
            [name, value],
        )
        self.settled()

    def colors_at_spots(self, dx: float = 0.0, px: float = 0.0) -> np.ndarray:
        """RGBA of the canvas of spots, ``dx`` radii and ``px`` to the right of each center, ``(n_spots, 4)``."""
        script = """([dx, px]) => {
          const slide = stGchb.slide, ratio = devicePixelRatio, copy = document.createElement("canvas");
          [copy.width, copy.height] = [slide.canvas.width, slide.canvas.height];
          const context = copy.getContext("2d", { willReadFrequently: true });
          context.drawImage(slide.canvas, 0, 0);
          return Array.from(slide.x.keys(), (i) => {
            const place = slide.placeOf(i), zoom = slide.view.zoom;
            const x = place.x + dx * slide.radius * zoom + px;
            return [...context.getImageData(Math.floor(x * ratio), Math.floor(place.y * ratio), 1, 1).data];
          });
        }"""
        return np.array(self.run(script, [dx, px]))

    def point_at(self, spot: int) -> str:
        """Move the pointer to a spot; returns what is told of it."""
        place = self.run("(i) => stGchb.slide.placeOf(i)", spot)
        box = self.tab.locator("#slide").bounding_box()
        self.tab.mouse.move(box["x"] + place["x"], box["y"] + place["y"])
        return self.tab.locator("#tip").inner_text()

    def text(self, selector: str) -> str:
        return self.tab.locator(selector).inner_text()


@pytest.fixture(scope="module")
def tab(chromium: Any) -> Page:
    return Page(chromium)


@pytest.fixture
def page(tab: Page, folder: Path) -> Iterator[Page]:
    opened = tab.open(folder)
    yield opened
    assert opened.said == []
    assert {url.split(":")[0] for url in opened.asked} <= {"file", "data", "blob"}


def expected_colors(values: np.ndarray, name: str = "viridis") -> np.ndarray:
    low, high = np.percentile(values.astype(np.float64), [1, 99])
    bins = np.clip(np.floor((values.astype(np.float64) - low) / (high - low) * 256), 0, 255).astype(int)
    return colormaps[name](bins, bytes=True)[:, :3]


def words_of(pred: AnnData, spot: int, gene: int) -> list[str]:
    words = [str(pred.obs_names[spot]), f"{pred.var_names[gene]} {pred.layers['st_gchb'][spot, gene]:.3f}"]
    words.append(f"confidence {pred.obs['st_gchb_confidence'].iloc[spot]:.2f}")
    return words + ["unlike the reference"] * bool(pred.obs["st_gchb_outlier"].iloc[spot])


def test_genes_are_drawn_and_told_as_in_the_table(page, pred):
    page.set_slider("opacity", 100)
    for gene, name in enumerate(GENES):
        page.choose(name)
        colors = page.colors_at_spots()
        assert (colors[:, 3] == 255).all()
        expected = expected_colors(pred.layers["st_gchb"][:, gene])
        # A value on the border of two colors may fall to either side of it.
        assert np.abs(colors[:, :3] - expected.astype(int)).max() <= 6
        assert (colors[:, :3] == expected).all(axis=1).mean() > 0.9
        for spot in (0, 8, 35):
            assert page.point_at(spot).split("\n") == words_of(pred, spot, gene)
        assert page.text("#gene") == name
    # Names with markup are text: nothing was made of them.
    page.tab.wait_for_function("() => document.scripts.length === 5")


def test_the_page_opens_with_the_most_predictable_gene_and_lists_all(page, pred):
    assert page.text("#gene") == "COL1A1"
    assert page.text("#gene-expected") == "expected correlation 0.70"
    listed = page.run("() => [...document.querySelectorAll('.option')].map((one) => one.firstChild.textContent)")
    assert listed == ["COL1A1", GENES[5], "ERBB2", GENES[3], GENES[4], "CD74"]
    page.tab.get_by_label("by", exact=True).select_option("name")
    listed = page.run("() => [...document.querySelectorAll('.option')].map((one) => one.firstChild.textContent)")
    assert sorted(listed) == sorted(GENES)
    assert listed.index("CD74") < listed.index("COL1A1") < listed.index("ERBB2")
    assert page.text("#summary") == "Expression predicted from H&E, not measured · 36 spots, 6 genes"
    page.tab.get_by_text("About this prediction").click()
    told = page.text("#provenance")
    assert "resnet50, texture" in told
    assert "looks <well>" in told
    page.tab.get_by_role("combobox", name="Search a gene").fill("no such gene")
    assert "No gene is called like “no such gene”" in page.text("#found")


def test_spots_of_little_confidence_are_hidden(page, pred):
    page.set_slider("opacity", 100)
    page.set_slider("confidence", 0.5)
    shown = pred.obs["st_gchb_confidence"].to_numpy(np.float32) >= 0.5
    assert page.text("#shown") == f"{shown.sum()} of 36 spots shown"
    np.testing.assert_array_equal(page.colors_at_spots()[:, 3] > 0, shown)
    hidden = int(np.flatnonzero(~shown)[0])
    assert page.point_at(hidden) == ""


def test_opacity_size_and_outline_of_outliers(page, pred):
    page.set_slider("opacity", 40)
    assert np.abs(page.colors_at_spots()[:, 3] - 0.4 * 255).max() <= 2
    page.set_slider("opacity", 0)
    # The outline alone is left: a dark line on the rim.
    rim = np.array([page.colors_at_spots(dx=1.0, px=px) for px in (0.5, 1.0, 1.5)])
    flagged = pred.obs["st_gchb_outlier"].to_numpy()
    assert (rim[:, flagged, 3].max(axis=0) > 200).all()
    assert (rim[:, flagged, :3].max(axis=2).min(axis=0) < 90).all()
    assert (rim[:, ~flagged, 3] == 0).all()
    page.tab.get_by_label("Outline spots unlike the reference").uncheck()
    page.settled()
    assert (page.colors_at_spots(dx=1.0, px=1.0)[:, 3] == 0).all()
    page.set_slider("opacity", 100)
    assert (page.colors_at_spots(dx=1.3)[:, 3] == 0).all()
    page.set_slider("size", 150)
    assert (page.colors_at_spots(dx=0.9)[:, 3] == 255).all()


def test_color_maps_and_their_legend(page, pred):
    page.set_slider("opacity", 100)
    values = pred.layers["st_gchb"][:, 1]
    low, high = np.percentile(values, [1, 99])
    for name, of_matplotlib in (("cividis", "cividis"), ("gray", "gray_r"), ("viridis", "viridis")):
        page.tab.get_by_label("Colors", exact=True).select_option(label=name)
        page.settled()
        expected = expected_colors(values, of_matplotlib)
        assert np.abs(page.colors_at_spots()[:, :3] - expected.astype(int)).max() <= 6
        ticks = page.run("() => [...document.getElementById('ticks').children].map((one) => one.textContent)")
        assert ticks == [f"≤ {low:.2f}", f"{(low + high) / 2:.2f}", f"≥ {high:.2f}"]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_slide_lies_under_its_spots_at_any_zoom(chromium, tab, folder, pred, scale):
    """Colors of the drawn slide rise with its coordinates, so that a picture tells which place is where."""
    page = (tab if scale == 1.0 else Page(chromium, scale=scale)).open(folder)
    page.set_slider("opacity", 0)
    page.tab.get_by_label("Outline spots unlike the reference").uncheck()
    for _ in range(2):
        page.tab.wait_for_function("() => stGchb.slide.item.getFullyLoaded()")
        page.settled()
        # What is told at a place on the screen, and what the slide shows there.
        picture = page.run(
            """async () => {
              const slide = stGchb.slide, place = slide.placeOf(14), box = slide.element.getBoundingClientRect();
              return { x: box.left + place.x, y: box.top + place.y };
            }"""
        )
        clip = {"x": picture["x"] - 2, "y": picture["y"] - 2, "width": 4, "height": 4}
        pixels = np.asarray(Image.open(io.BytesIO(page.tab.screenshot(clip=clip))).convert("RGB"))
        x, y = pred.obsm["spatial"][14]
        assert np.abs(pixels.mean(axis=(0, 1)) - [255 * x / 800, 255 * y / 800, 120]).max() < 5
        page.tab.get_by_role("button", name="Zoom in").click()
        page.settled()
    # The bar is as long as it says: 0.5 µm per px.
    length = page.run("() => document.querySelector('#scale-bar span').getBoundingClientRect().width")
    um = float(page.text("#scale-bar").removesuffix(" µm").replace(",", ""))
    assert length == pytest.approx(um / 0.5 * page.run("() => stGchb.slide.view.zoom"), rel=0.01)
    if page is not tab:
        page.tab.close()
    assert page.said == []


def test_everything_is_reached_by_keyboard_and_has_a_name(page, pred):
    script = "() => { const one = document.activeElement; return one.id || one.className || one.tagName }"
    reached = []
    for _ in range(25):
        page.tab.keyboard.press("Tab")
        reached.append(page.run(script))
        if len(reached) > 1 and reached[-1] == reached[0]:
            break
    wanted = ["skip", "order", "search", "list", "opacity", "size", "confidence", "outlier", "colors", "higher"]
    wanted += ["openseadragon-canvas", "zoom-in", "zoom-out", "fit"]
    assert [name for name in wanted if name not in reached] == []
    unnamed = page.run(
        """() => [...document.querySelectorAll("button, input, select, [role=listbox], [tabindex='0']")]
          .filter((one) => one.checkVisibility() && !one.labels?.length && !one.ariaLabel && !one.textContent.trim())
          .map((one) => one.outerHTML)"""
    )
    assert unnamed == []


def test_genes_and_spots_are_walked_by_keyboard(page, pred):
    page.tab.locator("#search").focus()
    page.tab.keyboard.type("erbb")
    page.tab.keyboard.press("Enter")
    page.settled()
    assert page.text("#gene") == "ERBB2"
    page.tab.keyboard.press("Control+A")
    page.tab.keyboard.press("Delete")
    page.tab.keyboard.press("ArrowDown")
    page.tab.wait_for_function("(name) => document.getElementById('gene').textContent === name", arg=GENES[3])
    assert (
        page.run(
            "() => document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
            ".getAttribute('aria-selected')"
        )
        == "true"
    )
    page.tab.locator("#list").focus()
    for key, gene in (("End", "CD74"), ("ArrowUp", GENES[4]), ("Home", "COL1A1"), ("PageDown", "CD74")):
        page.tab.keyboard.press(key)
        page.tab.wait_for_function("(name) => document.getElementById('gene').textContent === name", arg=gene)
    page.settled()
    values = pred.layers["st_gchb"][:, 2]
    order = np.argsort(-values, kind="stable")
    page.tab.get_by_role("button", name="lower").focus()
    for place in (0, 1, 2):
        page.tab.keyboard.press("Enter")
        name, *others = page.text("#spot").split("\n")
        assert name == f"{pred.obs_names[order[place]]}, number {place + 1} of 36"
        assert others == words_of(pred, order[place], 2)[1:]
    before = page.run("() => stGchb.slide.view")
    page.tab.locator(".openseadragon-canvas").first.focus()
    page.tab.keyboard.press("+")
    page.tab.wait_for_function("(zoom) => stGchb.slide.view.zoom > zoom * 1.05", arg=before["zoom"])
    page.tab.keyboard.press("r")
    page.tab.keyboard.press("f")
    page.settled()
    assert page.run("() => [stGchb.slide.viewer.viewport.getRotation(), stGchb.slide.viewer.viewport.getFlip()]") == [
        0,
        False,
    ]
    page.tab.keyboard.down("h")
    page.settled()
    assert page.colors_at_spots()[:, 3].max() == 0
    page.tab.keyboard.up("h")
    page.settled()
    assert page.colors_at_spots()[:, 3].max() > 0


def test_a_click_chooses_a_spot_and_a_hidden_one_is_given_up(page, pred):
    page.point_at(20)
    page.tab.mouse.down()
    page.tab.mouse.up()
    page.tab.wait_for_function("() => stGchb.slide.selected === 20")
    assert page.text("#spot").startswith(f"{pred.obs_names[20]}, number ")
    page.set_slider("confidence", 0.9)
    assert page.text("#spot").startswith("Point at a spot")


def test_a_slide_unlike_the_reference_is_told_first(tab, tmp_path):
    pred = prediction()
    pred.uns["st_gchb"]["stain"]["in_range"] = False
    pred.uns["st_gchb"]["stain"]["verdict"] = "unlike any reference slide"
    pred.obs["st_gchb_outlier"] = True
    page = tab.open(report(pred, tmp_path / "page", "ERBB2").parent)
    assert page.text("#verdict") == "This slide: unlike any reference slide."
    assert not page.tab.locator("#outlier").is_checked()


def test_a_prediction_with_less_shows_less(tab, tmp_path):
    pred = prediction(um_per_px=None)
    del pred.uns["st_gchb"], pred.obs["st_gchb_confidence"], pred.obs["st_gchb_outlier"]
    del pred.var["st_gchb_expected_pcc"], pred.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"]
    pred.layers["st_gchb"][:, 0] = np.nan
    pred.layers["st_gchb"][:, 2] = 1.5
    page = tab.open(report(pred, tmp_path / "page").parent)
    hidden = ("#confidence-setting", "#outlier-setting", "#scale-bar", "#verdict")
    assert [page.tab.locator(one).is_visible() for one in hidden] == [False] * 4
    page.choose("ERBB2")
    assert page.colors_at_spots()[:, 3].max() == 0
    assert page.point_at(3).split("\n") == [pred.obs_names[3], "ERBB2 no value"]
    page.choose("CD74")
    assert page.colors_at_spots()[:, 3].min() > 0
    assert page.point_at(3).split("\n") == [pred.obs_names[3], "CD74 1.500"]
    assert "none is stored" in page.tab.locator("#provenance").text_content()
    assert page.said == []


def test_a_page_whose_folder_is_incomplete_says_so(tab, tmp_path):
    folder = report(prediction(), tmp_path / "page").parent
    (folder / "data" / "genes" / "2.js").unlink()
    page = tab.open(folder)
    page.tab.get_by_role("combobox", name="Search a gene").fill("CD74")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#problem:visible")
    assert "data/genes/2.js cannot be read" in page.text("#problem")
    page.tab.get_by_role("combobox", name="Search a gene").fill("ERBB2")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#problem", state="hidden")
