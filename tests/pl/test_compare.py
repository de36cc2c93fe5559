"""Several methods side by side: one color scale per gene, correlations in titles, what is missing is named."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData

import st_gchb
from st_gchb import pl
from st_gchb._errors import InputError, MissingKeyError
from st_gchb.evaluate import METHODS, evaluate


@pytest.fixture
def found() -> AnnData:
    """Twenty spots with a measured gene, a method that is right, one that is the opposite, and one that is constant."""
    rng = np.random.default_rng(0)
    values = rng.random((20, 2)).astype("float32")
    made = AnnData(values, obsm={"spatial": rng.uniform(20, 180, (20, 2))})
    made.var_names = ["ERBB2", "CD74"]
    made.layers["measured"] = values
    made.layers["right"], made.layers["kernel-opposite"] = 0.5 * values, 1.0 - values
    scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 5.0, "microns_per_pixel": 10.0}
    made.uns["spatial"] = {"C2": {"images": {"hires": np.full((200, 200, 3), 230, "uint8")}, "scalefactors": scale}}
    return made


def test_a_row_for_each_gene_with_one_color_scale(found):
    axs = pl.compare_methods(found, ["ERBB2", "CD74"])
    assert axs.shape == (2, 3)
    assert [ax.get_title() for ax in axs[0]] == ["Measured", "right\nr = 1.00", "kernel-opposite\nr = −1.00"]
    assert [row[0].get_ylabel() for row in axs] == ["ERBB2", "CD74"]
    for row, gene in zip(axs, found.var_names, strict=True):
        shown = [found[:, gene].layers[name] for name in ("measured", "right", "kernel-opposite")]
        limits = {tuple(ax.collections[-1].get_clim()) for ax in row}
        assert limits == {tuple(np.percentile(np.concatenate(shown).astype(float), [1, 99]))}
    plt.close("all")


def test_methods_are_chosen_and_ordered(found):
    axs = pl.compare_methods(found, "CD74", methods=["kernel-opposite", "right"])
    assert [ax.get_title().split("\n")[0] for ax in axs[0]] == ["Measured", "kernel-opposite", "right"]
    plt.close("all")


def test_results_of_several_models_are_one_table(found):
    results = {}
    for name in ("right", "kernel-opposite"):
        results[name] = AnnData(found.X, obs=found.obs, var=found.var, obsm=dict(found.obsm), uns=dict(found.uns))
        results[name].layers["st_gchb"], results[name].layers["measured"] = found.layers[name], found.layers["measured"]
    results["right"] = results["right"][:, ["CD74"]].copy()
    titles = [[ax.get_title() for ax in pl.compare_methods(one, "CD74")[0]] for one in (results, found)]
    assert titles[0] == titles[1]
    with pytest.raises(MissingKeyError, match="'ERBB2' is not among"):
        pl.compare_methods(results, "ERBB2")
    plt.close("all")


def test_an_evaluation_gives_the_table():
    adata = st_gchb.datasets.synthetic_tissue(2, n_rows=7, n_cols=7, n_genes=30, seed=1)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    methods = {name: METHODS[name] for name in ("ridge", "ridge-neighbors")}
    result = evaluate(adata, methods=methods, n_top_genes=10, seeds=[0, 1], device="cpu", keep_predictions=True)
    table = result.compared(adata, "S2", seed=1)
    assert list(table.obs_names) == list(adata.obs_names[adata.obs["slice"] == "S2"])
    assert set(table.layers) - {None} == {"measured", *methods}
    for name in methods:
        np.testing.assert_allclose(table.layers[name], result.predictions[("S2", name, 1)], rtol=1e-6)
    scores = result.scores.set_index(["fold", "seed", "method"])
    found = st_gchb.metrics.per_gene(table.layers["measured"], table.layers["ridge"], list(table.var_names))
    assert found["pearson"].mean() == pytest.approx(scores.loc[("S2", 1, "ridge"), "AG"], abs=1e-6)
    axs = pl.compare_methods(table, table.var_names[0])
    assert [ax.get_title().split("\n")[0] for ax in axs[0]] == ["Measured", *methods]
    plt.close("all")
    with pytest.raises(MissingKeyError, match=r"fold 'S9', seed 0: no predictions; found folds \['S1', 'S2'\]"):
        result.compared(adata, "S9")
    bare = evaluate(adata, methods={"mean": METHODS["mean"]}, n_top_genes=10, seeds=[0], device="cpu")
    with pytest.raises(MissingKeyError, match="keep_predictions=True"):
        bare.compared(adata, "S2")


BAD = {
    "no gene": (lambda found: {"genes": []}, InputError, "no gene was named"),
    "an unknown gene": (lambda found: {"genes": "ERBB3"}, MissingKeyError, "'ERBB3' is not among.*'ERBB2'"),
    "an unknown method": (lambda found: {"methods": ["left"]}, MissingKeyError, r"\['left'\].*found \['right'"),
    "no method": (lambda found: {"methods": []}, InputError, "no method to plot"),
    "axes of another shape": (
        lambda found: {"axs": np.empty((1, 2))},
        InputError,
        r"shape \(1, 2\); expected \(1, 3\)",
    ),
    "no measurement": (lambda found: {"measured_layer": "truth"}, MissingKeyError, "no 'truth'"),
    "no results": (lambda found: {"results": {}}, InputError, "no result was given"),
    "other spots": (lambda found: {"results": {"a": found, "b": found[:5].copy()}}, InputError, "of different spots"),
    "no prediction": (lambda found: {"results": {"a": found}}, MissingKeyError, r"'a' has no layers\['st_gchb'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(found, case):
    change, error, message = BAD[case]
    with pytest.raises(error, match=message):
        pl.compare_methods(**({"results": found, "genes": "ERBB2"} | change(found)))
    plt.close("all")
