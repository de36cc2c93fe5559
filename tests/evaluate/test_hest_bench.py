"""HEST-Bench on made folders: its protocol against the formulas, and every file missing or contradictory."""

from __future__ import annotations

import json
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from torch import nn

import st_gchb
from hest_folders import table_of, write_bench_task
from st_gchb._errors import InputError, MissingFileError, MissingKeyError, ScaleError, SliceError
from st_gchb.evaluate import (
    METHODS,
    Fold,
    HestBench,
    Task,
    evaluate,
    hest_bench,
    hest_ridge,
    write_hest_bench,
    write_report,
)
from st_gchb.io import open_hest_patches

FOLDS = [(["S1", "S2"], ["S3"]), (["S3"], ["S2", "S1"])]
QUICK = {"encoder": "texture", "device": "cpu", "cache": False}


@pytest.fixture(scope="module")
def tissue():
    return st_gchb.datasets.synthetic_tissue(3, n_rows=6, n_cols=6, n_genes=30, seed=2)


@pytest.fixture(scope="module")
def genes(tissue):
    return list(tissue.var_names[3:9])


@pytest.fixture(scope="module")
def made(tissue, genes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench_data")
    write_bench_task(folder / "IDC", tissue, FOLDS, genes)
    return folder


@pytest.fixture
def bench(made, tmp_path):
    """A copy of the benchmark that a test may damage."""
    return shutil.copytree(made, tmp_path / "bench")


@pytest.fixture(scope="module")
def result(made) -> HestBench:
    return hest_bench(made, methods=["mean", "ridge-neighbors"], **QUICK)


def formula(x, y, query, n_components=256):
    """Standardize, principal components, and ridge without intercept on targets that are not centered."""
    mean, std = x.mean(0), x.std(0)
    z, q = (x - mean) / std, (query - mean) / std
    axes = np.linalg.svd(z - z.mean(0), full_matrices=False)[2][:n_components].T
    a, b = (z - z.mean(0)) @ axes, (q - z.mean(0)) @ axes
    alpha = 100 / (a.shape[1] * y.shape[1])
    return b @ np.linalg.solve(a.T @ a + alpha * np.eye(a.shape[1]), a.T @ y)


def correlations(truth, predicted):
    return [np.corrcoef(truth[:, gene], predicted[:, gene])[0, 1] for gene in range(truth.shape[1])]


def test_the_regression_is_that_of_the_formulas():
    rng = np.random.default_rng(0)
    x, query = (rng.normal(size=(n, 300)).astype(np.float32) * rng.uniform(0.1, 9, 300) + 5 for n in (400, 80))
    counts = rng.poisson(np.exp(0.3 * x[:, :7] / x[:, :7].std(0))).astype(np.float32)
    train = AnnData(counts, obsm={"X_patch": x})
    train.var_names = [f"G{i}" for i in range(7)]
    test = AnnData(obs=pd.DataFrame(index=[f"q{i}" for i in range(80)]), obsm={"X_patch": query})
    task = Task(train, test, ["G4", "G1", "G2"], "X_patch", "slice", seed=7, normalize_total=False)
    targets = np.log1p(counts[:, [4, 1, 2]].astype(np.float64))
    np.testing.assert_allclose(task.targets(), targets, rtol=1e-6)
    predicted, expected = hest_ridge(task, part=""), formula(x.astype(np.float64), targets, query)
    # The solver of the benchmark stops at a relative error of 1e-4 of the residual.
    np.testing.assert_allclose(predicted, expected, atol=0.02 * expected.std())
    # An intercept, all components, or normalized counts would show.
    assert abs(predicted.mean() - targets.mean()) > 0.5 * targets.mean()
    assert np.abs(formula(x.astype(np.float64), targets, query, 299) - expected).max() > 0.05 * expected.std()


class Filters(nn.Module):
    """An encoder of 12 features: strength of random filters."""

    input_px = 224

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Parameter(torch.randn(12, 3, 5, 5, generator=generator))

    def transform(self, patches):
        return patches.float() / 255

    def forward(self, rgb):
        return nn.functional.conv2d(rgb, self.filters, stride=4).abs().mean((2, 3))


def test_scores_are_those_of_the_formulas(made, tissue, genes):
    """Read, encoded and scored again by hand, with nothing of the package."""
    encoder = Filters()
    result = hest_bench(made, methods=[], **QUICK | {"encoder": encoder})
    features, targets = {}, {}
    for name in ("S1", "S2", "S3"):
        with h5py.File(made / f"IDC/patches/{name}.h5") as file:
            pixels = torch.from_numpy(file["img"][:]).permute(0, 3, 1, 2)
            barcodes = file["barcode"][:].ravel().astype(str)
        features[name] = encoder(encoder.transform(pixels)).detach().numpy().astype(np.float64)
        targets[name] = np.log1p(table_of(tissue, name)[barcodes, genes].X.toarray().astype(np.float64))
    by_fold = []
    for number, (train, test) in enumerate(FOLDS):
        x, query = (np.concatenate([features[name] for name in names]) for names in (train, test))
        y, truth = (np.concatenate([targets[name] for name in names]) for names in (train, test))
        expected = correlations(truth, formula(x, y, query, min(256, len(x), 12)))
        rows = result.genes[result.genes["fold"] == f"fold {number}"]
        assert rows["gene"].tolist() == genes
        # Exact for the formula; the solver of the benchmark stops earlier.
        np.testing.assert_allclose(rows["pearson"], expected, atol=5e-3)
        by_fold.append(np.mean(rows["pearson"]))
    row = result.by_task().loc["hest-ridge (module:Filters)", "IDC"]
    assert row["pearson_mean"] == pytest.approx(np.mean(by_fold))
    assert row["pearson_std"] == pytest.approx(np.std(by_fold))
    assert row["n_folds"] == 2


def test_the_table(result, tissue):
    assert result.table().index.tolist() == ["hest-ridge (texture)", "mean", "ridge-neighbors"]
    assert result.table().columns.tolist() == ["IDC", "mean"]
    assert (result.table().loc["mean"] == 0).all()
    assert result.table()["IDC"].drop("mean").min() > 0.05
    n = {name: int((tissue.obs["slice"] == name).sum()) - 2 for name in ("S1", "S2", "S3")}
    sizes = result.scores.drop_duplicates("fold").set_index("fold")[["n_train", "n_test"]]
    assert sizes.loc["fold 0"].tolist() == [n["S1"] + n["S2"], n["S3"]]
    assert sizes.loc["fold 1"].tolist() == [n["S3"], n["S1"] + n["S2"]]
    lines = result.markdown().splitlines()
    assert lines[0] == "| method | IDC | mean |"
    assert "| *published: UNI* | 0.5702 | 0.5702 |" in lines


def test_tasks_without_published_results(result):
    other = HestBench(result.scores.assign(task="MINE"), result.genes, result.settings | {"tasks": ["MINE"]}, {})
    assert "published" not in other.markdown()
    both = pd.concat([result.scores, other.scores])
    assert (
        "| *published: UNI* | 0.5702 | – | – |"
        in HestBench(both, result.genes, result.settings | {"tasks": ["IDC", "MINE"]}, {}).markdown()
    )


def test_published_means_are_those_that_hest_states(result):
    nine = ["IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "LUNG", "LYMPH_IDC"]
    mean = HestBench(result.scores, result.genes, result.settings | {"tasks": nine}, {}).published()["mean"]
    stated = {"ResNet50": 0.3260, "UNI": 0.3862, "H-optimus-0": 0.4146, "Virchow2": 0.3984, "CONCH": 0.3709}
    assert {name: round(mean[name], 4) for name in stated} == pytest.approx(stated, abs=1e-4)


def test_files(result, tmp_path):
    paths = write_hest_bench(result, tmp_path / "out")
    content = json.loads(paths["metrics"].read_text())
    assert content["settings"]["tasks"] == ["IDC"]
    assert content["published"]["UNI"]["IDC"] == 0.5702
    assert {row["method"] for row in content["by_task"]} == set(result.settings["methods"])
    pd.testing.assert_frame_equal(pd.read_csv(paths["scores"]), result.scores)
    assert len(pd.read_csv(paths["per_gene"])) == len(result.genes)
    assert paths["table"].read_text() == result.markdown() + "\n"


def test_goes_on_where_it_stopped(made, tmp_path):
    first = hest_bench(made, methods=["mean"], runs_dir=tmp_path / "runs", **QUICK)
    again = hest_bench(made, methods=["mean"], runs_dir=tmp_path / "runs", **QUICK)
    assert (first.runs, again.runs) == ({"made": 4, "taken": 0}, {"made": 0, "taken": 4})
    pd.testing.assert_frame_equal(first.scores, again.scores, check_exact=True)
    assert (tmp_path / "runs/IDC").is_dir()
    assert hest_bench(made, methods=["mean"], runs_dir=tmp_path / "runs", overwrite=True, **QUICK).runs["made"] == 4


def test_the_model_learns_what_the_benchmark_asks_for(tissue, genes, tmp_path, short_trainings):
    """Log1p of counts as they are: where depth differs between spots, other numbers than those per 10,000."""
    seen = {}

    def spy(task):
        seen[task.test.n_obs] = task
        return METHODS["ridge"](task)

    data = tissue.copy()
    st_gchb.pp.embed_patches(data, encoder="texture", patch_um=112, n_views=1, cache=False)
    rows = np.arange(data.n_obs)
    first = (data.obs["slice"] == "S1").to_numpy()
    folds = [Fold("mine", rows[~first], rows[first])]
    methods = {"spy": spy, "default": METHODS["default"]}
    options = {"folds": folds, "panel": genes, "normalize_total": False, "seeds": [0], "device": "cpu"}
    given = evaluate(data, methods=methods, keep_predictions=True, **options)
    (task,) = seen.values()
    assert task.panel == genes
    logs = np.log1p(data[:, genes].X.toarray())
    np.testing.assert_allclose(task.targets(), logs[~first], rtol=1e-6)
    predicted = given.predictions["mine", "default", 0]
    assert predicted.max() <= logs[~first].max() + 1e-3
    per_10000 = evaluate(data, methods=["default"], keep_predictions=True, **options | {"normalize_total": True})
    assert per_10000.predictions["mine", "default", 0].mean() > predicted.mean() + 0.5
    assert given.settings["split"] == "given"
    compared = given.compared(data, "mine")
    np.testing.assert_allclose(compared.layers["measured"], logs[first], rtol=1e-6)
    assert "HVG_share" not in given.scores
    assert "HVG_share" in per_10000.scores
    table = write_report(given, tmp_path)["table"].read_text()
    assert "| default | " in table
    assert "share" not in table


# Folds and genes that the caller gives to evaluate.


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([], "holds no fold"),
        ([("a", [0, 1], [2]), ("a", [2], [0, 1])], "expected another one for each"),
        ([("a", [0, 1], [1, 2])], "1 spots, first .* are both trained on and held out"),
        ([("a", [], [1, 2])], "train is an array of shape"),
        ([("a", [0, 0], [1])], "different row numbers"),
        ([("a", [0, -1], [1])], "different row numbers"),
        ([("a", [0, 1], [10**6])], "test is an array"),
        ([("a", [0.5, 1], [2])], "float64"),
    ],
)
def test_wrong_folds(tissue, folds, message):
    made = [Fold(name, np.array(train), np.array(test)) for name, train, test in folds]
    with pytest.raises(SliceError, match=message):
        evaluate(tissue, folds=made)


def test_wrong_panels(tissue):
    data = tissue.copy()
    data.obsm["X_patch"] = np.random.default_rng(0).normal(size=(data.n_obs, 5)).astype(np.float32)
    folds = [Fold("a", np.arange(60), np.arange(60, 80))]
    with pytest.raises(MissingKeyError, match="not in var_names: \\['NOPE'\\]"):
        evaluate(data, folds=folds, panel=["NOPE"], methods=["mean"])
    with pytest.raises(InputError, match="names no gene"):
        evaluate(data, folds=folds, panel=[], methods=["mean"])
    with pytest.raises(SliceError, match="obs has no column 'section'"):
        evaluate(data, folds=folds, methods=["mean"], slice_key="section")


# Patches.


def test_patches_are_read_as_they_are(made, genes):
    patches = open_hest_patches(made / "IDC/patches/S1.h5")
    with h5py.File(patches.path) as file:
        pixels = file["img"][:]
    image = patches.strip(112)
    places = AnnData(obsm={"spatial": patches.strip_centers()})
    (only,) = st_gchb.pp.slices_of(places, image=image)
    read = np.zeros_like(pixels)
    for rows, found in st_gchb.pp.read_patches(only, 224, 224):
        read[rows] = found
    np.testing.assert_array_equal(read, pixels)
    assert image.um_per_px == 0.5


def test_patches_smaller_than_the_benchmark_s(made, result):
    with pytest.raises(ScaleError, match="expected no more than the 112"):
        hest_bench(made, patch_um=150, **QUICK)
    both = hest_bench(made, patch_um=(60, 112), methods=[], **QUICK)
    own = result.scores[result.scores["method"] == "hest-ridge (texture)"]
    # HEST-Bench's own regression is made on its own patches alone.
    pd.testing.assert_frame_equal(both.scores, own.reset_index(drop=True))


def test_files_that_do_not_say_the_size_of_a_pixel(bench, made, short_trainings):
    for path in (bench / "IDC/patches").iterdir():
        with h5py.File(path, "a") as file:
            file["img"].attrs.clear()
            del file["coords"]
    options = QUICK | {"methods": ["ridge-neighbors", "default"]}
    pd.testing.assert_frame_equal(hest_bench(bench, **options).scores, hest_bench(made, **options).scores)


def test_patches_of_another_width(bench):
    with h5py.File(bench / "IDC/patches/S2.h5", "a") as file:
        file["img"].attrs["pixel_size"] = 2 * file["img"].attrs["pixel_size"]
    with pytest.raises(ScaleError, match=r"S2\.h5: a patch is 22\d.* µm wide.*expected 112 µm"):
        hest_bench(bench, **QUICK)


def test_patches_of_no_spot(bench):
    with h5py.File(bench / "IDC/patches/S2.h5", "a") as file:
        names = file["barcode"][:]
        del file["barcode"]
        file["barcode"] = np.where(np.arange(len(names))[:, None] == 3, b"other", names)
    with pytest.raises(InputError, match=r"1 of \d+ patches, first 'other' are of no spot of .*S2\.h5ad"):
        hest_bench(bench, **QUICK)


def test_spots_without_counts_are_left_out(bench, result, caplog):
    path = bench / "IDC/adata/S2.h5ad"
    table = ad.read_h5ad(path)
    with h5py.File(bench / "IDC/patches/S2.h5") as file:
        chosen = file["barcode"][5].astype(str)[0]
    counts = table.X.tolil()
    counts[table.obs_names.get_loc(chosen)] = 0
    table.X = counts.tocsr()
    table.write_h5ad(path)
    found = hest_bench(bench, methods=["mean"], **QUICK)
    assert "1 of" in caplog.text
    assert "HEST-Bench itself keeps them" in caplog.text
    assert found.scores["n_train"].iloc[0] == result.scores["n_train"].iloc[0] - 1


# Folders.


def test_the_folder_of_one_task(made, result):
    found = hest_bench(made / "IDC", methods=["mean", "ridge-neighbors"], **QUICK)
    pd.testing.assert_frame_equal(found.scores, result.scores)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ("", MissingFileError, "there is no such folder"),
        ("IDC", InputError, "found .*notes.txt.*expected the tasks of HEST-Bench"),
        ("IDC/splits", MissingFileError, r"splits: there are no splits"),
        ("IDC/splits/test_1.csv", MissingFileError, r"splits: test_1\.csv are missing"),
        ("IDC/var_50genes.json", MissingFileError, r"var_50genes\.json: the task's list of genes is missing"),
        ("IDC/adata/S2.h5ad", MissingFileError, r"train_0\.csv, line 3: .*adata/S2\.h5ad, of sample 'S2', is missing"),
        ("IDC/patches/S3.h5", MissingFileError, r"test_0\.csv, line 2: .*patches/S3\.h5, of sample 'S3', is missing"),
    ],
)
def test_missing_parts(bench, part, error, message):
    (bench / "notes.txt").write_text("")
    path = bench / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(error, match=message):
        hest_bench(bench, **QUICK)


def test_tasks_that_are_not_there(made):
    with pytest.raises(InputError, match=r"tasks \['SKCM'\] are not there; found \['IDC'\]"):
        hest_bench(made, tasks=["IDC", "SKCM"], **QUICK)
    with pytest.raises(InputError, match="Name at least one"):
        hest_bench(made, tasks=[], **QUICK)
    with pytest.raises(InputError, match=r"Unknown methods \['kernal-ridge'\]"):
        hest_bench(made, methods=["kernal-ridge"], **QUICK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the list of genes cannot be read"),
        ("[]", "the list of genes cannot be read"),
        ('{"names": []}', "the list of genes cannot be read"),
        ('{"genes": []}', "expected a list of names"),
        ('{"genes": [1, 2]}', "expected a list of names"),
        ('{"genes": ["A", "A"]}', "named more than once"),
    ],
)
def test_wrong_genes(bench, content, message):
    (bench / "IDC/var_50genes.json").write_text(content)
    with pytest.raises(InputError, match=rf"var_50genes\.json: .*{message}"):
        hest_bench(bench, **QUICK)


HEAD = "sample_id,patches_path,expr_path\n"
S1, S3 = (f"{name},patches/{name}.h5,adata/{name}.h5ad\n" for name in ("S1", "S3"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the split cannot be read"),
        (HEAD, "0 rows; expected"),
        ("sample,patches\nS1,patches/S1.h5\n", r"found the columns \['sample', 'patches'\]"),
        (HEAD + "S1,,adata/S1.h5ad\n", "line 2: a cell is empty"),
        (HEAD + S1 + S1, "line 3: sample 'S1' is there twice"),
        (HEAD + S1 + S3, r"samples \['S3'\] are trained on in train_0\.csv, too"),
        (HEAD + "S1,patches/S2.h5,adata/S1.h5ad\n", "sample 'S1' has other files than in another split"),
    ],
)
def test_wrong_splits(bench, content, message):
    (bench / "IDC/splits/train_0.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        hest_bench(bench, **QUICK)


def test_a_sample_that_lacks_what_is_asked_for(bench, genes):
    path = bench / "IDC/adata/S2.h5ad"
    table = ad.read_h5ad(path)
    table[:, [name for name in table.var_names if name not in genes[:2]]].write_h5ad(path)
    with pytest.raises(MissingKeyError, match=rf"sample 'S2' lacks 2 of the task's 6 genes, such as \['{genes[0]}'"):
        hest_bench(bench, **QUICK)
    twice = table.copy()
    twice.var_names = [genes[0], *table.var_names[1:]]
    twice.write_h5ad(path)
    with pytest.raises(InputError, match=f"genes are named more than once, first '{genes[0]}'"):
        hest_bench(bench, **QUICK)
    twice.var_names = ["a", "a", *table.var_names[2:]]
    twice.write_h5ad(path)
    hest_bench(bench, methods=[], **QUICK)
    del table.obsm["spatial"]
    table.write_h5ad(path)
    with pytest.raises(MissingKeyError, match="no positions in obsm"):
        hest_bench(bench, **QUICK)
