"""Colors for maps over a slide."""

from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, strategies as st
from matplotlib import colormaps

from st_gchb import pl
from st_gchb._errors import InputError


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=20))
def test_colors_are_the_maps_own_above_the_lower_end(values):
    values = np.array(values)
    own, ours = colormaps["viridis"](values), pl.transparent_cmap("viridis")(values)
    shown = values > 0
    np.testing.assert_allclose(ours[shown], own[shown], atol=0.02)
    assert (ours[~shown, 3] == 0).all()
    for value in values[:3]:
        assert pl.transparent_cmap(colormaps["viridis"])(value)[3] == (value > 0)


def test_an_image_below_shows():
    """As spatialdata-plot up to 0.4.0 does it: a copy, to whose table it sets one opacity."""
    cmap = copy.copy(pl.transparent_cmap("magma"))
    cmap._init()
    cmap._lut[:, -1] = 1.0
    figure, ax = plt.subplots(figsize=(2, 2), dpi=50)
    ax.set_position([0, 0, 1, 1])
    ax.imshow(np.full((2, 2, 3), (0, 255, 0), np.uint8))
    ax.imshow(np.ma.masked_invalid([[0.0, 5.0], [9.0, np.nan]]), cmap=cmap)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    corners = pixels[10, 10], pixels[10, -10], pixels[-10, 10], pixels[-10, -10]
    assert [corner.tolist() == [0, 255, 0] for corner in corners] == [True, False, False, True]


@pytest.mark.parametrize(
    ("cmap", "message"), [("virids", "'virids' is no color map"), (3, "cmap=3; expected text or a Colormap")]
)
def test_bad_input(cmap, message):
    with pytest.raises(InputError, match=message):
        pl.transparent_cmap(cmap)
