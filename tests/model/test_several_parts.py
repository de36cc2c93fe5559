"""A model on features of several encoders and patch sizes: trained, saved, loaded, and obeyed by its queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from torch import Tensor, nn

import st_gchb
from st_gchb._artifacts import digest
from st_gchb.errors import EncoderError, ModelFileError, QueryError
from st_gchb.model import STGCHB, fit_appearance, fit_map
from st_gchb.pp import FeatureSet, register_encoder
from st_gchb.pp.encoders import FACTORIES
from st_gchb.pp.patches import feature_parts

SIZES = (60.0, 150.0)
BUILT: list[str] = []


class Colors(nn.Module):
    """Twelve means: an encoder of far fewer features than texture."""

    input_px = 16

    def transform(self, patches: Tensor) -> Tensor:
        return patches.float() / 255

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def colors() -> nn.Module:
    """Build it, and note that it was built."""
    BUILT.append("colors")
    return Colors()


@pytest.fixture(scope="module", autouse=True)
def _registered_encoder() -> Any:
    register_encoder("colors", colors, overwrite=True)
    yield
    FACTORIES.pop("colors")


@pytest.fixture(scope="module")
def slices(tissue: AnnData, _registered_encoder: None) -> AnnData:
    """Three slices with features of two encoders at two sizes."""
    adata = tissue.copy()
    st_gchb.pp.embed_patches(adata, encoder=("texture", "colors"), patch_um=SIZES, n_views=1, cache=False)
    return adata


def trained_on(adata: AnnData, *arguments: str, calibrate: bool = False, **options: Any) -> STGCHB:
    reference = adata[adata.obs["slice"] != "S3"].copy()
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, *arguments, **{"n_top_genes": 25, "k": 30, **options})
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=calibrate)
    return model


@pytest.fixture(scope="module")
def model(slices: AnnData) -> STGCHB:
    return trained_on(slices, calibrate=True)


def bare(slices: AnnData) -> AnnData:
    """Return S3 with H&E alone."""
    part = slices[slices.obs["slice"] == "S3"]
    images = {"S3": slices.uns["spatial"]["S3"]}
    return AnnData(obs=part.obs[["slice"]].copy(), obsm={"spatial": part.obsm["spatial"]}, uns={"spatial": images})


def values(prediction: AnnData) -> np.ndarray:
    return np.asarray(prediction.layers["st_gchb"])


def test_a_bare_query_gets_all_parts(model: STGCHB, slices: AnnData, tmp_path: Path) -> None:
    """By the model that was trained, and by the one that is loaded, as a query that brings its features."""
    expected = model.predict(slices[slices.obs["slice"] == "S3"].copy())
    found = model.predict(bare(slices))
    np.testing.assert_array_equal(values(found), values(expected))
    assert found.uns["st_gchb"]["encoder"].tolist() == ["texture", "colors"]
    assert len(set(found.uns["st_gchb"]["weights_sha256"])) == 2
    found.write_h5ad(tmp_path / "found.h5ad")
    model.save(tmp_path / "model")
    loaded = STGCHB.load(tmp_path / "model", accelerator="cpu")
    assert loaded.rules_.features == model.rules_.features == feature_parts(slices, "X_patch")
    np.testing.assert_array_equal(values(loaded.predict(bare(slices))), values(expected))


def test_a_spatialdata_gets_all_parts(model: STGCHB, slices: AnnData) -> None:
    """As a query, and as a reference whose features are made at the set-up."""
    query = bare(slices)
    expected = values(model.predict(query))
    names = np.arange(query.n_obs)
    diameter = query.uns["spatial"]["S3"]["scalefactors"]["spot_diameter_fullres"]
    shapes = ShapesModel.parse(query.obsm["spatial"], geometry=0, radius=diameter / 2, index=names)
    image = Image2DModel.parse(query.uns["spatial"]["S3"]["images"]["hires"], dims=("y", "x", "c"))
    table = AnnData(slices[slices.obs["slice"] == "S3"].X, obs=pd.DataFrame(index=query.obs_names))
    table.obs = table.obs.assign(region=pd.Categorical(["spots"] * len(names)), spot=names)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    sdata = SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
    size = query.uns["spatial"]["S3"]["scalefactors"]["microns_per_pixel"]
    model.predict(sdata, um_per_px=size)
    # Positions at half a pixel of the image's corner are the same patches, up to the rounding of windows.
    np.testing.assert_allclose(values(sdata.tables["st_gchb"]), expected, rtol=0.2, atol=0.1)
    STGCHB.setup_spatialdata(sdata, um_per_px=size, encoder=["texture", "colors"], weights=["default", "default"])
    found = feature_parts(sdata.tables["table"], "X_patch").names
    assert found == [f"{encoder}, {um} µm" for encoder in ("texture", "colors") for um in (80, 150, 300)]


def test_a_model_of_one_part_is_written_as_it_was(model: STGCHB, slices: AnnData, tmp_path: Path) -> None:
    """Earlier versions read it, and refuse one of several parts as newer."""
    one = slices.copy()
    st_gchb.pp.embed_patches(one, encoder="texture", patch_um=150, n_views=1, cache=False)
    retrieval = trained_on(one, kernel_weight=0.0, sharpening=0.0, context_surroundings=0)
    for name, made in (("one", retrieval), ("several", model)):
        made.save(tmp_path / name)
    records = {name: json.loads((tmp_path / name / "model.json").read_text()) for name in ("one", "several")}
    assert (records["one"]["format"], records["several"]["format"]) == (4, 5)
    newer = {"kernel_weight", "kernel_components", "kernel_rank", "sharpening", "context_surroundings"}
    assert newer.isdisjoint(records["one"]["settings"])
    assert newer <= records["several"]["settings"].keys()
    assert STGCHB.load(tmp_path / "one").settings == retrieval.settings
    assert records["one"]["features"]["patch_um"] == 150.0
    assert records["several"]["features"]["patch_um"] == [60.0, 150.0, 60.0, 150.0]


@pytest.mark.parametrize(
    "settings", [("default", {}), ("paper", {"max_epochs": 1, "pretrain_epochs": 1}), ("bleep", {})]
)
def test_presets_take_several_parts(slices: AnnData, settings: tuple[str, dict[str, Any]]) -> None:
    """With neighborhood and without, with components and without."""
    preset, options = settings
    prediction = trained_on(slices, preset, **options).predict(bare(slices))
    assert np.isfinite(values(prediction)).all()


# ---- Parts of equal weight ----


@pytest.mark.parametrize("n_rings", [0, 2])
def test_parts_have_the_same_total_variance(n_rings: int) -> None:
    """Whatever their number of features, in units of a standardized feature; what does not vary counts for nothing."""
    rng = np.random.default_rng(0)
    parts = [slice(0, 300), slice(300, 310), slice(310, 340)]
    x = rng.normal(size=(200, 340 * (n_rings + 1))) * rng.uniform(0.1, 9, 340 * (n_rings + 1)) + 3
    x[:, 305:310] = 7.0
    x = x.astype(np.float32)
    balanced = fit_map(x, None, whitening=0.0, seed=0, parts=parts)
    variance = balanced(x).var(0).reshape(n_rings + 1, 340)
    totals = [variance[:, part].sum() for part in parts]
    n_varying = 340 * (n_rings + 1) - 5
    np.testing.assert_allclose(totals, n_varying / 3, rtol=1e-3)
    assert (variance[0, 305:310] == 0).all()
    if n_rings == 0:
        np.testing.assert_array_equal(fit_appearance(x, 0, parts).inverse, balanced.matrix)


def test_a_small_part_is_not_drowned() -> None:
    """Without equal weight, the first components would be those of the large part alone."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(300, 4))
    large = signal[:, :3] @ rng.normal(size=(3, 400)) + 0.5 * rng.normal(size=(300, 400))
    small = signal[:, 3:] + 0.5 * rng.normal(size=(300, 8))
    x = np.hstack([large, small]).astype(np.float32)

    def share(parts: list[slice] | None) -> float:
        found = fit_map(x, 3, whitening=0.0, seed=0, parts=parts)(x)
        return max(abs(np.corrcoef(column, signal[:, 3])[0, 1]) for column in found.T)

    assert share(None) < 0.3
    assert share([slice(0, 400), slice(400, 408)]) > 0.9


def test_one_part_is_fitted_as_ever() -> None:
    """Not a bit differs."""
    x = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    for fitted in (fit_map, fit_appearance):
        options = {"n_components": 3, "whitening": 0.5} if fitted is fit_map else {}
        first, second = fitted(x, seed=0, **options), fitted(x, seed=0, parts=[slice(0, 12)], **options)
        for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
            np.testing.assert_array_equal(one, other)


# ---- Queries and models that do not fit ----


def remade(slices: AnnData, **options: Any) -> AnnData:
    query = bare(slices)
    given = {"encoder": ("texture", "colors"), "patch_um": SIZES, "n_views": 1, "cache": False}
    st_gchb.pp.embed_patches(query, **{**given, **options})
    return query


def test_features_of_other_parts_are_refused(model: STGCHB, slices: AnnData) -> None:
    """The message names what differs; without its own features, a query gets the model's."""
    with pytest.raises(EncoderError, match=r"patch_um \[60.0, 140.0, 60.0, 140.0\] instead of \[60.0, 150.0"):
        model.predict(remade(slices, patch_um=(60, 140)))
    with pytest.raises(QueryError, match="214 features, the model was trained on 238"):
        model.predict(remade(slices, encoder="texture"))
    with pytest.raises((EncoderError, QueryError), match="(?s)another|of another kind"):
        model.predict(remade(slices, encoder=("colors", "texture")))
    query = remade(slices, patch_um=(60, 140))
    del query.obsm["X_patch"]
    assert np.isfinite(values(model.predict(query))).all()


def test_features_that_were_cut_are_refused(slices: AnnData) -> None:
    """Which column is of which part would not be known."""
    adata = slices.copy()
    adata.obsm["X_patch"] = adata.obsm["X_patch"][:, 1:]
    with pytest.raises(EncoderError, match="has 237 columns.*describes 238 .texture, 60 µm; texture, 150 µm; colors"):
        trained_on(adata)


def test_fine_tuning_names_the_part_to_use(slices: AnnData) -> None:
    """A last stage is that of one encoder."""
    options = {"finetune": "last_stage", "context_rings": 0, "center_slices": False}
    with pytest.raises(EncoderError, match="holds 4 parts.*encoder='colors', patch_um=60, save_feature_maps=True"):
        trained_on(slices, **options)


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "model.json").read_text())
    change(record["features"])
    (folder / "model.json").write_text(json.dumps(record | {"record_sha256": digest(record)}))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "fewer sizes": (lambda features: features["patch_um"].pop(), "features: found .* entries"),
    "one size": (lambda features: features.update(patch_um=60.0), "features: patch_um=60.0; expected a list"),
    "text": (lambda features: features["patch_um"].__setitem__(0, "x"), "features: patch_um='x'"),
    "no parts": (lambda features: features.update(dict.fromkeys(features, [])), "features"),
    "size twice": (lambda features: features.update(patch_um=[60.0] * 4), "each patch size once"),
    "width": (lambda features: features.update(n_features=[107, 107, 13, 13]), "n_features=238"),
    "one encoder": (lambda features: features.update(encoder="texture"), "features"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_edited_records_are_refused(model: STGCHB, tmp_path: Path, case: str) -> None:
    """With the field that does not fit."""
    change, message = CHANGES[case]
    model.save(tmp_path / "model")
    edited(tmp_path / "model", change)
    with pytest.raises(ModelFileError, match=message):
        STGCHB.load(tmp_path / "model", accelerator="cpu")


# ---- Many slides ----


def test_many_slides_share_the_encoders(model: STGCHB, slices: AnnData, tmp_path: Path) -> None:
    """Predicted from the image and from features of their own, with each encoder built once per process."""
    from st_gchb.cohort import embed_slides, predict_slides

    model.save(tmp_path / "model")
    for name in ("S1", "S2"):
        part = slices[slices.obs["slice"] == name].copy()
        plain = AnnData(obs=part.obs[["slice"]].copy(), obsm={"spatial": part.obsm["spatial"]})
        plain.uns["spatial"] = {name: slices.uns["spatial"][name]}
        plain.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / "S1.h5ad", tmp_path / "S2.h5ad"]
    BUILT.clear()
    direct = predict_slides(tmp_path / "model", files, tmp_path / "direct", device="cpu")
    assert set(direct["status"]) == {"done"}
    assert len(BUILT) == 1
    options = {"encoder": ["texture", "colors"], "patch_um": SIZES, "n_views": 1, "device": "cpu"}
    report = embed_slides(files, tmp_path / "features", **options)
    stored = st_gchb.io.read_section(report["output"][0])
    assert FeatureSet.from_uns(stored.uns["X_patch"]) == model.rules_.features
    again = predict_slides(tmp_path / "model", report["output"].tolist(), tmp_path / "again", device="cpu")
    for first, second in zip(direct["output"], again["output"], strict=True):
        found, expected = st_gchb.io.read_section(second), st_gchb.io.read_section(first)
        np.testing.assert_array_equal(values(found), values(expected))


@pytest.mark.usefixtures("small_patches")
def test_weights_of_one_encoder_that_have_moved(slices: AnnData, tmp_path: Path) -> None:
    """The only encoder with weights is meant; the slides of a cohort are read with its path too."""
    torch.save(st_gchb.pp.get_encoder("squeezenet1_1", None).module.state_dict(), tmp_path / "w.pth")
    adata = slices.copy()
    options = {"encoder": ("squeezenet1_1", "texture"), "weights": (tmp_path / "w.pth", "default"), "patch_um": 60}
    st_gchb.pp.embed_patches(adata, n_views=1, cache=False, **options)
    model = trained_on(adata)
    expected = values(model.predict(bare(slices)))
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    found = model.predict(bare(slices), weights=tmp_path / "moved.pth")
    np.testing.assert_array_equal(values(found), expected)
    found = model.predict(bare(slices), weights=[tmp_path / "moved.pth", None])
    np.testing.assert_array_equal(values(found), expected)
