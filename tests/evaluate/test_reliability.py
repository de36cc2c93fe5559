"""Confidence beside error: tables, measures and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import st_gchb
from st_gchb._errors import SliceError
from st_gchb.evaluate import Reliability, reliability, split_folds, write_reliability


def made_up():
    """Two slices; in the first, confidence is right, in the second, wrong."""
    x = np.arange(9) / 9
    spots = pd.concat(
        [
            pd.DataFrame(
                {"fold": "A", "seed": 0, "spot": range(9), "confidence": x, "outlier": x < 0.1, "rmse": 1 - x}
            ),
            pd.DataFrame({"fold": "B", "seed": 0, "spot": range(9), "confidence": x, "outlier": False, "rmse": 1 + x}),
        ]
    )
    genes = pd.DataFrame({"fold": list("AAABBB"), "seed": 0, "gene": list("xyzxyz"), "expected": [1, 2, 3] * 2})
    return Reliability(spots, genes.assign(pearson=[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]))


def test_summary_by_hand():
    table = made_up().summary()
    assert table["spots"].tolist() == [9, 9]
    assert table.loc["A", "error_least"] == pytest.approx(1 - 1 / 9)
    assert table.loc["A", "error_most"] == pytest.approx(1 - 7 / 9)
    assert table.loc["A", "less_error"] == pytest.approx(1 - (2 / 9) / (8 / 9))
    assert table.loc["B", "less_error"] < 0
    assert table["spearman_spots"].tolist() == pytest.approx([1.0, -1.0])
    assert table["spearman_genes"].tolist() == pytest.approx([1.0, -1.0])
    assert table["outliers"].tolist() == pytest.approx([1 / 9, 0])


def test_files(tmp_path):
    paths = {path.name: path for path in write_reliability(made_up(), tmp_path)}
    assert set(paths) == {"confidence_spots.csv", "confidence_genes.csv", "confidence.md", "confidence.png"}
    assert "| A | 9 | 11.1% | 0.889 | 0.222 | 75% | 1.00 | 1.00 |" in paths["confidence.md"].read_text()


@pytest.mark.usefixtures("short_trainings")
def test_held_out_slices_are_held_out(tissue, monkeypatch):
    found = reliability(tissue, n_top_genes=20, device="cpu")
    changed = tissue.copy()
    rows = np.flatnonzero(changed.obs["slice"] == "S1")
    counts = changed.X.tolil()
    counts[rows] = counts[rows[::-1]]
    changed.X = counts.tocsr()
    # The changed slice alone is looked at.
    first = "st_gchb.evaluate._calibration.split_folds"
    monkeypatch.setattr(first, lambda *given, **options: split_folds(*given, **options)[:1])
    again = reliability(changed, n_top_genes=20, device="cpu")
    assert set(again.spots["fold"]) == {"S1"}
    for key, frame, other in (("confidence", found.spots, again.spots), ("expected", found.genes, again.genes)):
        own, same = (table[table["fold"] == "S1"][key].to_numpy() for table in (frame, other))
        np.testing.assert_array_equal(own, same)
    assert found.spots["confidence"].between(0, 1).all()
    assert len(found.spots) == tissue.n_obs
    assert len(found.genes) == 3 * 20


@pytest.mark.usefixtures("short_trainings")
def test_patients_are_left_out(tissue):
    two = tissue.copy()
    two.obs["patient"] = np.where(two.obs["slice"] == "S3", "Q", "P")
    found = reliability(two, by="patient", n_top_genes=10, device="cpu")
    assert found.summary()["spots"].to_dict() == {
        "P": (two.obs["patient"] == "P").sum(),
        "Q": (two.obs["patient"] == "Q").sum(),
    }


def test_one_slice_is_too_few(tissue):
    with pytest.raises(SliceError, match="needs at least 2"):
        reliability(tissue[tissue.obs["slice"] == "S1"].copy(), n_top_genes=20)


@pytest.mark.tissue
def test_confidence_on_real_sections(her2st_path, weights_path):
    """The most confident third of spots is predicted better, and expected correlation tracks the real one."""
    adata = st_gchb.datasets.her2st(["C2", "C3", "C4"], path=her2st_path)
    st_gchb.pp.embed_patches(
        adata, encoder="mobilenet_v2", patch_um=150, weights=weights_path, n_views=1, slice_key="slice"
    )
    table = reliability(adata, n_top_genes=500, device="cpu").summary()
    assert (table["less_error"] > 0.15).all()
    assert (table["spearman_genes"] > 0.4).all()
    assert table["spearman_genes"].mean() > 0.5
    assert (table["outliers"] < 0.1).all()
