"""The paper's experiment as a script: all of its methods on simulated tissue, the same road on files of real slices."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import sparse

import st_gchb
from pictures import sketch
from st_gchb.datasets.synthetic import _geometry
from st_gchb.evaluate import METHODS, PUBLISHED
from studies import dlpfc
from trainings import shorten_trainings

SLICES = ("151673", "151675", "151676")
N_ROWS, N_COLS = 9, 8
SMALL = ["--slices", *SLICES, "--encoder", "texture", "--views", "1", "--n-top-genes", "60", "--device", "cpu"]
PAPER = ["MG", "HVG", "HEG", "Cor>0.3", "AG"]


@pytest.fixture(scope="module")
def script():
    return dlpfc


@pytest.fixture(autouse=True)
def _small_images_and_quiet_again(monkeypatch):
    monkeypatch.setattr(_geometry, "SIDE_PX", 450)
    level = logging.getLogger("st_gchb").level
    yield
    logging.getLogger("st_gchb").setLevel(level)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory) -> Path:
    """Slices of a few dozen spots in layers, as Space Ranger and the annotators wrote them."""
    folder = tmp_path_factory.mktemp("HumanPilot")
    for name in SLICES:
        (folder / name / "spatial").mkdir(parents=True)
        factors = {"spot_diameter_fullres": 75.9, "tissue_hires_scalef": 0.15}
        (folder / name / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        spots, layers = [], []
        for row in range(N_ROWS):
            for step in range(N_COLS):
                x, y = 69 * (2 * step + row % 2) + 150, 119.5 * row + 150
                spots.append(f"AC{row}{step}-1,1,{row},{2 * step + row % 2},{round(y)},{round(x)}\n")
                layers.append(f"AC{row}{step}-1\t{('L1', 'L2', 'L3', 'L4', 'L5', 'L6', 'WM')[row * 7 // N_ROWS]}\n")
        (folder / name / "spatial" / "tissue_positions_list.csv").write_text("".join(spots))
        (folder / name / "layers.tsv").write_text("".join(layers))
    return folder


@pytest.fixture(scope="module")
def real(geometry, tmp_path_factory) -> Path:
    """The same with counts and images: LAMP5 follows the layers, RASGRF2 is the same everywhere, two are absent."""
    folder = tmp_path_factory.mktemp("real")
    shutil.copytree(geometry, folder, dirs_exist_ok=True)
    names = [f"G{i}" for i in range(88)] + ["LAMP5", "RASGRF2"]
    barcodes = [f"AC{row}{step}-1" for row in range(N_ROWS) for step in range(N_COLS)]
    depth = np.repeat(np.arange(N_ROWS), N_COLS) / N_ROWS
    for number, name in enumerate(SLICES):
        rng = np.random.default_rng(number)
        follow = np.linspace(-2.5, 2.5, len(names))
        follow[-2:] = 3.0, 0.0
        counts = rng.poisson(6 * np.exp(np.outer(depth - 0.5, follow)))
        counts[:, -1] = 6
        matrix = sparse.csr_matrix(counts)
        with h5py.File(folder / f"{name}_filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array(barcodes, dtype="S")
            group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
            group["shape"] = np.array(counts.shape[::-1])
            features = group.create_group("features")
            features["id"] = np.array([f"ENSG{i}" for i in range(len(names))], dtype="S")
            features["name"] = np.array(names, dtype="S")
            features["feature_type"] = np.array(["Gene Expression"] * len(names), dtype="S")
            features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
        shade = np.linspace(60, 240, 200)[:, None, None] + rng.normal(0, 6, (200, 220, 3))
        Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(folder / f"{name}_tissue_hires_image.png")
    return folder


@pytest.fixture(scope="module")
def whole(script, geometry, tmp_path_factory):
    """Every method of the paper and every baseline, once: what was written, and what the figures are called."""
    out, cache, titles = tmp_path_factory.mktemp("report"), tmp_path_factory.mktemp("cache"), {}
    save = st_gchb.pl.save

    def watch(axes, path, **options):
        figure = np.ravel(axes)[0].figure
        heading = figure._suptitle.get_text() if figure._suptitle else ""
        titles[Path(path).name] = heading + " ".join(ax.get_title() for ax in figure.axes)
        save(axes, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        shorten_trainings(patch)
        patch.setattr(_geometry, "SIDE_PX", 450)
        patch.setattr(st_gchb.pl, "save", watch)
        patch.setattr(Figure, "savefig", lambda figure, path, **_: sketch(figure, path))
        patch.setenv("ST_GCHB_CACHE", str(cache))
        assert script.main(["--simulated", str(geometry), "--out", str(out), "--seeds", "1", *SMALL]) == 0
    return SimpleNamespace(
        out=out, cache=cache, titles=titles, text=(out / "paper_table.md").read_text(encoding="utf-8")
    )


def rows_of(text: str) -> dict[str, list[str]]:
    """The first table of a Markdown text: cells by method."""
    block = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE).group()
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
    return {line[0]: line[1:] for line in lines if set(line[0]) != {"-"}}


def refused(script, capsys, *argv: str) -> str:
    """The one line with which a call ends."""
    with pytest.raises(SystemExit) as end:
        script.main([*argv])
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dlpfc.py: error: ")
    return last


@pytest.mark.slow
def test_every_method_in_the_papers_columns(script, whole):
    rows = rows_of(whole.text)
    assert rows.pop("method") == PAPER
    # Kernels take features of certain encoders, and other publications are in a study of their own: by name alone.
    apart = {name for name in METHODS if name.startswith("kernel")} | set(PUBLISHED)
    assert list(rows) == script.METHODS == [name for name in METHODS if name not in apart]
    scores = pd.read_csv(whole.out / "scores.csv").set_index("method")
    for method, cells in rows.items():
        measured = scores.loc[method, ["MG", "HVG", "HEG", "n>0.3", "AG"]].to_numpy(dtype=float)
        np.testing.assert_allclose([float(cell) for cell in cells], measured, atol=5.1e-5)
    assert set(scores["n_genes"]) == {60}


def test_held_out_slice_and_features_are_those_asked_for(whole):
    settings = json.loads((whole.out / "metrics.json").read_text())["settings"]
    assert settings["folds"] == ["simulated_151676"]
    assert settings["features"]["slices"] == [f"simulated_{name}" for name in SLICES]
    assert (settings["features"]["encoder"], settings["features"]["n_views"]) == ("texture", 1)


def test_all_that_is_written_says_that_it_is_simulated(whole):
    texts = {"paper_table.md", "table.md"}
    assert all((whole.out / name).read_text(encoding="utf-8").startswith("SIMULATED") for name in texts)
    settings = json.loads((whole.out / "metrics.json").read_text())["settings"]
    assert settings["simulated"]
    assert settings["data"].startswith("SIMULATED")
    tables = {"scores.csv", "per_gene.csv"}
    assert all(pd.read_csv(whole.out / name)["fold"].str.startswith("simulated_").all() for name in tables)
    assert all("simulated_" in path.name for path in (whole.out / "runs").iterdir())
    assert all("SIMULATED" in title for title in whole.titles.values())
    written = {path.name for path in whole.out.iterdir()}
    assert written == {*texts, *tables, "metrics.json", "runs", *whole.titles}
    assert set(whole.titles) == {"methods.png", "measured_vs_predicted.png"}


def test_markers_of_simulated_tissue_follow_layers_and_make_mg(whole):
    markers = json.loads((whole.out / "metrics.json").read_text())["settings"]["markers"]
    panel = sorted(pd.read_csv(whole.out / "per_gene.csv")["gene"].unique())
    assert markers == [
        next(gene for gene in panel if gene.startswith(f"{layer}_")) for layer in ("L2", "L3", "L5", "L6")
    ]
    assert f"MG: {', '.join(markers)}" in whole.text
    genes = pd.read_csv(whole.out / "per_gene.csv").query("method == 'ridge'").set_index("gene")
    assert float(rows_of(whole.text)["ridge"][0]) == pytest.approx(genes.loc[markers, "pearson"].mean(), abs=5.1e-5)


def test_published_figures_are_named_as_such(whole):
    measured, published = whole.text.split("Published figures")
    assert published.startswith(" (not comparable with the simulated table above)")
    assert "| ST-GCHB, table 1 | 0.1509 ± 0.0109 | 0.4310 ± 0.0057 | 0.3545 ± 0.0019 |" in published
    assert "| ST-GCHB (Baseline), table 2 | 0.1617 | 0.4366 | 0.3564 | 181 | 0.1022 |" in published
    assert "0.4310" not in measured


@pytest.mark.usefixtures("short_trainings", "sketched_figures")
def test_goes_on_and_adds_seeds(script, geometry, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("ST_GCHB_CACHE", str(whole.cache))
    shutil.copytree(whole.out / "runs", tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    options = ["--seeds", "2", "--methods", "knn", "bleep", *SMALL]
    assert script.main(["--simulated", str(geometry), "--out", str(tmp_path), *options]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["runs"]["taken"] >= 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if "bleep" in path.name)
    rows = rows_of((tmp_path / "paper_table.md").read_text(encoding="utf-8"))
    assert list(rows) == ["method", "knn", "bleep"]
    assert all(re.fullmatch(r"-?\d\.\d{4} ± \d\.\d{4}", rows["bleep"][i]) for i in (0, 1, 2, 4))
    assert "mean ± standard deviation over seeds" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("sketched_figures")
def test_real_slices_take_the_same_road(script, real, tmp_path, capsys):
    options = ["--seeds", "1", "--methods", "ridge", "mean", "--held-out", "151673", *SMALL]
    assert script.main(["--data", str(real), "--out", str(tmp_path), *options]) == 0
    assert (
        "LEFT OUT, not in the panel that was chosen on the training slices: ATP2B4, RASGRF2" in capsys.readouterr().out
    )
    text = (tmp_path / "paper_table.md").read_text(encoding="utf-8")
    assert text.startswith("DLPFC, real slices. Held out: 151673;")
    assert "imulated" not in text
    assert "MG: LAMP5." in text
    genes = pd.read_csv(tmp_path / "per_gene.csv").query("method == 'ridge'").set_index("gene")
    rows = rows_of(text)
    assert float(rows["ridge"][0]) == pytest.approx(genes.loc["LAMP5", "pearson"], abs=5.1e-5)
    assert rows["mean"] == ["0.0000", "0.0000", "0.0000", "0", "0.0000"]
    assert float(rows["ridge"][4]) > 0.2


@pytest.mark.usefixtures("sketched_figures")
def test_no_marker_leaves_its_column_empty(script, real, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "MARKERS", ("ATP2B4",))
    options = ["--seeds", "1", "--methods", "ridge", *SMALL]
    assert script.main(["--data", str(real), "--out", str(tmp_path), *options]) == 0
    text = (tmp_path / "paper_table.md").read_text(encoding="utf-8")
    assert "MG: none of the markers is in the panel. LEFT OUT" in text
    assert rows_of(text)["ridge"][0] == ""


def test_marker_that_was_asked_for_and_is_not_in_the_panel(script, real, tmp_path, capsys):
    options = ["--data", str(real), "--out", str(tmp_path), *SMALL]
    line = refused(script, capsys, *options, "--markers", "LAMP5", "RASGRF2", "NOGENE")
    assert "--markers RASGRF2 NOGENE: not in the panel of 60 genes" in line
    assert not (tmp_path / "paper_table.md").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out", "151669"], "--held-out 151669: not among the slices 151673 151675 151676"),
        (["--slices", "151676"], "at least two"),
        (["--slices", "151676", "151676"], "each once"),
        (["--slices", "151676", "999"], "unknown slices ['999']"),
        (["--methods", "ridge", "papr"], "--methods papr: unknown; known are default kernel-head paper"),
        (["--seeds", "0"], "at least one seed"),
        (["--encoder", "resnet5"], "resnet5"),
        (["--n-top-genes", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_options(script, geometry, tmp_path, capsys, options, message):
    line = refused(script, capsys, "--simulated", str(geometry), "--out", str(tmp_path / "out"), *SMALL, *options)
    assert message in line


def test_folder_without_geometry(script, tmp_path, capsys):
    line = refused(script, capsys, "--simulated", str(tmp_path), "--out", str(tmp_path / "out"), *SMALL)
    assert "151673_tissue_positions_list.csv" in line
    absent = str(tmp_path / "nowhere")
    assert absent in refused(script, capsys, "--simulated", absent, "--out", str(tmp_path / "out"), *SMALL)


def test_out_that_is_a_file(script, geometry, tmp_path, capsys):
    (tmp_path / "out").write_text("taken")
    line = refused(script, capsys, "--simulated", str(geometry), "--out", str(tmp_path / "out"), *SMALL)
    assert "File exists" in line


def test_help_shows_an_example(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    assert "example:\n  python -m studies.dlpfc --out dlpfc/" in capsys.readouterr().out
