"""What the golden values are values of: short, fixed calls of the public doors on stored inputs.

Each scene returns a flat dictionary, name to array (compared as numbers) or to anything that JSON holds (compared
exactly). The inputs are files beside this one, so that another machine computes from the same pixels and counts.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from PIL import Image
from threadpoolctl import threadpool_limits

import st_gchb
from st_gchb.evaluate import METHODS, fit_predict
from st_gchb.model import STGCHB

HERE = Path(__file__).parent
INPUTS, STORES = HERE / "inputs", HERE / "stores"
SLICES = ("S1", "S2", "S3")
UM_PER_PX = 4.0
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
# Small, so that the stored model and checkpoint are; deep graph infomax runs where the preset has it.
SMALL = {"n_top_genes": 25, "n_hidden": 24, "n_embedding": 12, "n_expression_components": 10, "k": 30, "max_epochs": 3}
# The default's shares when the values were recorded: later it got a kernel head in place of the ridge head.
RECORDED = {"ridge_weight": 0.4, "kernel_weight": 0.0, "sharpening": 0.0, "context_surroundings": 0}
PRESETS = {
    "default": {"n_image_components": 16, "ridge_components": 16} | RECORDED,
    "paper": {"n_image_adapter": 20, "pretrain_epochs": 2},
    "bleep": {"n_image_components": 16},
}

Values = dict[str, Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let sums be added up in one order, whatever the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def sections() -> AnnData:
    """Three synthetic sections of about 45 spots and 40 genes, as a user has them, from the stored inputs."""
    with np.load(INPUTS / "sections.npz") as stored:
        adata = AnnData(
            stored["counts"].astype(np.float32),
            obs=pd.DataFrame(
                {"slice": pd.Categorical(stored["slice"]), "patient": pd.Categorical(stored["patient"])},
                index=stored["spots"],
            ),
            var=pd.DataFrame(index=stored["genes"]),
            obsm={"spatial": stored["spatial"]},
        )
        diameter = float(stored["spot_diameter_px"])
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": np.asarray(Image.open(INPUTS / f"{name}.png"))},
            "scalefactors": {
                "tissue_hires_scalef": 1.0,
                "spot_diameter_fullres": diameter,
                "microns_per_pixel": UM_PER_PX,
            },
        }
        for name in SLICES
    }
    return adata


def slices_of(adata: AnnData, *names: str) -> AnnData:
    """Some slices with their images alone."""
    part = adata[adata.obs["slice"].isin(names)].copy()
    part.uns["spatial"] = {name: part.uns["spatial"][name] for name in names}
    return part


def bare(adata: AnnData) -> AnnData:
    """The same spots as a slide with H&E alone."""
    return AnnData(obs=adata.obs[["slice"]].copy(), obsm={"spatial": adata.obsm["spatial"]}, uns=dict(adata.uns))


def as_spatialdata(adata: AnnData, *names: str) -> Any:
    """The same slices as one image, circles and a common table."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    part = slices_of(adata, *names)
    images, shapes = {}, {}
    for name in names:
        library = part.uns["spatial"][name]
        here = part.obs["slice"] == name
        images[f"{name}_image"] = Image2DModel.parse(
            np.moveaxis(library["images"]["hires"], -1, 0), dims=("c", "y", "x"), transformations={name: Identity()}
        )
        shapes[name] = ShapesModel.parse(
            part.obsm["spatial"][here],
            geometry=0,
            radius=library["scalefactors"]["spot_diameter_fullres"] / 2,
            index=part.obs_names[here],
            transformations={name: Identity()},
        )
    obs = pd.DataFrame({"region": part.obs["slice"], "spot": part.obs_names}, index=part.obs_names)
    table = TableModel.parse(
        AnnData(part.X, obs=obs, var=part.var), region=list(names), region_key="region", instance_key="spot"
    )
    return SpatialData(images=images, shapes=shapes, tables={"table": table})


@functools.cache
def embedded() -> AnnData:
    """The sections with features that were made by this process, once for all scenes; not to be changed."""
    adata = sections()
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=4, cache=False)
    return adata


def with_features(adata: AnnData) -> AnnData:
    """Features in place, with the stored numbers: what is trained on them starts from the same bits everywhere."""
    made = embedded()
    adata.obsm["X_patch"], adata.uns["X_patch"] = made.obsm["X_patch"].copy(), copy.deepcopy(made.uns["X_patch"])
    stored = INPUTS / "features.npz"
    if stored.is_file():
        with np.load(stored) as features:
            rows = pd.Index(features["spots"]).get_indexer(adata.obs_names)
            adata.obsm["X_patch"][:] = features["features"][rows]
    return adata


def of_prediction(prediction: AnnData) -> Values:
    """Everything that a prediction says."""
    provenance = plain(prediction.uns["st_gchb"])
    return {
        "spots": list(prediction.obs_names),
        "genes": list(prediction.var_names),
        "prediction": prediction.layers["st_gchb"],
        "X": np.asarray(prediction.X),
        "embedding": prediction.obsm["X_st_gchb"],
        "spatial": prediction.obsm["spatial"],
        "confidence": prediction.obs["st_gchb_confidence"].to_numpy(),
        "outlier": prediction.obs["st_gchb_outlier"].tolist(),
        "expected_pcc": prediction.var["st_gchb_expected_pcc"].to_numpy(),
        "provenance": {key: value for key, value in provenance.items() if key not in ("model_id", "version")},
        "libraries": sorted(prediction.uns.get("spatial", {})),
    }


def of_model(model: STGCHB) -> Values:
    """What a trained model holds of its reference."""
    return {
        "train_loss": model.history["train_loss"].to_numpy(dtype=float).ravel(),
        "terms": sorted(model.history),
        "latent_expression": model.get_latent_representation(),
        "latent_image": model.get_latent_representation(modality="image"),
    }


def trained(adata: AnnData, preset: str, **options: Any) -> STGCHB:
    """A small model of a preset, on slices with features."""
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, preset, seed=0, **(SMALL | PRESETS[preset]))
    model.train(**(QUIET | options))
    return model


def features(n_views: int | None = 4) -> Values:
    """Features of the texture encoder, made by this process, and the graph."""
    adata = embedded().copy() if n_views == 4 else sections()
    if n_views != 4:
        st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=n_views, cache=False)
    st_gchb.pp.spatial_graph(adata, slice_key="slice")
    graph = adata.obsp["spatial_connectivities"].tocoo()
    order = np.lexsort((graph.col, graph.row))
    return {
        "features": adata.obsm["X_patch"],
        "rule": plain(dict(adata.uns["X_patch"])),
        "edges": np.column_stack([graph.row, graph.col])[order].tolist(),
    }


def preset(name: str) -> Values:
    """Three slices as AnnData: two train, the third is predicted from its image."""
    adata = with_features(sections())
    model = trained(slices_of(adata, "S1", "S2"), name)
    values = of_model(model) | of_prediction(model.predict(bare(slices_of(adata, "S3"))))
    if name == "default":
        options = {"layer": "all_genes", "k": 7, "weighting": "mean", "return_neighbors": True}
        other = model.predict(slices_of(adata, "S3"), **options)
        values |= {f"all_genes {key}": value for key, value in of_prediction(other).items()}
        values["neighbors"] = other.obsm["st_gchb_neighbors"].tolist()
        values["neighbor_weights"] = other.obsm["st_gchb_neighbor_weights"]
    return values


def preset_of_spatialdata(name: str) -> Values:
    """The same by way of SpatialData."""
    adata = sections()
    sdata = as_spatialdata(adata, "S1", "S2")
    # From the cache, but for the first of these scenes.
    st_gchb.pp.embed_patches(sdata, encoder="texture", patch_um=150, n_views=4, um_per_px=UM_PER_PX)
    STGCHB.setup_spatialdata(sdata, um_per_px=UM_PER_PX)
    model = STGCHB(sdata, name, seed=0, **(SMALL | PRESETS[name]))
    model.train(**QUIET)
    query = as_spatialdata(adata, "S3")
    values = of_model(model) | of_prediction(model.predict(query, um_per_px=UM_PER_PX))
    return values | {"tables": sorted(query.tables)}


def bare_slide() -> Values:
    """Positions on an image file, and what the stored model predicts there."""
    query = st_gchb.pp.tile_tissue(INPUTS / "S3.png", um_per_px=UM_PER_PX, spacing_um=150.0)
    values = of_prediction(STGCHB.load(STORES / "model", accelerator="cpu").predict(query))
    return values | {"rows": query.obs["array_row"].tolist(), "tissue_share": query.obs["tissue_share"].to_numpy()}


def stored_model() -> Values:
    """What the stored model predicts for the third slice, and what it holds."""
    model = STGCHB.load(STORES / "model", accelerator="cpu")
    values = of_model(model) | of_prediction(model.predict(bare(slices_of(sections(), "S3"))))
    return values | {"model_id": model.model_id_, "preset": model.preset, "seed": model.seed}


def evaluation() -> Values:
    """Scores of methods where the third slice is left out."""
    adata = with_features(sections())
    methods = {name: METHODS[name] for name in ("default", "bleep", "ridge", "ridge-neighbors", "knn", "mean")}
    methods["default"] = lambda task: np.asarray(fit_predict(task, **RECORDED).layers["st_gchb"])
    result = st_gchb.evaluate.evaluate_fold(adata, "S3", methods=methods, n_top_genes=25, seeds=[0], device="cpu")
    table = result.table()
    columns = [column for column in table if "second" not in str(column).lower()]
    return {"methods": table.index.tolist(), "measures": columns, "scores": table[columns].to_numpy(dtype=float)}


def checkpoint(folder: Path) -> Values:
    """A training that goes on from the stored checkpoint, in a folder that is changed."""
    model = untrained()
    model.train(**QUIET, calibrate=False, checkpoint_dir=folder, resume=True)
    return of_model(model) | {"epochs": len(model.history["train_loss"])}


def untrained() -> STGCHB:
    """The model of the stored checkpoint, before its training."""
    adata = slices_of(with_features(sections()), "S1", "S2")
    STGCHB.setup_anndata(adata, slice_key="slice")
    return STGCHB(adata, seed=0, **(SMALL | PRESETS["default"] | {"max_epochs": 5}))


def her2st(data: Path, weights: Path) -> Values:
    """Section C5 of a HER2+ breast tumor, predicted from C4 by features of a MobileNetV2."""
    encoder = {"encoder": "mobilenet_v2", "weights": weights, "patch_um": 150, "n_views": 1, "cache": False}
    reference = st_gchb.datasets.her2st(["C4"], path=data)
    st_gchb.pp.embed_patches(reference, **encoder)
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=100, seed=0, max_epochs=3, n_embedding=16, **RECORDED)
    model.train(**QUIET)
    query = st_gchb.datasets.her2st(["C5"], path=data)
    values = of_model(model) | of_prediction(model.predict(bare(query), weights=weights))
    # A part of each: small files; what differs anywhere differs here too.
    for name in ("X", "latent_expression", "latent_image"):
        values.pop(name)
    values["prediction"], values["genes"] = values["prediction"][:, ::10], values["genes"][::10]
    provenance = values["provenance"]
    # The folder of the weights is another one on each machine.
    provenance["weights"] = Path(provenance["weights"]).name
    return values


SCENES: dict[str, Callable[[], Values]] = {
    "features": features,
    "features_default": lambda: features(None),
    **{f"anndata_{name}": lambda name=name: preset(name) for name in PRESETS},
    **{f"spatialdata_{name}": lambda name=name: preset_of_spatialdata(name) for name in PRESETS},
    "stored_model": stored_model,
    "bare_slide": bare_slide,
    "evaluation": evaluation,
}
"""Scenes that need nothing but what lies beside this file."""


def plain(value: Any) -> Any:
    """A value as JSON holds it; arrays by their numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, pd.DataFrame):
        return plain(value.to_dict("list"))
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def copy_of(store: str, folder: Path) -> Path:
    """A stored folder where it may be changed, with the paths and times that were recorded put right."""
    target = folder / store
    shutil.copytree(STORES / store, target)
    for file in sorted(target.rglob("*.json")):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("@FOLDER@", json.dumps(str(folder))[1:-1]), encoding="utf-8")
    return target


def slide_in(folder: Path) -> Path:
    """The slide of the stored receipt: a receipt knows it by path, size and time."""
    path = folder / "slide.png"
    shutil.copyfile(INPUTS / "S3.png", path)
    os.utime(path, ns=(10**18, 10**18))
    return path


def predicted(folder: Path) -> pd.DataFrame:
    """The report of ``predict_slides`` on the slide in a folder, by the model there, into ``results``."""
    return st_gchb.cohort.predict_slides(
        folder / "model",
        [folder / "slide.png"],
        folder / "results",
        um_per_px=UM_PER_PX,
        spacing_um=150.0,
        device="cpu",
    )
