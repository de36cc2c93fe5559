"""Results that are written as they are made: the same numbers in blocks, the same file, whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData
from spatialdata import SpatialData

from st_gchb.errors import InputError, StoreError
from st_gchb.model import STGCHB

READ_OUT = "st_gchb.model._read_out"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of the panel are made for twelve spots at a time."""
    monkeypatch.setattr(f"{READ_OUT}._BLOCK_BYTES", 4 * 25 * 12)


def parts_of(path: Path) -> dict[str, Any]:
    """Everything in a file but the numbers: names, attributes, types and shapes."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        found["/"] = sorted((key, str(value)) for key, value in file.attrs.items())
        file.visititems(
            lambda name, item: found.update(
                {
                    name: (
                        sorted((key, str(value)) for key, value in item.attrs.items()),
                        getattr(item, "shape", None),
                        str(getattr(item, "dtype", None)),
                    )
                }
            )
        )
    return found


@pytest.mark.parametrize("layer", [None, "all_genes", "cell_types"])
def test_in_blocks_the_numbers_are_the_same(model: STGCHB, query: AnnData, small_blocks: None, layer: str | None):
    found = model.predict(query, layer=layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{READ_OUT}._BLOCK_BYTES", 1 << 26)
        expected = model.predict(query, layer=layer)
    assert model.settings.sharpening, "each block looks at spots outside of it"
    for name in ("st_gchb_confidence", "st_gchb_outlier"):
        np.testing.assert_allclose(found.obs[name].astype(float), expected.obs[name].astype(float), atol=1e-6)
    np.testing.assert_allclose(found.layers["st_gchb"], expected.layers["st_gchb"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.X, found.layers["st_gchb"])


@pytest.mark.parametrize("layer", [None, "all_genes"])
@pytest.mark.parametrize("measured", [False, True])
def test_the_file_is_that_of_the_result_in_memory(
    model: STGCHB, query: AnnData, held_out: AnnData, small_blocks: None, tmp_path: Path, layer: str, measured: bool
):
    asked = held_out if measured else query
    expected = model.predict(asked, layer=layer)
    expected.write_h5ad(tmp_path / "expected.h5ad")
    found = model.predict(asked, layer=layer, out=tmp_path / "new" / "found.h5ad")
    assert parts_of(tmp_path / "new" / "found.h5ad") == parts_of(tmp_path / "expected.h5ad")
    assert ("measured" in found.layers) == (measured and layer is None)
    for result in (anndata.read_h5ad(tmp_path / "new" / "found.h5ad"), found.to_memory()):
        np.testing.assert_array_equal(result.X, expected.X)
        # From anndata 0.13 on, X is among them.
        assert set(result.layers) - {None} == set(expected.layers) - {None}
        for name in set(expected.layers) - {None}:
            np.testing.assert_array_equal(result.layers[name], expected.layers[name])
        np.testing.assert_array_equal(result.obsm["X_st_gchb"], expected.obsm["X_st_gchb"])
        assert result.obs.equals(expected.obs)
        assert result.var.equals(expected.var)
        assert set(result.uns["st_gchb"]) == set(expected.uns["st_gchb"])


def test_some_genes_are_read_without_the_others(model: STGCHB, query: AnnData, tmp_path: Path):
    found = model.predict(query, out=str(tmp_path / "found.h5ad"))
    assert not isinstance(found.X, np.ndarray)
    genes = list(found.var_names[[3, 0]])
    expected = model.predict(query)[:, genes]
    np.testing.assert_array_equal(found[:, genes].copy().to_memory().layers["st_gchb"], expected.layers["st_gchb"])


def test_what_fails_in_the_middle_leaves_no_file(
    model: STGCHB, query: AnnData, small_blocks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "found.h5ad"
    path.write_text("an earlier result")
    made: list[Any] = []
    block = sys.modules[READ_OUT]._block

    def failing(*arguments: Any) -> Any:
        made.append(block(*arguments))
        if len(made) == 3:
            raise MemoryError("no more")
        return made[-1]

    monkeypatch.setattr(f"{READ_OUT}._block", failing)
    with pytest.raises(MemoryError):
        model.predict(query, out=path)
    assert [file.name for file in tmp_path.iterdir()] == ["found.h5ad"]
    assert path.read_text() == "an earlier result"


def test_a_place_that_cannot_be_written_to_is_told(model: STGCHB, query: AnnData, tmp_path: Path):
    with pytest.raises(InputError, match=r"out='.*found.csv': expected the name of an .h5ad file"):
        model.predict(query, out=tmp_path / "found.csv")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match="taken"):
        model.predict(query, out=tmp_path / "taken" / "found.h5ad")
    with pytest.raises(InputError, match="out"):
        model.predict(query, out=7)
    with pytest.raises(InputError, match=r"out= is for an AnnData; .* write=True also writes"):
        model.predict(SpatialData(), out=tmp_path / "found.h5ad")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
