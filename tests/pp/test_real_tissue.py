"""Tissue of real slides, with the spots under it as ground truth."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import cKDTree

import st_gchb
from st_gchb.pp import find_tissue

pytestmark = pytest.mark.tissue


def far_share(tissue, spots_px, radius_um):
    """Share of the mask farther than a radius from every spot."""
    rows, cols = np.nonzero(tissue.mask)
    centers = (np.column_stack([cols, rows]) + 0.5) * tissue.downsample
    distance, _ = cKDTree(spots_px).query(centers)
    return float((distance * tissue.um_per_px / tissue.downsample > radius_um).mean())


@pytest.mark.parametrize("section", ["C2", "C3", "C4", "C5"])
def test_tumor_sections(her2st_path, section):
    adata = st_gchb.datasets.her2st([section], path=her2st_path)
    library = adata.uns["spatial"][section]
    with Image.open(library["metadata"]["source_image_path"]) as slide:
        width = slide.width
        # At 3 um per px it is decoded in a fraction of the time, and tissue is looked for at 8 um per px.
        slide.draft("RGB", (slide.width // 4, slide.height // 4))
        pixels = np.asarray(slide)
    factor = width / pixels.shape[1]
    assert factor == pytest.approx(4, rel=0.01)
    spots = adata.obsm["spatial"] / factor
    tissue = find_tissue(pixels, um_per_px=factor * library["scalefactors"]["microns_per_pixel"])
    assert tissue.at(spots).mean() >= 0.95
    assert far_share(tissue, spots, 250) < 0.15


@pytest.mark.parametrize("name", ["151669", "151670", "151673", "151674", "151675", "151676"])
def test_pale_cortex_in_a_frame_of_fiducials(dlpfc_path, name):
    folder = dlpfc_path / name / "spatial"
    factors = json.loads((folder / "scalefactors_json.json").read_text())
    spots = pd.read_csv(folder / "tissue_positions_list.csv", header=None)
    positions = spots[[5, 4]].to_numpy() * factors["tissue_lowres_scalef"]
    under = (spots[1] == 1).to_numpy()
    pixels = np.asarray(Image.open(folder / "tissue_lowres_image.png"))
    tissue = find_tissue(pixels, um_per_px=55 / factors["spot_diameter_fullres"] / factors["tissue_lowres_scalef"])
    assert tissue.at(positions[under]).mean() >= 0.95
    assert tissue.at(positions[~under]).mean() < 0.15
    # Tissue also lies outside the array; fiducials would make it a fifth.
    assert far_share(tissue, positions[under], 250) < 0.1
