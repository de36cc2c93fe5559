"""The slide at a glance: image, outline of the tissue, positions."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.contour import ContourSet
from matplotlib_scalebar.scalebar import ScaleBar
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from st_gchb import pl
from st_gchb._errors import ImageError, InputError, SliceError
from st_gchb.pp import Tissue, find_tissue, tile_tissue

UM_PER_PX = 4.0


def make_slide() -> np.ndarray:
    """Glass with a textured square of tissue from 50 to 150 px, 400 µm wide, in a slide of 200 x 240 px."""
    slide = np.full((200, 240, 3), 240, dtype=np.uint8)
    texture = np.random.default_rng(0).integers((120, 60, 130), (200, 140, 200), (100, 100, 3))
    slide[50:150, 50:150] = texture
    return slide


@pytest.fixture
def query():
    return tile_tissue(make_slide(), um_per_px=UM_PER_PX, spacing_um=40)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def dots_of(ax):
    (dots,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    return dots


def outline_of(ax) -> np.ndarray:
    """Corners of the outline in px of the image."""
    (contour,) = [c for c in ax.collections if isinstance(c, ContourSet)]
    return np.concatenate([path.vertices for path in contour.get_paths()])


def test_positions_and_outline_lie_on_the_tissue(query):
    ax = pl.slide_overview(query)
    scale = query.uns["spatial"]["slide"]["scalefactors"]["tissue_hires_scalef"]
    np.testing.assert_allclose(dots_of(ax).get_offsets(), query.obsm["spatial"] * scale)
    low, high = outline_of(ax).min(0) / scale, outline_of(ax).max(0) / scale
    np.testing.assert_allclose([low, high], [[50, 50], [150, 150]], atol=6)
    # The whole slide is shown, not the tissue alone.
    assert ax.get_xlim() == (0, 240 * scale)
    assert ax.get_ylim() == (200 * scale, 0)
    tissue, positions = texts(ax)
    assert tissue.startswith("tissue, 0.1")
    assert positions == f"{query.n_obs} positions, 40 µm apart"
    bar = next(artist for artist in ax.get_children() if isinstance(artist, ScaleBar))
    assert bar.dx == pytest.approx(UM_PER_PX / scale)


def test_small_positions_are_dots_and_large_ones_circles(query):
    circles = dots_of(pl.slide_overview(query))
    assert circles.get_facecolor().size == 0
    factors = query.uns["spatial"]["slide"]["scalefactors"]
    diameter = factors["spot_diameter_fullres"] * factors["tissue_hires_scalef"]
    assert circles._widths[0] * 2 == pytest.approx(diameter)
    many = tile_tissue(make_slide(), um_per_px=UM_PER_PX, spacing_um=12)
    assert dots_of(pl.slide_overview(many)).get_facecolor().size == 4


def test_a_mask_of_ones_own_is_outlined_only_where_it_is_passed():
    mask = np.zeros((50, 60), dtype=bool)
    mask[20:30, 15:40] = True
    query = tile_tissue(make_slide(), um_per_px=UM_PER_PX, spacing_um=40, tissue=mask)
    assert len(texts(pl.slide_overview(query))) == 1
    ax = pl.slide_overview(query, tissue=Tissue(mask, 4.0, 16.0))
    np.testing.assert_allclose(outline_of(ax).min(0), [60, 80], atol=2.1)
    assert texts(ax)[0] == "tissue, 0.064 mm², 8% of the slide"


def test_tissue_alone(query):
    found = find_tissue(make_slide(), um_per_px=UM_PER_PX)
    ax = pl.slide_overview(found)
    assert len(texts(ax)) == 1
    assert not [c for c in ax.collections if isinstance(c, EllipseCollection)]
    with pytest.raises(ImageError, match="no image"):
        pl.slide_overview(Tissue(found.mask, 1.0, 4.0))


def test_a_region_is_drawn(query):
    corners = np.array([[60, 60], [140, 60], [100, 130]])
    part = tile_tissue(make_slide(), um_per_px=UM_PER_PX, spacing_um=40, roi=corners)
    ax = pl.slide_overview(part)
    assert texts(ax)[1] == "region of interest"
    lines = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) == 4]
    np.testing.assert_allclose(lines[0].max(0), [70, 65])


def test_spots_of_a_measured_slide(pred):
    """No tile was laid: the positions are the spots, and nothing is said of their spacing."""
    ax = pl.slide_overview(pred, slice="C2")
    assert texts(ax)[-1] == "25 positions"
    with pytest.raises(SliceError, match="name the one"):
        pl.slide_overview(pred)


def test_spatialdata_looks_like_the_array():
    image = Image2DModel.parse(np.moveaxis(make_slide(), -1, 0), dims=("c", "y", "x"))
    sdata = tile_tissue(SpatialData(images={"he": image}), um_per_px=UM_PER_PX, spacing_um=40)
    ax = pl.slide_overview(sdata)
    offsets = dots_of(ax).get_offsets()
    scale = ax.get_xlim()[1] / 240
    np.testing.assert_allclose(offsets, sdata["tiles_table"].obsm["spatial"] * scale, atol=1e-6)
    assert texts(ax)[0].startswith("tissue")


def test_what_cannot_be_drawn(query):
    with pytest.raises(InputError, match="tissue='stian'"):
        pl.slide_overview(query, tissue="stian")
    query.uns["spatial"]["slide"]["images"] = {}
    with pytest.raises(ImageError, match="no image"):
        pl.slide_overview(query)
    assert plt.get_fignums() == []
