"""The commands, in the order in which a user meets them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import st_gchb
from pages import prediction, record_of, values_of
from pictures import n_colors, pixels_of
from st_gchb.cli import build_parser, main
from st_gchb.evaluate import RunFolder
from st_gchb.model import STGCHB

COMMANDS = ["demo", "train", "predict", "report", "evaluate", "hest-bench"]
TEXTURE = ["--encoder", "texture", "--patch-um", "150", "--views", "1", "--device", "cpu"]


def assert_drawn(path):
    pixels = pixels_of(path)
    assert min(pixels.shape[:2]) > 150
    assert n_colors(pixels) > 300


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_is_understood(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert {"--seed", "--device", "--quiet"} <= set(re.findall(r"--[a-z-]+", said))
    example = said.split("example:\n")[1].strip()
    program, *arguments = shlex.split(example)
    assert program == "st-gchb"
    assert arguments[0] == command
    # Every option of the example is one.
    assert build_parser().parse_args(arguments).run


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"st-gchb {st_gchb.__version__}"


def test_train(model, slides, tmp_path, capsys):
    loaded = STGCHB.load(model, accelerator="cpu")
    assert list(loaded.bank_.origin["slice"].unique()) == ["S1", "S2"]
    assert len(loaded.rules_.expression.genes) == 20
    assert loaded.rules_.features.first.encoder == "texture"
    assert loaded.seed == 0
    arguments = ["train", "--data", slides, "--slices", "S1", "S2", *TEXTURE, "--n-top-genes", 15, "--max-epochs", 1]
    arguments += ["--preset", "bleep", "--seed", 3, "--patch-um", 80, "--out", tmp_path / "model"]
    for more in ([], ["--overwrite"]):
        # Bars as in a terminal: those of training, too, go where they do not mix with the answer.
        with st_gchb.settings.override(progress_bars=True):
            assert main([str(argument) for argument in [*arguments, *more]]) == 0
        said = capsys.readouterr()
        assert re.fullmatch(r"model \w+ written to .*\n", said.out)
        assert "Epoch 1/1" in said.err
    loaded = STGCHB.load(tmp_path / "model", accelerator="cpu")
    assert (loaded.preset, loaded.seed, loaded.rules_.features.first.patch_um) == ("bleep", 3, 80.0)


@pytest.mark.usefixtures("sketched_figures")
def test_a_slide_without_a_slice_column(slides, tmp_path):
    adata = anndata.read_h5ad(slides)
    adata = adata[adata.obs["slice"] == "S1"].copy()
    adata.uns["spatial"] = {"S1": adata.uns["spatial"]["S1"]}
    del adata.obs["slice"]
    adata.write_h5ad(tmp_path / "one.h5ad")
    arguments = ["--data", tmp_path / "one.h5ad", "--device", "cpu", "--quiet"]
    train = ["train", *arguments, *TEXTURE, "--max-epochs", 1, "--n-top-genes", 10, "--out", tmp_path / "model"]
    predict = ["predict", *arguments, "--model", tmp_path / "model", "--out", tmp_path / "out"]
    for command in (train, predict):
        assert main([str(argument) for argument in command]) == 0
    assert (tmp_path / "out" / "prediction.png").exists()


def test_predict(model, slides, tmp_path, capsys):
    query = anndata.read_h5ad(slides)
    query = query[query.obs["slice"] == "S3"].copy()
    query.uns["spatial"] = {"S3": query.uns["spatial"]["S3"]}
    expected = STGCHB.load(model, accelerator="cpu").predict(query, k=9)
    genes = list(expected.var_names[:2])
    parts = {"obsm": {"spatial": query.obsm["spatial"]}, "uns": {"spatial": query.uns["spatial"]}}
    bare = AnnData(obs=query.obs[["slice"]], **parts)
    bare.write_h5ad(tmp_path / "bare.h5ad")
    command = ["predict", "--model", model, "--k", 9, "--device", "cpu", "--genes", *genes]
    for name, data in (("all", [slides, "--slices", "S3"]), ("bare", [tmp_path / "bare.h5ad"])):
        out = tmp_path / name
        assert main([str(argument) for argument in [*command, "--data", *data, "--out", out]]) == 0
        assert f"{query.n_obs} spots x 20 genes" in capsys.readouterr().out
        assert {path.name for path in out.iterdir()} == {"prediction.h5ad", "spots.csv", "S3.png"}
        prediction = anndata.read_h5ad(out / "prediction.h5ad")
        np.testing.assert_allclose(prediction.layers["st_gchb"], expected.layers["st_gchb"], rtol=1e-5, atol=1e-6)
        assert prediction.uns["st_gchb"]["k"] == 9
        assert ("measured" in prediction.layers) == (name == "all")
        spots = pd.read_csv(out / "spots.csv", index_col=0)
        assert spots.index.tolist() == query.obs_names.tolist()
        np.testing.assert_allclose(spots[genes], expected[:, genes].layers["st_gchb"], rtol=1e-5)
        np.testing.assert_allclose(spots[["x_px", "y_px"]], query.obsm["spatial"])
        assert spots["st_gchb_confidence"].between(0, 1).all()
        assert_drawn(out / "S3.png")


@pytest.mark.usefixtures("sketched_figures")
def test_predict_draws_the_most_predictable_genes_of_each_slice(model, slides, tmp_path):
    command = ["predict", "--model", model, "--data", slides, "--out", tmp_path, "--device", "cpu", "--quiet"]
    assert main([str(argument) for argument in command]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"S1.png", "S2.png", "S3.png"}
    prediction = anndata.read_h5ad(tmp_path / "prediction.h5ad")
    best = prediction.var["st_gchb_expected_pcc"].nlargest(3).index
    assert set(best) <= set(pd.read_csv(tmp_path / "spots.csv").columns)


@pytest.mark.usefixtures("sketched_figures")
def test_report_of_what_predict_wrote(model, slides, tmp_path, capsys):
    given = ["--model", str(model), "--data", str(slides), "--slices", "S3", "--device", "cpu", "--quiet"]
    assert main(["predict", *given, "--out", str(tmp_path / "S3")]) == 0
    capsys.readouterr()
    arguments = ["report", "--prediction", str(tmp_path / "S3" / "prediction.h5ad"), "--out", str(tmp_path / "page")]
    assert main([*arguments, "--n-genes", "4", "--title", "Case 7"]) == 0
    page = tmp_path / "page" / "index.html"
    assert capsys.readouterr().out == f"page written: open {page} in a browser\n"
    assert "Case 7" in page.read_text()
    pred = anndata.read_h5ad(tmp_path / "S3" / "prediction.h5ad")
    record = record_of(page.parent)
    assert record["genes"]["names"] == list(pred.var["st_gchb_expected_pcc"].nlargest(4).index)
    for number, gene in enumerate(record["genes"]["names"]):
        column = pred.layers["st_gchb"][:, pred.var_names.get_loc(gene)]
        np.testing.assert_array_equal(values_of(page.parent, number), column.astype(np.float32))
    assert dict(record["provenance"])["Reference slices"] == "S1, S2"
    # Another time it is asked for; measured values are shown as well.
    assert main(arguments) == 2
    assert "Pass --overwrite to replace it." in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--layer", "X", "--genes", *pred.var_names[:2]]) == 0
    np.testing.assert_array_equal(values_of(page.parent, 1), pred[:, pred.var_names[1]].to_df().iloc[:, 0])


def test_report_of_a_store(tmp_path):
    sdata = st_gchb.pp.to_spatialdata(prediction())
    sdata.write(tmp_path / "S1.zarr")
    given = ["--prediction", str(tmp_path / "S1.zarr"), "--out", str(tmp_path / "page"), "--genes", "CD74"]
    assert main(["report", *given, "--quiet"]) == 0
    assert record_of(tmp_path / "page")["genes"]["names"] == ["CD74"]


@pytest.mark.usefixtures("sketched_figures")
def test_predict_another_table(model, slides, tmp_path):
    command = ["predict", "--model", model, "--data", slides, "--slices", "S3", "--layer", "all_genes"]
    command += ["--device", "cpu", "--quiet", "--out", tmp_path]
    assert main([str(argument) for argument in command]) == 0
    assert anndata.read_h5ad(tmp_path / "prediction.h5ad").n_vars == 40


@pytest.mark.usefixtures("sketched_figures")
def test_predict_a_spatialdata(model, tissue, tmp_path):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel

    part = tissue[tissue.obs["slice"] == "S3"]
    pixels = tissue.uns["spatial"]["S3"]["images"]["hires"]
    shapes = ShapesModel.parse(part.obsm["spatial"], geometry=0, radius=27.5, index=part.obs_names.to_numpy())
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))
    SpatialData(images={"he": image}, shapes={"spots": shapes}).write(tmp_path / "s.zarr")
    command = ["predict", "--model", model, "--data", tmp_path / "s.zarr", "--out", tmp_path / "out"]
    assert main([str(argument) for argument in [*command, "--device", "cpu", "--quiet"]]) == 0
    prediction = anndata.read_h5ad(tmp_path / "out" / "prediction.h5ad")
    expected = STGCHB.load(model, accelerator="cpu").predict(part.copy())
    np.testing.assert_allclose(prediction.layers["st_gchb"], expected.layers["st_gchb"], rtol=0, atol=1e-5)
    assert list((tmp_path / "out").glob("*.png"))


def test_evaluate(slides, tmp_path, capsys):
    command = ["evaluate", "--data", slides, *TEXTURE, "--methods", "ridge", "mean", "--n-top-genes", 20, "--seeds", 2]
    command += ["--seed", 5, "--out", tmp_path / "out"]
    assert main([str(argument) for argument in command]) == 0
    said = capsys.readouterr().out
    assert "| ridge |" in said
    names = {"metrics.json", "scores.csv", "per_gene.csv", "table.md", "measured_vs_predicted.png", "methods.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"runs"}
    assert all(name in said for name in names)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["settings"]["seeds"] == [5, 6]
    assert record["settings"]["folds"] == ["S1", "S2", "S3"]
    assert (tmp_path / "out" / "table.md").read_text().strip() in said
    assert_drawn(tmp_path / "out" / "measured_vs_predicted.png")


@pytest.mark.usefixtures("sketched_figures")
def test_evaluate_by_patient(slides, tmp_path):
    command = ["evaluate", "--data", slides, *TEXTURE, "--methods", "mean", "--by", "patient", "--n-top-genes", 20]
    assert main([str(argument) for argument in [*command, "--seeds", 1, "--quiet", "--out", tmp_path]]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["folds"] == ["P1", "P2", "P3"]


@pytest.fixture
def answers(monkeypatch):
    """Runs that are finished; the one whose number is in ``answers.stop`` is interrupted before it is stored."""

    class Answers(list):
        stop = None

    kept, write = Answers(), RunFolder.write

    def count(folder, key, run):
        if len(kept) == kept.stop:
            raise KeyboardInterrupt
        kept.append(key)
        write(folder, key, run)

    monkeypatch.setattr(RunFolder, "write", count)
    return kept


@pytest.mark.usefixtures("sketched_figures")
def test_evaluate_goes_on_where_it_stopped(slides, tmp_path, capsys, answers):
    command = ["evaluate", "--data", slides, *TEXTURE, "--methods", "ridge", "mean", "--n-top-genes", 20, "--seeds", 2]
    command = [str(argument) for argument in [*command, "--quiet", "--out"]]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert len(answers) == 12
    answers.clear()
    answers.stop = 7
    out = tmp_path / "out"
    capsys.readouterr()
    assert main([*command, str(out)]) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "st-gchb: interrupted; the same command goes on from there\n"
    assert {path.name for path in out.iterdir()} == {"runs"}
    answers.stop = None
    assert main([*command, str(out)]) == 0
    assert len(answers) == 12
    for name in ("scores.csv", "per_gene.csv", "table.md", "measured_vs_predicted.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((out / "metrics.json").read_text())["runs"] == {"made": 5, "taken": 7}
    assert main([*command, str(out)]) == 0
    assert len(answers) == 12
    answers.stop = 15
    assert main([*command, str(out), "--overwrite"]) == 130
    assert "without --overwrite the same command" in capsys.readouterr().err
    assert len(list((out / "runs").glob("*.json"))) == 3


@pytest.mark.usefixtures("sketched_figures")
def test_evaluate_one_fold(slides, tmp_path, answers):
    command = ["evaluate", "--data", slides, *TEXTURE, "--methods", "mean", "--n-top-genes", 20, "--seeds", 1]
    command = [str(argument) for argument in [*command, "--quiet", "--out", tmp_path]]
    assert main([*command, "--held-out", "S2"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["folds"] == ["S2"]
    assert main(command) == 0
    assert len(answers) == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["folds"] == ["S1", "S2", "S3"]


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_ctrl_c_in_training(slides, tmp_path, capsys, monkeypatch, command):
    """Lightning would end the process with status 1 and no word."""
    import signal

    from st_gchb.train import STGCHBTrainingPlan

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(STGCHBTrainingPlan, "training_step", stop)
    before = signal.getsignal(signal.SIGINT)
    arguments = [command, "--data", slides, *TEXTURE, "--n-top-genes", 20, "--quiet", "--out", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 130
    signal.signal(signal.SIGINT, before)
    advice = {"evaluate": "the same command", "train": "with --resume the same command"}[command]
    assert capsys.readouterr().err == f"st-gchb: interrupted; {advice} goes on from there\n"


def test_training_goes_on_where_it_stopped(slides, tmp_path, monkeypatch, capsys):
    import signal

    from st_gchb.train import STGCHBTrainingPlan

    step, before = STGCHBTrainingPlan.training_step, signal.getsignal(signal.SIGINT)

    def stop(plan, *arguments):
        if plan.current_epoch == 2:
            raise KeyboardInterrupt
        return step(plan, *arguments)

    command = ["train", "--data", slides, "--slices", "S1", "S2", *TEXTURE, "--n-top-genes", 20, "--max-epochs", 4]
    command += ["--out"]
    command = [str(argument) for argument in command]
    assert main([*command, str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(STGCHBTrainingPlan, "training_step", stop)
    assert main([*command, str(tmp_path / "model")]) == 130
    signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(STGCHBTrainingPlan, "training_step", step)
    capsys.readouterr()
    with st_gchb.settings.override(progress_bars=True):
        assert main([*command, str(tmp_path / "model"), "--resume"]) == 0
    said = capsys.readouterr().err
    assert "Epoch 3/4" in said
    assert "Epoch 2/4" not in said
    ids = [json.loads((tmp_path / name / "model.json").read_text())["model_id"] for name in ("whole", "model")]
    assert ids[0] == ids[1]


def test_an_end_that_is_no_ctrl_c(slides, tmp_path, monkeypatch):
    monkeypatch.setattr("st_gchb.evaluate.write_report", lambda *_, **__: sys.exit(5))
    command = ["evaluate", "--data", slides, *TEXTURE, "--methods", "mean", "--seeds", 1, "--n-top-genes", 20]
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in [*command, "--quiet", "--out", tmp_path]])
    assert caught.value.code == 5


@pytest.fixture
def short_methods(monkeypatch):
    """The demo trains as long as it takes to look good: here it is to run at all."""
    from functools import partial

    from st_gchb.evaluate import METHODS

    for name in ("default", "bleep"):
        monkeypatch.setitem(METHODS, name, partial(METHODS[name], max_epochs=1))


@pytest.mark.usefixtures("short_methods")
def test_demo_on_ones_own_slides(slides, tmp_path, capsys):
    command = ["demo", "--data", slides, *TEXTURE, "--n-top-genes", 20, "--out", tmp_path]
    assert main([str(argument) for argument in command]) == 0
    said = capsys.readouterr().out
    assert "Slice S3 predicted from S1, S2 (measured expression" in said
    assert all(f"| {name} |" in said for name in ("default", "bleep", "ridge-neighbors", "knn", "mean"))
    assert_drawn(tmp_path / "measured_vs_predicted.png")
    assert str(tmp_path / "measured_vs_predicted.png") in said
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["folds"] == ["S3"]


@pytest.mark.usefixtures("short_methods")
def test_demo_needs_nothing(tissue, tmp_path, capsys, monkeypatch):
    made = []

    def small(*arguments, **options):
        made.append((arguments, options))
        return tissue.copy()

    monkeypatch.setattr(st_gchb.datasets, "synthetic_tissue", small)
    # Without data neither encoder nor weights are downloaded, whatever the defaults are.
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the demo went to the network"))
    monkeypatch.chdir(tmp_path)
    # The small tissue stands for one that has genes enough.
    assert main(["demo", "--device", "cpu", "--seed", "7", "--quiet", "--n-top-genes", "40"]) == 0
    assert made == [((4,), {"seed": 7})]
    assert "simulated expression" in capsys.readouterr().out
    assert_drawn(tmp_path / "demo" / "measured_vs_predicted.png")


@pytest.mark.usefixtures("sketched_figures")
def test_quiet_says_nothing_but_the_answer(model, slides, tmp_path, capsys):
    command = ["predict", "--model", model, "--data", slides, "--slices", "S3", "--out", tmp_path, "--device", "cpu"]
    assert main([str(argument) for argument in [*command, "--quiet"]]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) == 1


def test_as_a_process(model, tmp_path):
    """One line on stderr and status 2, with all that importing the libraries would say."""
    command = [sys.executable, "-c", "import sys; from st_gchb.cli import main; sys.exit(main())"]
    (tmp_path / "no.h5ad").write_text("no table")
    command += ["predict", "--model", model, "--data", tmp_path / "no.h5ad", "--out", tmp_path / "out"]
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("st-gchb: error: ")
    assert "no.h5ad" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("sketched_figures")
def test_several_patch_sizes(slides, tmp_path, capsys):
    """Options that take several values; one that is given twice is an error that names the option."""
    data = ["--data", slides, "--slices", "S1", "S2", "--n-top-genes", 15, "--device", "cpu"]
    train = ["train", *data, "--encoder", "texture", "--weights", "default", "--max-epochs", 1, "--patch-um"]
    assert main([str(word) for word in [*train, 80, 150, "--out", tmp_path / "model"]]) == 0
    features = STGCHB.load(tmp_path / "model", accelerator="cpu").rules_.features
    assert features.names == ["texture, 80 µm", "texture, 150 µm"]
    assert features.first.n_views == 1
    predict = ["predict", "--model", tmp_path / "model", "--data", slides, "--slices", "S3", "--out", tmp_path / "out"]
    assert main([str(word) for word in [*predict, "--weights", "default", "--device", "cpu"]]) == 0
    capsys.readouterr()
    assert main([str(word) for word in [*train, 80, 80, "--out", tmp_path / "twice"]]) == 2
    assert "patch size 80 is given more than once. Pass --patch-um with each size once" in capsys.readouterr().err
    assert main([str(word) for word in [*train, 80, 1e4, "--out", tmp_path / "large"]]) == 2
    assert "a patch of 10000 µm is" in capsys.readouterr().err
