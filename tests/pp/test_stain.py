"""Stains in numbers, colors moved from one to another, and features that remember it."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from squidpy.experimental.im import StainReference, normalize_stains

import st_gchb
from st_gchb._errors import InputError, ScaleError, StainError
from st_gchb.pp import FeatureSpec, Stain, embed_patches, embed_patches_like, find_tissue, fit_stain, normalizing
from studies._stains import recolored, restained

OPTIONS = {"encoder": "texture", "patch_um": 150, "n_views": 1, "um_per_px": 1.0, "device": "cpu"}
DYES = (0.69, 0.63, 0.356, 0.30, 0.84, 0.453)


def recolor(pixels: np.ndarray, change) -> np.ndarray:
    return change(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def tissue():
    return st_gchb.datasets.synthetic_tissue(2, n_rows=7, n_cols=7, n_genes=20, seed=3)


@pytest.fixture(scope="module")
def pixels(tissue):
    return tissue.uns["spatial"]["S1"]["images"]["hires"]


@pytest.fixture(scope="module")
def dark(pixels):
    """The first section with 1.4 times the hematoxylin and 1.2 times the eosin."""
    return restained(pixels, [1.4, 1.2, 1.0])


def bare(tissue, name="S1"):
    rows = tissue.obs["slice"] == name
    return AnnData(obs=tissue.obs.loc[rows, ["slice"]].copy(), obsm={"spatial": tissue.obsm["spatial"][rows].copy()})


def embedded(adata, image, **more):
    embed_patches(adata, image=image, **{**OPTIONS, "cache": False, **more})
    return adata


def test_nothing_changes_where_nothing_is_asked_for():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    colors = torch.cat([values, values.flip(2), values.flip(3)], dim=1)
    same = Stain("macenko", (*DYES, 100.0, 30.0))
    lab = Stain("reinhard", (8.6, -0.2, 0.0, 0.5, 0.1, 0.02))
    for change in (normalizing(same, same), normalizing(lab, lab)):
        assert (change(colors).int() - colors.int()).abs().max() <= 1


def test_the_reinhard_map_is_squidpys(pixels):
    source, target = (
        fit_stain(pixels, method="reinhard", um_per_px=1.0),
        Stain("reinhard", (8.2, -0.3, 0.02, 0.4, 0.08, 0.03)),
    )
    found = find_tissue(pixels, um_per_px=1.0)
    image = Image2DModel.parse(np.moveaxis(found.thumbnail, -1, 0), dims=("c", "y", "x"))
    labels = Labels2DModel.parse(found.mask.astype(np.uint8), dims=("y", "x"))
    reference = StainReference(method="reinhard", mu=np.array(target.numbers[:3]), sigma=np.array(target.numbers[3:]))
    sdata = SpatialData(images={"he": image}, labels={"mask": labels})
    options = {"tissue_mask_key": "mask", "preserve_background": False, "inplace": False}
    theirs = np.moveaxis(np.asarray(normalize_stains(sdata, "he", reference, **options)), 0, -1)
    own = recolor(found.thumbnail, normalizing(source, target))
    assert np.abs(own.astype(int) - theirs.astype(int))[found.mask].max() <= 1


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_a_slide_in_another_stain_is_moved_to_the_target(pixels, dark, method):
    target, other = fit_stain(pixels, method=method, um_per_px=1.0), fit_stain(dark, method=method, um_per_px=1.0)
    moved = fit_stain(recolor(dark, normalizing(other, target)), method=method, um_per_px=1.0)
    aims, before, after = (np.array(stain.numbers) for stain in (target, other, moved))
    scale = np.maximum(np.abs(aims), 0.1)
    assert np.abs((after - aims) / scale).max() < 0.25 * np.abs((before - aims) / scale).max()


def test_what_has_no_stain(pixels):
    blank = np.full((400, 400, 3), 240, dtype=np.uint8)
    with pytest.raises(StainError, match="found 0 px of tissue"):
        fit_stain(blank, um_per_px=4.0)
    with pytest.raises(StainError, match="H&E|hematoxylin"):
        fit_stain(recolored(pixels), um_per_px=1.0)
    with pytest.raises(ScaleError, match="um_per_px="):
        fit_stain(pixels)
    with pytest.raises(InputError, match="method='he'; expected 'macenko'"):
        fit_stain(pixels, method="he", um_per_px=1.0)


@pytest.mark.parametrize("numbers", [(), (1.0,) * 7, (*DYES, np.nan, 1.0)])
def test_stains_with_the_wrong_numbers(numbers):
    with pytest.raises(InputError, match="expected (8 finite ones|a list, each entry a finite number)"):
        Stain("macenko", numbers)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_query_is_normalized_to_the_references_stain(tissue, pixels, dark, method, tmp_path):
    reference = embedded(bare(tissue), pixels, stain_norm=method)
    stored = reference.uns["X_patch"]
    assert stored["stain_norm"] == method
    reference.write_h5ad(tmp_path / "a.h5ad")
    rule = FeatureSpec.from_uns(read_h5ad(tmp_path / "a.h5ad").uns["X_patch"])
    assert rule == FeatureSpec.from_uns(stored)
    assert rule.stain == fit_stain(pixels, method=method, um_per_px=1.0)
    query = bare(tissue)
    embed_patches_like(query, rule, image=dark, um_per_px=1.0, cache=False)
    plain, shifted = embedded(bare(tissue), pixels), embedded(bare(tissue), dark)
    spread = plain.obsm["X_patch"].std(0) + 1e-6

    def apart(one, other):
        return np.abs((one.obsm["X_patch"] - other.obsm["X_patch"]) / spread).mean()

    assert apart(query, reference) < 0.7 * apart(shifted, plain)
    assert FeatureSpec.from_uns(query.uns["X_patch"]) == rule


def test_the_first_slice_is_the_target_and_every_slice_is_moved(tissue, pixels, dark):
    both = AnnData(
        obs=pd.DataFrame({"slice": ["a"] * 20 + ["b"] * 20}, index=[str(i) for i in range(40)]),
        obsm={"spatial": np.tile(bare(tissue).obsm["spatial"][:20], (2, 1))},
    )
    found = embedded(both.copy(), {"a": pixels, "b": dark}, slice_key="slice", stain_norm="macenko")
    target = FeatureSpec.from_uns(found.uns["X_patch"]).stain
    assert target == fit_stain(pixels, um_per_px=1.0)
    other = fit_stain(dark, um_per_px=1.0)
    turned = embedded(both.copy(), {"a": pixels, "b": dark}, slice_key="slice", stain_norm=other)
    assert FeatureSpec.from_uns(turned.uns["X_patch"]).stain == other
    plain = embedded(both.copy(), {"a": pixels, "b": dark}, slice_key="slice").obsm["X_patch"]
    np.testing.assert_allclose(found.obsm["X_patch"][:20], plain[:20], atol=0.02)
    assert np.abs(found.obsm["X_patch"][20:] - plain[20:]).max() > 0.1


def test_the_cache_tells_stains_apart(tissue, pixels, caplog):
    def run(**more):
        caplog.clear()
        features = embedded(bare(tissue), pixels, cache=True, **more).obsm["X_patch"]
        return features, sum("found in" in record.message for record in caplog.records)

    with caplog.at_level(logging.INFO, logger="st_gchb"):
        plain, _ = run()
        normalized, found = run(stain_norm="reinhard")
        assert found == 0
        assert np.array_equal(run(stain_norm="reinhard")[0], normalized)
        assert run(stain_norm="reinhard")[1] == 1
        other = Stain("reinhard", (8.2, -0.3, 0.02, 0.4, 0.08, 0.03))
        elsewhere, found = run(stain_norm=other)
        assert found == 0
        assert np.array_equal(run()[0], plain)
    assert not np.array_equal(elsewhere, normalized)


def test_features_that_were_stored_with_versions_in_other_stains_are_read(tissue, pixels):
    """Objects of earlier versions name versions for training in uns, and hold them in obsm."""
    adata = embedded(bare(tissue), pixels)
    expected = FeatureSpec.from_uns(adata.uns["X_patch"])
    adata.uns["X_patch"]["stain_augment"] = 2
    adata.obsm["X_patch_stain1"] = adata.obsm["X_patch"][:, :3]
    assert FeatureSpec.from_uns(adata.uns["X_patch"]) == expected


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"stain_norm": "macenco"}, InputError, "stain_norm='macenco'.*Did you mean 'macenko'"),
        ({"stain_norm": True}, InputError, "stain_norm=True; expected 'macenko'"),
        ({"stain_norm": "macenko", "um_per_px": None, "patch_px": 40}, ScaleError, "um_per_px="),
    ],
)
def test_bad_arguments_leave_the_object_alone(tissue, pixels, more, error, says):
    adata = bare(tissue)
    with pytest.raises(error, match=says):
        embedded(adata, pixels, **more)
    assert list(adata.obsm) == ["spatial"]
    assert not adata.uns


@pytest.mark.tissue
def test_her2st_is_hematoxylin_and_eosin(her2st_path):
    with Image.open(her2st_path / "C5.jpg") as slide:
        # Stains are told by a thumbnail, for which a quarter of the resolution is decoded in a fraction of the time.
        slide.draft("RGB", (slide.width // 4, slide.height // 4))
        pixels = np.asarray(slide)
    hematoxylin, eosin = np.array(fit_stain(pixels, um_per_px=2.8).numbers[:6]).reshape(2, 3)
    assert hematoxylin[0] > hematoxylin[2]
    assert eosin.argmax() == 1
