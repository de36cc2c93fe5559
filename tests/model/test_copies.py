"""Copies: parts, copies and joined parts of a table that was set up, and copied and pickled models."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import cloudpickle
import joblib
import numpy as np
import pytest
from anndata import AnnData

from forks import fork_context
from st_gchb._errors import InputError
from st_gchb.model import STGCHB


@pytest.fixture
def registered(reference: AnnData) -> AnnData:
    STGCHB.setup_anndata(reference, slice_key="slice")
    return reference


def small(adata: AnnData) -> STGCHB:
    return STGCHB(adata, n_top_genes=10, n_hidden=16, n_embedding=8, k=10)


def trained(adata: AnnData) -> STGCHB:
    model = small(adata)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=False)
    return model


def shuffled(adata: AnnData) -> AnnData:
    return adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()


def joined(adata: AnnData) -> AnnData:
    parts = [adata[adata.obs["slice"] == name].copy() for name in ("S1", "S2")]
    return anndata.concat(parts, uns_merge="unique")


PARTS: dict[str, Callable[[AnnData], AnnData]] = {
    "copy": lambda adata: adata.copy(),
    "one slice": lambda adata: adata[adata.obs["slice"] == "S2"].copy(),
    "some genes": lambda adata: adata[:, :20].copy(),
    "shuffled": shuffled,
    "joined": joined,
    "view": lambda adata: adata[adata.obs["slice"] == "S1"],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_what_was_set_up_is_set_up_the_same_way(part: str, registered: AnnData):
    given = PARTS[part](registered)
    model = trained(given)
    assert list(model.bank_.origin["name"]) == list(given.obs_names)
    assert list(model.bank_.slices) == list(given.obs["slice"])
    values = model.bank_.table("all_genes").values.toarray()
    assert np.array_equal(values > 0, np.asarray(given.X.todense()) > 0)
    assert model.adata_manager.registry["setup_args"]["slice_key"] == "slice"


def test_the_original_stays_set_up_beside_its_copy(registered: AnnData):
    part = registered.copy()
    small(part)
    assert small(registered).adata is registered
    assert small(part).adata is part


def test_the_copy_keeps_what_was_said_at_set_up(reference: AnnData):
    reference.layers["counts"] = reference.X.copy()
    reference.X = np.zeros(reference.shape, np.float32)
    STGCHB.setup_anndata(reference, layer="counts", slice_key="slice")
    assert len(small(reference.copy())._fit().rules.expression.genes) == 10


def test_a_copy_that_lost_its_slices_is_told(registered: AnnData):
    part = registered.copy()
    del part.obs["slice"]
    with pytest.raises(InputError, match="slice"):
        small(part)


def test_a_view_is_not_set_up(reference: AnnData):
    part = reference[:60]
    with pytest.raises(InputError, match=r"adata\.copy\(\)"):
        STGCHB.setup_anndata(part, slice_key="slice")
    assert part.is_view


def test_what_was_never_set_up_is_told(reference: AnnData):
    with pytest.raises(InputError, match=r"was not set up.*STGCHB\.setup_anndata\(adata"):
        small(reference)


def test_what_was_set_up_elsewhere_is_told(registered: AnnData, tmp_path: Path):
    registered.uns["_scvi_uuid"] = "of another session"
    registered.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"another session.*STGCHB\.setup_anndata\(adata"):
        small(anndata.read_h5ad(tmp_path / "a.h5ad"))


@pytest.mark.parametrize("thing", [np.zeros((3, 3)), 7, "adata"])
def test_what_is_no_table_is_told(thing: Any):
    with pytest.raises(InputError, match="expected"):
        STGCHB(thing)
    with pytest.raises(InputError, match="expected"):
        STGCHB.setup_anndata(thing)


def through_joblib(model: STGCHB) -> STGCHB:
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


COPIES: dict[str, Callable[[STGCHB], STGCHB]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "cloudpickle": lambda model: pickle.loads(cloudpickle.dumps(model)),
    "joblib": through_joblib,
}


@pytest.fixture(scope="module", params=["trained", "loaded", "loaded with data"])
def given(
    request: pytest.FixtureRequest, model: STGCHB, tissue: AnnData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[STGCHB, AnnData]:
    """A model in one of the states in which models are copied, and what it predicts before it is; not to be changed."""
    found = model
    if request.param != "trained":
        folder = tmp_path_factory.mktemp("given") / "m"
        model.save(folder)
        data = tissue[tissue.obs["slice"] != "S3"].copy() if request.param == "loaded with data" else None
        found = STGCHB.load(folder, data, accelerator="cpu")
    return found, found.predict(tissue[tissue.obs["slice"] == "S3"].copy())


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_model_predicts_the_same(way: str, given: tuple[STGCHB, AnnData], held_out: AnnData):
    original, expected = given
    found = COPIES[way](original).predict(held_out)
    assert np.array_equal(found.layers["st_gchb"], expected.layers["st_gchb"])
    assert found.obs.equals(expected.obs)
    assert found.uns["st_gchb"]["model_id"] == expected.uns["st_gchb"]["model_id"]


def test_a_copied_model_trains_saves_and_leaves_the_original_alone(
    registered: AnnData, held_out: AnnData, tmp_path: Path
):
    model = trained(registered)
    before = model.predict(held_out).layers["st_gchb"]
    other = copy.deepcopy(model)
    assert other.id != model.id
    assert list(other.history_) == list(model.history_)
    other.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=False)
    other.save(tmp_path / "m")
    assert not np.array_equal(other.predict(held_out).layers["st_gchb"], before)
    assert np.array_equal(model.predict(held_out).layers["st_gchb"], before)


def test_an_untrained_copy_trains_to_the_same_model(registered: AnnData):
    model = small(registered)
    other = pickle.loads(pickle.dumps(model))
    for one in (model, other):
        one.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=False)
    assert other.model_id_ == model.model_id_


@pytest.mark.usefixtures("forked_workers")
def test_a_model_goes_to_a_process_of_its_own(model: STGCHB, held_out: AnnData):
    with ProcessPoolExecutor(1, mp_context=fork_context()) as pool:
        found = pool.submit(model.predict, held_out).result()
    assert np.array_equal(found.layers["st_gchb"], model.predict(held_out).layers["st_gchb"])


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_model_of_a_file_that_is_open_is_saved_instead(way: str, reference: AnnData, tmp_path: Path):
    reference.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    STGCHB.setup_anndata(backed, slice_key="slice")
    model = trained(backed)
    with pytest.raises(InputError, match=r"model\.save"):
        COPIES[way](model)
    model.save(tmp_path / "m")
    copied = copy.deepcopy(STGCHB.load(tmp_path / "m", accelerator="cpu"))
    assert np.array_equal(copied.predict(reference).layers["st_gchb"], model.predict(backed).layers["st_gchb"])
