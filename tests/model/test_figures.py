"""scanpy and squidpy draw a prediction as they draw any other AnnData."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import squidpy as sq
from PIL import Image

import st_gchb


def pixels_of(path) -> np.ndarray:
    plt.gcf().savefig(path, dpi=60)
    plt.close("all")
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def assert_drawn(pixels: np.ndarray):
    """Tissue and spots fill a good part, in many colors."""
    assert min(pixels.shape[:2]) > 100
    assert (pixels < 245).any(axis=2).mean() > 0.2
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500


def colors_of_spots(ax) -> np.ndarray:
    collections = [part for part in ax.collections if part.get_array() is not None and len(part.get_array()) > 5]
    return np.asarray(collections[-1].get_array(), dtype=float)


@pytest.fixture
def prediction(model, held_out):
    return model.predict(held_out)


def with_scanpy(prediction, gene):
    (ax,) = sc.pl.spatial(prediction, color=gene, layer="st_gchb", show=False)
    return ax


def with_squidpy(prediction, gene):
    return sq.pl.spatial_scatter(prediction, color=gene, layer="st_gchb", library_key="slice", return_ax=True)


@pytest.mark.parametrize("draw", [with_scanpy, with_squidpy])
def test_a_prediction_is_drawn(prediction, unchanged, tmp_path, draw):
    first, second = prediction.var_names[:2]
    figures = []
    for gene in (first, second):
        with unchanged(prediction.layers, prediction.obsm):
            ax = draw(prediction, gene)
        # The layer is drawn, not what was measured.
        drawn, predicted = colors_of_spots(ax), prediction[:, gene].layers["st_gchb"].ravel()
        np.testing.assert_allclose(np.sort(drawn), np.sort(predicted), rtol=1e-5)
        figures.append(pixels_of(tmp_path / f"{gene}.png"))
        assert_drawn(figures[-1])
    assert figures[0].shape == figures[1].shape
    assert (figures[0] != figures[1]).any(axis=2).mean() > 0.01


def test_confidence_is_drawn(prediction, tmp_path):
    sc.pl.spatial(prediction, color="st_gchb_confidence", show=False)
    assert_drawn(pixels_of(tmp_path / "confidence.png"))


def test_several_slices_are_drawn(model, tissue, tmp_path):
    prediction = model.predict(tissue)
    gene = prediction.var_names[0]
    axes = sq.pl.spatial_scatter(prediction, color=gene, layer="st_gchb", library_key="slice", return_ax=True)
    assert len(axes) == 3
    assert_drawn(pixels_of(tmp_path / "slices.png"))


def test_the_packages_own_figures_take_a_prediction(prediction, model, tmp_path):
    genes = list(prediction.var_names[:2])
    axes = st_gchb.pl.measured_vs_predicted(prediction, genes)
    assert axes.shape == (2, 3)
    assert_drawn(pixels_of(tmp_path / "genes.png"))
    st_gchb.pl.history(model)
    assert (pixels_of(tmp_path / "history.png") < 200).any()
