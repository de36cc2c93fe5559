"""Synthetic tissue: the counts follow what the image shows, and only that."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from scipy.spatial import KDTree

from st_gchb._errors import CoordinateError, InputError, MissingKeyError, ScaleError, SliceError
from st_gchb.datasets import dlpfc_geometry, synthetic_tissue
from st_gchb.datasets.synthetic import (
    ENDOTHELIUM,
    PYRAMID,
    draw_genes,
    look_under,
    memberships,
    place_cells,
    random_anatomy,
    unseen_fields,
)

SMALL = {"n_rows": 16, "n_cols": 14, "n_genes": 120}


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return synthetic_tissue(2, seed=3, **SMALL)


def _log_normalized(adata: ad.AnnData) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(a.shape[1])])


def test_layout(tissue, tmp_path):
    assert tissue.obs_names.is_unique
    assert tissue.var_names.is_unique
    assert tissue.obs["slice"].cat.categories.tolist() == ["S1", "S2"]
    assert tissue.obs["patient"].cat.categories.tolist() == ["P1", "P2"]
    assert tissue.X.dtype == np.float32
    assert tissue.layers["truth"].shape == tissue.shape
    assert tissue.uns["synthetic"]["simulated"]
    assert {"L1_01", "WM_01", "HK_01", "HID_01", "ND_01"} <= set(tissue.var_names)
    for name, library in tissue.uns["spatial"].items():
        image, factors = library["images"]["hires"], library["scalefactors"]
        assert image.dtype == np.uint8
        assert factors["tissue_hires_scalef"] == 1.0
        at = tissue.obsm["spatial"][tissue.obs["slice"] == name]
        assert (at >= 0).all()
        assert (at < np.array(image.shape[1::-1])).all()
        assert factors["spot_diameter_fullres"] * factors["microns_per_pixel"] == pytest.approx(55)
    tissue.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").obs["layer"].equals(tissue.obs["layer"])


def test_same_seed_same_tissue():
    small = {"n_rows": 5, "n_cols": 5, "n_genes": 120, "um_per_px": 2.0}
    one, again, other = (synthetic_tissue(2, seed=seed, **small) for seed in (3, 3, 4))
    np.testing.assert_array_equal(again.X.toarray(), one.X.toarray())
    for name in ("S1", "S2"):
        first, second, third = (a.uns["spatial"][name]["images"]["hires"] for a in (one, again, other))
        np.testing.assert_array_equal(first, second)
        assert (first != third).any()


def test_slice_does_not_depend_on_how_many_follow(tissue):
    one = synthetic_tissue(1, seed=3, **SMALL)
    np.testing.assert_array_equal(one.X.toarray(), tissue[tissue.obs["slice"] == "S1"].X.toarray())


def test_slices_differ(tissue):
    first, second = (tissue.uns["spatial"][name]["images"]["hires"] for name in ("S1", "S2"))
    assert np.abs(first.astype(int) - second.astype(int)).mean() > 5


def test_image_looks_like_a_stained_section(tissue):
    image = tissue.uns["spatial"]["S1"]["images"]["hires"].astype(float)
    glass = image[:25].reshape(-1, 3)
    assert glass.mean() > 232
    assert np.abs(glass - glass.mean(axis=0)).max() < 12
    x, y = tissue.obsm["spatial"][tissue.obs["slice"] == "S1"].astype(int).T
    red, green, blue = np.stack([image[y + d, x + d] for d in range(-20, 21, 4)]).mean(axis=(0, 1))
    assert red > blue > green, "tissue is pink"
    dark = image[(image[..., 0] < 120) & (image.min(axis=2) < 120)].mean(axis=0)
    assert dark[2] > dark[0] > dark[1], "nuclei are blue-violet"


def test_nuclei_that_are_counted_are_the_ones_drawn(tissue):
    correlations = []
    for name, library in tissue.uns["spatial"].items():
        image, rows = library["images"]["hires"].astype(float), tissue.obs["slice"] == name
        blue = (image[..., 0] < 130).astype(float)
        gray = tissue[rows & (tissue.obs["layer"] != "L5") & (tissue.obs["layer"] != "L3")]
        windows = [blue[y - 50 : y + 50, x - 50 : x + 50].mean() for x, y in gray.obsm["spatial"].astype(int)]
        correlations.append(np.corrcoef(windows, gray.obs["n_nuclei"])[0, 1])
    assert min(correlations) > 0.8


def test_counts_are_drawn_around_the_truth(tissue):
    program = tissue.var["program"].to_numpy()
    found = pd.Series(_correlations(_log_normalized(tissue), tissue.layers["truth"])).groupby(program).mean()
    assert found["layer"] > 0.5
    assert found["gradient"] > 0.5
    assert found["hidden"] > 0.5
    counts = tissue.X.toarray()
    share = counts.sum(axis=0) / counts.sum()
    expected = np.expm1(tissue.layers["truth"]).mean(axis=0) / 1e4
    assert np.corrcoef(share, expected)[0, 1] > 0.98
    assert counts.var(axis=0).sum() > counts.mean(axis=0).sum(), "counts spread more than Poisson"


def test_layer_genes_mark_their_layer(tissue):
    truth = (
        pd.DataFrame(tissue.layers["truth"], columns=tissue.var_names).groupby(tissue.obs["layer"].to_numpy()).mean()
    )
    genes = tissue.var[tissue.var["program"] == "layer"]
    assert (truth[genes.index].idxmax() == genes["layer"]).mean() > 0.95


def test_hidden_genes_leave_no_trace_in_what_is_seen(tissue):
    one = tissue[tissue.obs["slice"] == "S2"]
    seen = np.column_stack(
        [pd.get_dummies(one.obs["layer"]).to_numpy(float), one.obs[["depth", "n_nuclei"]].to_numpy()]
    )
    hidden = one.layers["truth"][:, one.var["program"] == "hidden"].astype(float)
    layer = one.layers["truth"][:, one.var["program"] == "layer"].astype(float)

    def explained(values):
        rest = values - seen @ np.linalg.lstsq(seen, values, rcond=None)[0]
        return 1 - rest.var(axis=0) / values.var(axis=0)

    # A little comes back by normalization, as a share of a total that layers change.
    assert np.median(explained(hidden)) < 0.2
    assert np.median(explained(layer)) > 0.7
    assert hidden.std(axis=0).mean() > 0.4


def _under_a_grid(anatomy, cells):
    centers = np.stack(np.meshgrid(np.arange(300, 1200, 90), np.arange(300, 1200, 90)), axis=-1).reshape(-1, 2)
    return look_under(centers.astype(float), anatomy, cells, 50.0)


def test_unseen_fields_are_orthogonal_to_what_is_seen():
    anatomy = random_anatomy(1500, 1500, (5, 0))
    spots = _under_a_grid(anatomy, place_cells(anatomy, np.random.default_rng(5))[0])
    fields = unseen_fields(3, spots, anatomy, np.random.default_rng(6))
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=1e-6)
    for seen in (spots.depth, spots.nuclei, spots.neurons, spots.layers[:, 3]):
        assert np.abs(_correlations(fields, np.repeat(seen[:, None], 3, axis=1))).max() < 1e-4


def test_cells_keep_out_of_vessels_and_of_each_other():
    anatomy = random_anatomy(1500, 1500, (5, 1))
    cells, vessels = place_cells(anatomy, np.random.default_rng(7))
    free = cells.kind != ENDOTHELIUM
    x, y = cells.x[free], cells.y[free]
    dx, dy = x[:, None] - vessels.x, y[:, None] - vessels.y
    u = (dx * np.cos(vessels.angle) + dy * np.sin(vessels.angle)) / vessels.major
    v = (dy * np.cos(vessels.angle) - dx * np.sin(vessels.angle)) / vessels.minor
    assert len(x) > 1000
    assert len(vessels.x) > 5
    assert np.hypot(u, v).min() > 1
    assert KDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), k=2)[0][:, 1].min() > 4


def test_cells_are_counted_within_the_spot():
    anatomy = random_anatomy(1500, 1500, (5, 2))
    cells, _ = place_cells(anatomy, np.random.default_rng(8))
    spots = _under_a_grid(anatomy, cells)
    distance = np.hypot(spots.x_um[:, None] - cells.x, spots.y_um[:, None] - cells.y)
    np.testing.assert_array_equal(spots.nuclei, (distance <= 50).sum(axis=1))
    np.testing.assert_array_equal(spots.neurons, ((distance <= 50) & (cells.kind == PYRAMID)).sum(axis=1))


def test_patients_and_stain():
    small = {"n_rows": 8, "n_cols": 8, "n_genes": 30, "um_per_px": 2.0}
    adata = synthetic_tissue(3, slices_per_patient=2, stain_variation=0.0, **small)
    pairs = adata.obs[["slice", "patient"]].astype(str).drop_duplicates().to_numpy().tolist()
    assert pairs == [["S1", "P1"], ["S2", "P1"], ["S3", "P2"]]
    glass = [library["images"]["hires"][:4].mean(axis=(0, 1)) for library in adata.uns["spatial"].values()]
    np.testing.assert_allclose(glass[0], glass[1], atol=1.5)


def test_scale_of_the_image():
    coarse, fine = (synthetic_tissue(1, um_per_px=s, n_rows=5, n_cols=5, n_genes=30) for s in (2.0, 1.0))
    a, b = (adata.uns["spatial"]["S1"]["images"]["hires"].shape for adata in (coarse, fine))
    np.testing.assert_allclose(np.array(a[:2]) * 2, b[:2], atol=2)
    np.testing.assert_allclose(coarse.obsm["spatial"] * 2, fine.obsm["spatial"])
    np.testing.assert_array_equal(coarse.X.toarray(), fine.X.toarray())


def test_scanpy_draws_it(tissue):
    import matplotlib.pyplot as plt
    import scanpy as sc

    one = tissue[tissue.obs["slice"] == "S1"].copy()
    sc.pl.spatial(one, color="L5_01", library_id="S1", show=False)
    figure = plt.gcf()
    figure.canvas.draw()
    assert np.asarray(figure.canvas.buffer_rgba())[..., :3].std() > 10


def _geometry(n_rows: int = 14, n_cols: int = 12) -> ad.AnnData:
    row, step = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    x, y = 100 * (step + 0.5 * (row % 2)) / 0.5 + 4000, 86.6 * row / 0.5 + 900
    names = np.array(["L3", "L4", "L5", "L6", "WM"])[np.minimum(row * 5 // n_rows, 4)].astype(object)
    names[5] = np.nan
    obs = pd.DataFrame({"slice": "X7", "layer": pd.Categorical(names)}, index=[f"b{i}" for i in range(len(x))])
    uns = {"spatial": {"X7": {"scalefactors": {"microns_per_pixel": 0.5}}}}
    return ad.AnnData(obs=obs, obsm={"spatial": np.column_stack([x, y])}, uns=uns)


def test_given_geometry_keeps_spots_and_layers():
    # Narrow: the longer side has 3,000 px.
    geometry = _geometry(14, 5)
    before = geometry.copy()
    adata = synthetic_tissue(geometry=geometry, n_genes=40)
    assert adata.n_obs == geometry.n_obs
    assert [name.removeprefix("S1_") for name in adata.obs_names] == list(geometry.obs_names)
    known = geometry.obs["layer"].notna().to_numpy()
    same = adata.obs["layer"].astype(str).to_numpy()[known] == geometry.obs["layer"].astype(str).to_numpy()[known]
    assert same.mean() > 0.9
    factors = adata.uns["spatial"]["S1"]["scalefactors"]
    moved = adata.obsm["spatial"] * factors["microns_per_pixel"] - geometry.obsm["spatial"] * 0.5
    np.testing.assert_allclose(moved - moved[0], 0, atol=1e-6)
    assert max(adata.uns["spatial"]["S1"]["images"]["hires"].shape) == pytest.approx(3000, abs=10)
    assert adata.uns["synthetic"]["geometry"] == "X7"
    pd.testing.assert_frame_equal(geometry.obs, before.obs)


def test_geometry_that_cannot_be_used():
    with pytest.raises(InputError, match="geometry"):
        synthetic_tissue(geometry=[])
    with pytest.raises(InputError, match="ndarray"):
        synthetic_tissue(geometry=[np.zeros((3, 2))])
    bad = _geometry()
    del bad.obs["layer"]
    with pytest.raises(MissingKeyError, match="'layer'"):
        synthetic_tissue(geometry=bad)
    bad = _geometry()
    bad.obsm["spatial"][3, 1] = np.nan
    with pytest.raises(CoordinateError, match="finite"):
        synthetic_tissue(geometry=bad)
    bad = _geometry()
    bad.uns["spatial"]["X7"]["scalefactors"] = {}
    with pytest.raises(ScaleError, match="microns_per_pixel"):
        synthetic_tissue(geometry=bad)
    bad = _geometry()
    bad.uns["spatial"]["X7"]["scalefactors"]["microns_per_pixel"] = "wide"
    with pytest.raises(ScaleError, match="'wide'"):
        synthetic_tissue(geometry=bad)
    bad = _geometry()
    bad.uns["spatial"] = [1]
    with pytest.raises(InputError, match="is a list"):
        synthetic_tissue(geometry=bad)
    bad = _geometry()
    bad.obsm["spatial"] = bad.obsm["spatial"].astype(str)
    with pytest.raises(CoordinateError, match="expected real numbers"):
        synthetic_tissue(geometry=bad)
    bad = _geometry()
    bad.obs["layer"] = "tumor"
    with pytest.raises(SliceError, match="tumor"):
        synthetic_tissue(geometry=bad)


@pytest.mark.parametrize(
    "argument",
    [
        {"n_slices": 0},
        {"n_rows": 3},
        {"n_cols": 2.5},
        {"n_genes": 5},
        {"seed": -1},
        {"slices_per_patient": 0},
        {"spot_pitch_um": 0.0},
        {"um_per_px": -1.0},
        {"counts_per_spot": float("nan")},
        {"stain_variation": -1.0},
    ],
)
def test_bad_argument(argument):
    with pytest.raises(InputError, match=next(iter(argument))):
        synthetic_tissue(**argument)


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=20))
def test_layers_share_every_depth(depths):
    parts = memberships(np.array(depths, dtype=np.float32))
    assert (parts > -1e-6).all()
    np.testing.assert_allclose(parts.sum(axis=0), 1, atol=1e-5)


@given(st.integers(20, 500), st.integers(0, 10))
def test_every_programme_has_genes(n_genes, seed):
    genes = draw_genes(n_genes, np.random.default_rng(seed))
    assert len(genes.names) == len(set(genes.names)) == n_genes
    assert len(set(genes.program)) == 7
    assert (genes.hidden[:, genes.program != "hidden"] == 0).all()


@pytest.mark.tissue
def test_true_geometry_at_full_size(dlpfc_path):
    """In coarse pixels; the size in px that is the default has a test of its own."""
    geometry = dlpfc_geometry("151676", dlpfc_path)
    adata = synthetic_tissue(geometry=geometry, n_genes=40, um_per_px=6.0)
    assert adata.n_obs > 3400
    (library,) = geometry.uns["spatial"].values()
    extent_um = np.ptp(geometry.obsm["spatial"], axis=0) * library["scalefactors"]["microns_per_pixel"]
    image = adata.uns["spatial"]["S1"]["images"]["hires"]
    assert (np.array(image.shape[1::-1]) * 6.0 > extent_um).all()
    assert (np.array(image.shape[1::-1]) * 6.0 < extent_um + 1500).all()
