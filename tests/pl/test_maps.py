from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib_scalebar.scalebar import ScaleBar
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Translation

from st_gchb import pl
from st_gchb._errors import CoordinateError, InputError, MissingKeyError, SliceError


def spots_of(ax):
    """The dots, one value each."""
    (dots,) = [c for c in ax.collections if isinstance(c, EllipseCollection) and c.get_array() is not None]
    return dots


def rings_of(ax):
    """What marks the outliers."""
    (rings,) = [c for c in ax.collections if isinstance(c, EllipseCollection) and c.get_array() is None]
    return rings


def scale_bar_of(ax) -> ScaleBar | None:
    return next((artist for artist in ax.get_children() if isinstance(artist, ScaleBar)), None)


def pixels(ax) -> np.ndarray:
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())


def test_one_row_a_gene_with_tissue_measured_and_predicted(pred):
    axs = pl.measured_vs_predicted(pred, ["ERBB2", "CD74"], slice="C2")
    assert axs.shape == (2, 3)
    assert [ax.get_title() for ax in axs[0]] == ["H&E", "Measured", "Predicted, r = 1.00"]
    assert [row[0].get_ylabel() for row in axs] == ["ERBB2", "CD74"]
    np.testing.assert_allclose(spots_of(axs[0, 1]).get_array(), np.tile(np.arange(5.0), 5))
    np.testing.assert_allclose(spots_of(axs[0, 2]).get_array(), np.tile(np.arange(5.0) / 2, 5))


def test_the_figure_shows_the_values(pred):
    """Spots at the left of a rising gene are dark in viridis, at the right bright; the H&E lies under them."""
    axs = pl.measured_vs_predicted(pred, "ERBB2", slice="C2", show_tissue=False, size=2.0)
    drawn = pixels(axs[0, 0])
    colors = []
    for x, y in [(100.0, 140.0), (260.0, 140.0)]:
        column, row = axs[0, 0].transData.transform((x / 4, y / 4))
        colors.append(drawn[drawn.shape[0] - 1 - int(row), int(column), :3].astype(int))
    viridis = [np.array(plt.get_cmap("viridis")(v)[:3]) * 255 for v in (0.0, 1.0)]
    np.testing.assert_allclose(colors, viridis, atol=6)


def test_measured_and_predicted_share_one_named_color_scale(pred):
    axs = pl.measured_vs_predicted(pred, ["ERBB2", "CD74"], slice="C2")
    for row in axs:
        limits = {(spots_of(ax).norm.vmin, spots_of(ax).norm.vmax) for ax in row[1:]}
        assert len(limits) == 1
    bars = [ax for ax in axs[0, 0].figure.axes if ax not in set(axs.ravel())]
    assert [bar.get_ylabel() for bar in bars] == ["log(1 + counts per 10⁴)"] * 2
    values = np.concatenate([np.tile(np.arange(5.0), 5), np.tile(np.arange(5.0) / 2, 5)])
    assert spots_of(axs[0, 1]).norm.vmax == pytest.approx(np.percentile(values, 99))


def test_scale_bar_measures_full_resolution_px(pred):
    """A shown px is four px of the slide, 0.5 µm each."""
    axs = pl.measured_vs_predicted(pred, "ERBB2", slice="C2")
    assert scale_bar_of(axs[0, 0]).dx == pytest.approx(2.0)
    assert scale_bar_of(axs[0, 1]) is None
    axs = pl.measured_vs_predicted(pred, "ERBB2", slice="C2", show_tissue=False)
    assert scale_bar_of(axs[0, 0]).dx == pytest.approx(2.0)


def test_no_scale_bar_where_the_px_size_is_not_known(pred):
    del pred.uns["spatial"]["C2"]["scalefactors"]["microns_per_pixel"]
    assert scale_bar_of(pl.measured_vs_predicted(pred, "ERBB2", slice="C2")[0, 0]) is None


def test_without_truth_the_prediction_is_drawn_alone(pred):
    del pred.layers["measured"]
    axs = pl.measured_vs_predicted(pred, "ERBB2", slice="C3")
    assert [ax.get_title() for ax in axs[0]] == ["H&E", "Predicted"]


def test_without_an_image_the_spots_are_drawn_right_way_up(pred):
    pred.uns["spatial"]["C2"]["images"] = {}
    ax = pl.measured_vs_predicted(pred, "ERBB2", slice="C2", show_tissue=False)[0, 0]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert len(spots_of(ax).get_array()) == 25
    assert not ax.images


def test_without_anything_in_uns(pred):
    del pred.uns["spatial"]
    ax = pl.measured_vs_predicted(pred, "ERBB2", slice="C2", show_tissue=False)[0, 0]
    assert ax.get_xlim()[0] < 100.0 < 260.0 < ax.get_xlim()[1]


def test_constant_gene_is_drawn(pred):
    pred.layers["measured"] = np.ones((50, 3), dtype=np.float32)
    pred.layers["st_gchb"] = np.ones((50, 3), dtype=np.float32)
    axs = pl.measured_vs_predicted(pred, "ERBB2", slice="C2")
    assert axs[0, 2].get_title() == "Predicted, r = 0.00"


def test_tissue_is_cut_to_the_spots(pred):
    ax = pl.measured_vs_predicted(pred, "ERBB2", slice="C2")[0, 0]
    # Spots from 100 to 260 px and a rim of 1.5 spots, at a quarter of the size.
    assert ax.get_xlim() == pytest.approx(((100 - 24) / 4, (260 + 24) / 4))
    assert ax.get_ylim() == pytest.approx(((260 + 24) / 4, (100 - 24) / 4))


def test_draws_into_given_axes(pred):
    figure, axs = plt.subplots(1, 3, squeeze=False)
    assert pl.measured_vs_predicted(pred, "ERBB2", slice="C2", axs=axs) is axs
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(InputError, match=r"\(1, 3\); expected \(2, 3\)"):
        pl.measured_vs_predicted(pred, ["ERBB2", "CD74"], slice="C2", axs=axs)


def test_the_caller_s_object_is_left_as_it_was(pred):
    before, uns = pred.copy(), copy.deepcopy(dict(pred.uns))
    pl.measured_vs_predicted(pred, "ERBB2", slice="C2")
    pl.confidence(pred, slice="C3")
    assert list(pred.obs) == list(before.obs)
    assert pred.uns["spatial"]["C2"]["scalefactors"] == uns["spatial"]["C2"]["scalefactors"]
    assert set(pred.uns) == set(uns)
    np.testing.assert_array_equal(pred.obsm["spatial"], before.obsm["spatial"])


def test_confidence_marks_outliers_and_spans_zero_to_one(pred):
    ax = pl.confidence(pred, slice="C2")
    norm: Normalize = spots_of(ax).norm
    assert (norm.vmin, norm.vmax) == (0.0, 1.0)
    np.testing.assert_allclose(spots_of(ax).get_array(), np.linspace(0, 1, 50)[:25])
    rings = rings_of(ax)
    # Rings stand around their spots: the first three, at 100, 140 and 180 px.
    np.testing.assert_allclose(rings.get_offsets()[:, 0], [25.0, 35.0, 45.0])
    assert rings.get_facecolor().size == 0
    assert ax.get_legend().get_texts()[0].get_text() == "unlike the reference: 3 of 25"
    assert scale_bar_of(ax).dx == pytest.approx(2.0)


def test_confidence_without_outliers_has_no_legend(pred):
    pred.obs["st_gchb_outlier"] = False
    assert pl.confidence(pred, slice="C2").get_legend() is None


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"genes": "ERBB3"}, MissingKeyError, "'ERBB3' is not among the 3.*ERBB2"),
        ({"genes": []}, InputError, "no gene was named"),
        ({"genes": "ERBB2", "slice": None}, SliceError, r"2 slices, \['C2', 'C3'\]; name the one"),
        ({"genes": "ERBB2", "slice": "C9"}, SliceError, "no slice 'C9'"),
        ({"genes": "ERBB2", "slice_key": "section"}, MissingKeyError, "no column 'section'"),
        ({"genes": "ERBB2", "layer": "absent"}, MissingKeyError, "no 'absent'; found"),
    ],
)
def test_what_cannot_be_drawn(pred, arguments, error, says):
    with pytest.raises(error, match=says):
        pl.measured_vs_predicted(pred, **{"slice": "C2", **arguments})
    assert plt.get_fignums() == []


def test_objects_that_are_no_prediction(pred):
    with pytest.raises(MissingKeyError, match="no 'st_gchb_confidence'"):
        pl.confidence(AnnData(pred.X))
    del pred.obsm["spatial"]
    with pytest.raises(CoordinateError, match="obsm"):
        pl.measured_vs_predicted(pred, "ERBB2", slice="C2")


def test_one_slice_needs_no_name(pred):
    assert pl.confidence(pred[:25].copy()).get_title() == "Confidence"
    alone = pred[:25].copy()
    alone.uns["spatial"] = {"whatever": alone.uns["spatial"]["C2"]}
    del alone.obs["slice"]
    assert scale_bar_of(pl.confidence(alone)) is not None


@pytest.mark.parametrize(("spacing", "expected"), [(16.0, 4.0), (20.0, 5.0), (40.0, 6.0)])
def test_dots_may_touch_and_do_not_overlap(pred, spacing, expected):
    """Spots are 16 px wide, 4 px in the image: up to half as wide again, where there is room."""
    pred.obsm["spatial"] = (pred.obsm["spatial"] - 100.0) * spacing / 40.0 + 100.0
    dots = spots_of(pl.confidence(pred, slice="C2"))
    assert dots._widths[0] * 2 == pytest.approx(expected)
    assert spots_of(pl.confidence(pred, slice="C2", size=2.0))._widths[0] * 2 == pytest.approx(8.0)


def test_a_dense_grid_is_drawn_with_its_outliers_as_dots(pred):
    n = 150
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 399, n), np.linspace(0, 399, n)))
    obs = pd.DataFrame(
        {"st_gchb_confidence": x / 399, "st_gchb_outlier": x < 100}, index=[f"p{i}" for i in range(n * n)]
    )
    library = pred.uns["spatial"]["C2"]
    library["scalefactors"]["spot_diameter_fullres"] = 399 / (n - 1)
    dense = AnnData(obs=obs, obsm={"spatial": np.column_stack([x, y])}, uns={"spatial": {"slide": library}})
    ax = pl.confidence(dense)
    assert len(spots_of(ax).get_offsets()) == n * n
    marks = rings_of(ax)
    assert len(marks.get_offsets()) == (x < 100).sum()
    assert marks.get_facecolor().shape == (1, 4)
    assert "of 22,500" in ax.get_legend().get_texts()[0].get_text()


def test_a_slide_that_is_flagged_as_a_whole_is_named_and_not_ringed(pred):
    pred.obs["st_gchb_outlier"] = True
    stain = pd.DataFrame({"in_range": [False, True]}, index=["C2", "C3"])
    pred.uns["st_gchb"] = {"stain": stain}
    ax = pl.confidence(pred, slice="C2")
    assert len([c for c in ax.collections if isinstance(c, EllipseCollection)]) == 1
    assert "whole slide" in ax.get_legend().get_texts()[0].get_text()
    assert len(rings_of(pl.confidence(pred, slice="C3")).get_offsets()) == 25


def test_the_scale_bar_speaks_of_um(pred):
    pred.uns["spatial"]["C2"]["scalefactors"]["microns_per_pixel"] = 100.0
    ax = pl.confidence(pred, slice="C2")
    ax.figure.canvas.draw()
    bar = scale_bar_of(ax)
    assert bar.scale_formatter(2, "mm") == "2,000 µm"
    assert bar.scale_formatter(500, "µm") == "500 µm"


@pytest.fixture
def sdata(pred):
    """The first slice as a SpatialData with a prediction, and the image shifted by 7 px."""
    part = pred[:25].copy()
    image = np.moveaxis(np.kron(part.uns["spatial"]["C2"]["images"]["hires"], np.ones((4, 4, 1), np.uint8)), -1, 0)
    place = {"global": Translation([7.0, 7.0], ("x", "y"))}
    spots = ShapesModel.parse(part.obsm["spatial"] + 7.0, geometry=0, radius=8.0)
    part.obs["region"], part.obs["instance_id"] = pd.Categorical(["spots"] * 25), spots.index.to_numpy()
    del part.uns["spatial"], part.obsm["spatial"]
    table = TableModel.parse(part, region="spots", region_key="region", instance_key="instance_id")
    images = {"he": Image2DModel.parse(image, dims=("c", "y", "x"), transformations=place)}
    return SpatialData(images=images, shapes={"spots": spots}, tables={"st_gchb": table, "other": table.copy()})


def test_spatialdata_is_drawn_as_its_table_would_be(pred, sdata):
    ax = pl.measured_vs_predicted(sdata, "ERBB2")[0, 2]
    np.testing.assert_allclose(spots_of(ax).get_array(), np.tile(np.arange(5.0) / 2, 5))
    np.testing.assert_allclose(spots_of(ax).get_offsets(), pred.obsm["spatial"][:25], atol=1e-6)
    assert ax.images
    ax = pl.confidence(sdata, table="other")
    np.testing.assert_allclose(spots_of(ax).get_array(), np.linspace(0, 1, 50)[:25])
    with pytest.raises(MissingKeyError, match="absent"):
        pl.confidence(sdata, table="absent")
    with pytest.raises(InputError, match="table='x' is for SpatialData"):
        pl.confidence(pred, table="x", slice="C2")
