"""Prediction by the search index: chosen by the reference's size, told in the result, saved with the model."""

import numpy as np
import pytest

from st_gchb._errors import InputError, MissingFileError, ModelFileError
from st_gchb.model import STGCHB
from st_gchb.retrieval import SearchIndex, _choice

pytest.importorskip("faiss", reason="the extra faiss is not installed")


@pytest.fixture(scope="module")
def folder(_registered, tmp_path_factory):
    """A model with an index, saved."""
    path = tmp_path_factory.mktemp("indexed") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_choice, "INDEX_FROM", 1)
        model = STGCHB(_registered, n_top_genes=20, k=8)
        model.train(max_epochs=2, calibrate=False, enable_progress_bar=False, accelerator="cpu")
        assert model.bank_.index is not None, "made when training ends"
        model.save(path)
    return path


def load(folder):
    return STGCHB.load(folder, accelerator="cpu")


def test_the_index_is_read_back_and_not_made_anew(folder, query, monkeypatch):
    monkeypatch.setattr(SearchIndex, "build", None)
    model = load(folder)
    found = model.predict(query, search="index", return_neighbors=True)
    index = model.bank_.index
    assert found.uns["st_gchb"]["search"] == "index"
    assert found.uns["st_gchb"]["search_recall"] == index.recall >= 0.9
    exact = model.predict(query, search="exact", return_neighbors=True)
    assert exact.uns["st_gchb"]["search"] == "exact"
    assert "search_recall" not in exact.uns["st_gchb"]
    same = [
        len(set(a) & set(b)) for a, b in zip(*(one.obsm["st_gchb_neighbors"] for one in (found, exact)), strict=True)
    ]
    assert np.mean(same) / 8 > 0.85
    assert np.corrcoef(found.X.ravel(), exact.X.ravel())[0, 1] > 0.95


def test_a_small_reference_is_searched_exactly_even_with_an_index(folder, query):
    assert load(folder).predict(query).uns["st_gchb"]["search"] == "exact"


def test_a_model_without_an_index_makes_one_when_asked(model, query, tmp_path):
    model.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "index.safetensors").exists()
    plain = load(tmp_path / "plain")
    plain.predict(query, search="index")
    plain.save(tmp_path / "indexed")
    again = load(tmp_path / "indexed")
    np.testing.assert_array_equal(again.bank_.index.codes, plain.bank_.index.codes)
    assert again.model_id_ == plain.model_id_


def test_a_damaged_or_lost_index_is_refused(folder, tmp_path):
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    file = copied / "index.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"index\.safetensors is damaged"):
        load(copied)
    file.unlink()
    with pytest.raises(MissingFileError, match=r"has no index\.safetensors"):
        load(copied)


def test_overwriting_a_model_takes_its_index_away(folder, model, tmp_path):
    load(folder).save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert load(tmp_path / "model").bank_.index is None


def test_an_unknown_search_is_told_before_patches_are_made(model, query, monkeypatch):
    monkeypatch.setattr("st_gchb.model._stgchb.prepare_query", None)
    with pytest.raises(InputError, match="search='nearest'; expected 'auto', 'exact' or 'index'"):
        model.predict(query, search="nearest")


def test_what_does_not_depend_on_the_query_is_computed_once(model, query, tmp_path, monkeypatch):
    from st_gchb.retrieval import KernelHead

    model.save(tmp_path / "model")
    fresh, fitted = load(tmp_path / "model"), []
    fit = KernelHead.loadings
    monkeypatch.setattr(KernelHead, "loadings", lambda *args: fitted.append(1) or fit(*args))
    first, second = fresh.predict(query), fresh.predict(query)
    assert len(fitted) == 1
    np.testing.assert_array_equal(first.X, second.X)
    fresh.predict(query, layer="all_genes")
    assert len(fitted) == 2
