"""Set up, train, predict, embed: what every user does, in the order in which they do it."""

from __future__ import annotations

import functools

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import st_gchb
from st_gchb._errors import InputError, MissingKeyError, NotTrainedError
from st_gchb.model import STGCHB, _validation as _setup

PROVENANCE = {"version", "model_id", "encoder", "weights", "preset", "k", "reference_slices", "seed"}


@pytest.fixture
def made(monkeypatch):
    """How often features and graph are made; the encoder of a bare set-up needs no download."""
    calls = []

    def counting(function, name, **fixed):
        @functools.wraps(function)
        def call(*arguments, **options):
            calls.append(name)
            return function(*arguments, **(options | fixed))

        return call

    monkeypatch.setattr(
        _setup, "embed_patches", counting(_setup.embed_patches, "features", encoder="texture", n_views=1)
    )
    monkeypatch.setattr(_setup, "spatial_graph", counting(_setup.spatial_graph, "graph"))
    return calls


def test_setup_with_nothing_else_makes_features_and_graph_once(held_out, made):
    del held_out.obsm["X_patch"], held_out.uns["X_patch"]
    counts = held_out.X.copy()
    STGCHB.setup_anndata(held_out)
    assert made == ["features", "graph"]
    assert held_out.obsm["X_patch"].shape[0] == held_out.n_obs
    assert held_out.obsm["X_patch"].dtype == np.float32
    assert set(held_out.uns["X_patch"]["encoder"]) == {"texture"}
    graph = held_out.obsp["spatial_connectivities"]
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0
    assert graph.sum(1).max() == 6
    assert (held_out.X != counts).nnz == 0
    features = held_out.obsm["X_patch"]
    STGCHB.setup_anndata(held_out)
    assert made == ["features", "graph"]
    assert held_out.obsm["X_patch"] is features


def test_features_and_graph_that_are_there_are_kept(reference, made):
    reference.obsm["X_patch"][:] = np.random.default_rng(0).normal(size=reference.obsm["X_patch"].shape)
    mine = reference.obsm["X_patch"].copy()
    st_gchb.pp.spatial_graph(reference, slice_key="slice", rule=st_gchb.pp.GraphSpec("knn", n_neighbors=3))
    graph = reference.obsp["spatial_connectivities"].copy()
    STGCHB.setup_anndata(reference)
    assert made == []
    np.testing.assert_array_equal(reference.obsm["X_patch"], mine)
    assert (reference.obsp["spatial_connectivities"] != graph).nnz == 0
    assert STGCHB(reference)._fit().rules.graph.mode == "knn"


def test_no_edge_joins_two_slices(reference):
    # All slices on one place: only the column tells them apart.
    STGCHB.setup_anndata(reference, slice_key="slice")
    i, j = reference.obsp["spatial_connectivities"].nonzero()
    slices = reference.obs["slice"].to_numpy()
    assert (slices[i] == slices[j]).all()


def test_a_view_is_copied_first(tissue, unchanged):
    """As in scvi-tools: what is registered would else be written to a copy that nobody holds."""
    view = tissue[tissue.obs["slice"] == "S1"]
    with unchanged(tissue):
        with pytest.raises(InputError, match=r"adata = adata\.copy\(\)"):
            STGCHB.setup_anndata(view)
        part = view.copy()
        STGCHB.setup_anndata(part)
        model = STGCHB(part, n_top_genes=10)
    assert model.adata.n_obs == part.n_obs
    assert "spatial_connectivities" in part.obsp


def test_history_has_losses_by_epoch(model):
    assert {"train_loss", "validation_loss", "alignment_train", "alignment_validation"} <= set(model.history)
    assert {"bottleneck_image_train", "bottleneck_expression_train"} <= set(model.history)
    for key, frame in model.history.items():
        assert list(frame.columns) == [key]
        assert frame.index.name == "epoch"
        assert len(frame) == 2
        assert np.isfinite(frame.to_numpy(dtype=float)).all()
    terms = [key for key in model.history if key.endswith("_train")]
    total = sum(float(model.history[key].iloc[0, 0]) for key in terms)
    assert float(model.history["train_loss"].iloc[0, 0]) == pytest.approx(total, rel=1e-4)


def test_training_again_goes_on(reference):
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10)
    options = {"enable_progress_bar": False, "calibrate": False, "accelerator": "cpu"}
    model.train(max_epochs=1, **options)
    first = model.model_id_
    seen = []
    hook = model.module.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    model.train(max_epochs=2, **options)
    hook.remove()
    assert len(model.history["train_loss"]) == 3
    assert model.history["train_loss"].index.tolist() == [0, 1, 2]
    assert model.model_id_ != first
    # Dropout is for training steps, also the second time.
    assert True in seen


def test_prediction_is_what_the_interface_promises(model, query):
    prediction = model.predict(query)
    genes = model.rules_.expression.genes
    assert isinstance(prediction, AnnData)
    assert prediction.obs_names.tolist() == query.obs_names.tolist()
    assert prediction.var_names.tolist() == list(genes)
    assert len(genes) == 25
    values = prediction.layers["st_gchb"]
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float32
    assert values.shape == prediction.shape == (query.n_obs, 25)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    # Log-normalized: at most log1p(10^4), and spots differ.
    assert values.max() < np.log1p(1e4)
    assert (values.std(0) > 0).all()
    np.testing.assert_array_equal(prediction.X, values)
    assert prediction.X is not values

    embedding = prediction.obsm["X_st_gchb"]
    assert embedding.dtype == np.float32
    assert embedding.shape == (query.n_obs, model.settings.n_embedding)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(prediction.obsm["spatial"], query.obsm["spatial"])
    assert list(prediction.uns["spatial"]) == ["S3"]
    assert prediction.obs["slice"].tolist() == query.obs["slice"].tolist()

    confidence = prediction.obs["st_gchb_confidence"]
    assert confidence.dtype == np.float64
    assert confidence.between(0, 1).all()
    assert prediction.obs["st_gchb_outlier"].dtype == bool
    expected = prediction.var["st_gchb_expected_pcc"]
    assert expected.dtype == np.float64
    assert expected.between(-1, 1).all()


def test_provenance_says_what_was_run(model, query):
    said = model.predict(query, k=7, weighting="mean").uns["st_gchb"]
    assert PROVENANCE <= set(said)
    assert said["version"] == st_gchb.__version__
    assert said["model_id"] == model.model_id_
    assert said["encoder"] == "texture"
    assert said["weights"] == "default"
    assert said["preset"] == "default"
    assert (said["k"], said["weighting"], said["seed"]) == (7, "mean", 0)
    assert list(said["reference_slices"]) == ["S1", "S2"]
    assert model.predict(query).uns["st_gchb"]["k"] == 30


def test_prediction_learns_from_the_reference(reference, held_out):
    """A reference whose genes follow the patches is predicted better than its own shuffles, by far."""

    def correlation(adata):
        STGCHB.setup_anndata(adata)
        model = STGCHB(adata, n_top_genes=20)
        model.train(max_epochs=5, enable_progress_bar=False, calibrate=False, accelerator="cpu")
        prediction = model.predict(held_out)
        return st_gchb.metrics.pearson(np.asarray(prediction.X), prediction.layers["st_gchb"]).mean()

    def shuffled(seed):
        adata = reference.copy()
        adata.X = adata.X[np.random.default_rng(seed).permutation(adata.n_obs)]
        return adata

    learned = correlation(reference)
    # The genes of 45 spots hang together, so that one shuffle alone is right or wrong for all of them by chance.
    by_chance = [correlation(shuffled(seed)) for seed in range(8)]
    assert learned > 0.15
    assert learned > max(by_chance)
    assert abs(np.mean(by_chance)) < learned / 2


def test_measured_expression_is_carried_where_the_query_has_it(model, held_out):
    prediction = model.predict(held_out)
    counts = held_out.X.toarray().astype(np.float64)
    log_values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    expected = log_values[:, held_out.var_names.get_indexer(prediction.var_names)]
    np.testing.assert_allclose(prediction.X, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(prediction.layers["measured"], prediction.X)
    without = model.predict(AnnData(obs=held_out.obs, obsm=dict(held_out.obsm), uns=dict(held_out.uns)))
    np.testing.assert_array_equal(prediction.layers["st_gchb"], without.layers["st_gchb"])
    np.testing.assert_array_equal(without.X, without.layers["st_gchb"])
    assert "measured" not in without.layers


def test_what_was_measured_does_not_change_the_prediction(model, held_out):
    first = model.predict(held_out).layers["st_gchb"]
    held_out.X = sp.csr_matrix(np.random.default_rng(0).poisson(3, held_out.shape).astype(np.float32))
    np.testing.assert_array_equal(model.predict(held_out).layers["st_gchb"], first)


def test_prediction_comes_back_from_a_file(model, held_out, tmp_path):
    prediction = model.predict(held_out, return_neighbors=True)
    prediction.write_h5ad(tmp_path / "p.h5ad")
    again = anndata.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_array_equal(again.layers["st_gchb"], prediction.layers["st_gchb"])
    np.testing.assert_array_equal(again.X, prediction.X)
    assert again.obs["st_gchb_outlier"].tolist() == prediction.obs["st_gchb_outlier"].tolist()
    assert again.var["st_gchb_expected_pcc"].tolist() == prediction.var["st_gchb_expected_pcc"].tolist()
    assert set(again.uns["st_gchb"]) == set(prediction.uns["st_gchb"])
    assert again.uns["st_gchb"]["model_id"] == model.model_id_
    image = prediction.uns["spatial"]["S3"]["images"]["hires"]
    np.testing.assert_array_equal(again.uns["spatial"]["S3"]["images"]["hires"], image)


def test_neighbors_reproduce_the_retrieved_average(reference, query):
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=15, kernel_weight=0.0, sharpening=0.0, k=9)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    counts = reference.X.toarray().astype(np.float64)
    log_values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    panel = log_values[:, reference.var_names.get_indexer(model.rules_.expression.genes)]
    for weighting in ("mean", "softmax"):
        prediction = model.predict(query, weighting=weighting, return_neighbors=True)
        ids, weights = prediction.obsm["st_gchb_neighbors"], prediction.obsm["st_gchb_neighbor_weights"]
        assert ids.shape == weights.shape == (query.n_obs, 9)
        assert np.issubdtype(ids.dtype, np.integer)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(
            prediction.layers["st_gchb"], np.einsum("qk,qkg->qg", weights, panel[ids]), rtol=1e-4, atol=1e-5
        )
        # The nearest keys are found, most similar first.
        similarity = prediction.obsm["X_st_gchb"] @ model.get_latent_representation().T
        np.testing.assert_allclose(
            np.take_along_axis(similarity, ids, 1), -np.sort(-similarity, axis=1)[:, :9], rtol=1e-5, atol=1e-6
        )
        origin = prediction.uns["st_gchb"]["reference"]
        assert origin["name"].tolist() == reference.obs_names.tolist()
        assert origin["slice"].tolist() == reference.obs["slice"].tolist()
    assert (weights[:, 0] > weights[:, -1]).all()
    assert "st_gchb_neighbors" not in model.predict(query).obsm


def test_tables_of_the_reference_can_be_predicted(model, query, tissue):
    everything = model.predict(query, layer="all_genes")
    assert everything.var_names.tolist() == tissue.var_names.tolist()
    panel = model.predict(query)
    np.testing.assert_allclose(
        everything[:, panel.var_names].layers["st_gchb"], panel.layers["st_gchb"], rtol=1e-4, atol=1e-5
    )
    expected = everything.var["st_gchb_expected_pcc"]
    assert expected[panel.var_names].notna().all()
    assert expected.drop(panel.var_names).isna().all()
    assert everything.uns["st_gchb"]["layer"] == "all_genes"

    truth = model.predict(query, layer="truth")
    assert truth.var_names.tolist() == tissue.var_names.tolist()
    assert not np.array_equal(truth.layers["st_gchb"], everything.layers["st_gchb"])
    types = model.predict(query, layer="cell_types")
    assert types.var_names.tolist() == ["tumor", "immune"]
    assert types.layers["st_gchb"].shape == (query.n_obs, 2)
    assert 0 < types.layers["st_gchb"].min() < types.layers["st_gchb"].max() < 1
    signed = model.predict(query, layer="signed")
    assert signed.var_names.tolist() == ["signed_0", "signed_1", "signed_2"]
    assert signed.layers["st_gchb"].min() < 0
    # Confidence speaks of the retrieval, whichever table is read.
    np.testing.assert_array_equal(types.obs["st_gchb_confidence"], panel.obs["st_gchb_confidence"])
    with pytest.raises(MissingKeyError, match=r"'nothing'.*cell_types"):
        model.predict(query, layer="nothing")


def test_k_and_weighting(model, query):
    few, many = model.predict(query, k=1), model.predict(query, k=90)
    assert few.layers["st_gchb"].std(0).mean() > many.layers["st_gchb"].std(0).mean()
    mean = model.predict(query, weighting="mean")
    assert not np.array_equal(mean.layers["st_gchb"], model.predict(query, weighting="softmax").layers["st_gchb"])
    for k, expected in ((0, "1 or more"), (-1, "1 or more"), (10_000, "between 1 and")):
        with pytest.raises(InputError, match=f"k={k}.*{expected}"):
            model.predict(query, k=k)
    with pytest.raises(InputError, match=r"'median'.*softmax"):
        model.predict(query, weighting="median")


def test_latent_representation(model, held_out, query, unchanged):
    reference = model.adata
    expression, image = (model.get_latent_representation(modality=name) for name in ("expression", "image"))
    assert expression.shape == image.shape == (reference.n_obs, model.settings.n_embedding)
    assert not np.array_equal(expression, image)
    for modality, whole in (("expression", expression), ("image", image)):
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
        with unchanged(held_out):
            assert model.get_latent_representation(held_out, modality).shape == (held_out.n_obs, whole.shape[1])
        np.testing.assert_allclose(model.get_latent_representation(reference, modality), whole, atol=1e-5)
    np.testing.assert_allclose(
        model.get_latent_representation(query, "image"), model.predict(query).obsm["X_st_gchb"], atol=1e-6
    )
    # What is handed out is a copy.
    expression[:] = 0
    assert model.get_latent_representation().any()
    with pytest.raises(MissingKeyError, match="modality='image'"):
        model.get_latent_representation(query)
    with pytest.raises(InputError, match=r"'protein'.*'image'"):
        model.get_latent_representation(query, "protein")


def test_log_normalized_values_instead_of_counts(reference, held_out):
    for adata in (reference, held_out):
        counts = adata.X.toarray().astype(np.float64)
        adata.layers["log"] = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    options = {"max_epochs": 1, "enable_progress_bar": False, "calibrate": False, "accelerator": "cpu"}
    predictions = []
    for setup in ({}, {"layer": "log", "log_normalized": True}):
        adata = reference.copy()
        STGCHB.setup_anndata(adata, **setup)
        model = STGCHB(adata, n_top_genes=20)
        model.train(**options)
        predictions.append(model.predict(AnnData(obs=held_out.obs, obsm=dict(held_out.obsm), uns=dict(held_out.uns))))
    assert predictions[0].var_names.tolist() == predictions[1].var_names.tolist()
    np.testing.assert_allclose(predictions[0].layers["st_gchb"], predictions[1].layers["st_gchb"], atol=1e-2)


def test_a_panel_of_ones_own(reference, held_out):
    STGCHB.setup_anndata(reference)
    genes = ["Gene_not_there", *reference.var_names[[5, 2, 9]]]
    with pytest.raises(MissingKeyError, match="Gene_not_there"):
        STGCHB(reference, panel=genes)
    model = STGCHB(reference, panel=genes[1:])
    model.train(max_epochs=1, enable_progress_bar=False, calibrate=False, accelerator="cpu")
    assert model.predict(held_out).var_names.tolist() == genes[1:]


def test_before_training(reference, query, tmp_path, unchanged):
    with pytest.raises(ValueError, match="setup_anndata"):
        STGCHB(reference)
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10)
    for call in (
        lambda: model.predict(query),
        lambda: model.get_latent_representation(),
        lambda: model.save(tmp_path / "m"),
    ):
        with unchanged(query, reference), pytest.raises(NotTrainedError, match=r"model\.train\(\)"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_without_calibration_there_is_no_confidence(reference, query):
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10)
    model.train(max_epochs=1, enable_progress_bar=False, calibrate=False, accelerator="cpu")
    prediction = model.predict(query)
    assert "st_gchb_confidence" not in prediction.obs
    assert "st_gchb_expected_pcc" not in prediction.var
