from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from st_gchb import pl
from st_gchb._errors import ArgumentError, InputError, MissingKeyError, NotTrainedError, StoreError


@pytest.fixture
def losses() -> dict[str, pd.DataFrame]:
    curves = {"train_loss": [3.0, 2.0, 1.5, 1.2], "validation_loss": [3.1, 2.2, 2.0, 2.4], "alignment": [1, 2, 3, 4]}
    return {key: pd.DataFrame({key: values}) for key, values in curves.items()}


@pytest.fixture
def frame() -> pd.DataFrame:
    index = pd.Index(["ACTB", "ERBB2", "CD-74_x", "KRT19"], name="gene")
    return pd.DataFrame({"pearson": [0.0, 0.9, 0.5, -0.1], "constant": [True, False, False, False]}, index=index)


@pytest.fixture
def runs() -> pd.DataFrame:
    return pd.DataFrame(
        {"method": ["mean", "ridge", "mean", "ridge"], "AG": [0.0, 0.1, 0.0, 0.3], "HVG": [0.0, 0.4, 0.0, 0.6]}
    )


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_history_draws_the_total_and_marks_the_lowest(losses):
    ax = pl.history(losses)
    assert labels(ax) == ["training", "validation", "lowest, epoch 2"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [3.0, 2.0, 1.5, 1.2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


def test_history_takes_a_model_and_keys(losses):
    class Model:
        history = losses

    assert labels(pl.history(Model(), "alignment")) == ["alignment"]
    assert labels(pl.history(Model(), ["alignment", "train_loss"])) == ["alignment", "training"]


def test_history_of_epochs_without_validation(losses):
    """Validation every few epochs leaves holes in the log."""
    losses["validation_loss"] = pd.DataFrame({"validation_loss": [np.nan, 2.2, np.nan, 2.4]})
    ax = pl.history(losses)
    np.testing.assert_allclose(ax.lines[1].get_xdata(), [1, 3])
    assert labels(ax)[-1] == "lowest, epoch 1"


def test_history_that_cannot_be_drawn(losses):
    class Untrained:
        history = None

    with pytest.raises(NotTrainedError, match="train"):
        pl.history(Untrained())
    with pytest.raises(MissingKeyError, match=r"no \['dgi'\]"):
        pl.history(losses, ["dgi"])
    with pytest.raises(InputError, match="no number"):
        pl.history({"train_loss": pd.DataFrame({"train_loss": [np.nan]})})


def test_ranking_goes_down_and_counts(frame):
    ax = pl.gene_ranking(frame, n_label=2, markers=["KRT19"])
    drawn = np.vstack([np.asarray(c.get_offsets()) for c in ax.collections])
    np.testing.assert_allclose(drawn[drawn[:, 0].argsort()], [[1, 0.9], [2, 0.5], [3, 0.0], [4, -0.1]])
    texts = [text.get_text() for text in ax.texts]
    assert "2 of 4 genes above 0.3" in texts
    assert "KRT19" in texts
    assert any("0.90" in text and "ERBB2" in text and "ACTB" not in text for text in texts)
    assert labels(ax) == ["1 constant, counted as 0"]
    ax.figure.canvas.draw()  # names with _ and - are no mathematics


@pytest.mark.parametrize(("best", "worst"), [(0.9, 0.0), (0.5, -0.2)])
def test_the_curve_of_a_ranking_leaves_the_count_alone(best, worst):
    """In a small figure, with most genes above the line and with few of them."""
    genes = pd.DataFrame({"pearson": np.linspace(best, worst, 150)}, index=[f"gene{i}" for i in range(150)])
    _, ax = plt.subplots(figsize=(4, 2.5))
    pl.gene_ranking(genes, ax=ax)
    (count,) = [text for text in ax.texts if "genes above" in text.get_text()]
    box = count.get_window_extent()
    points = ax.transData.transform(np.vstack([np.asarray(c.get_offsets()) for c in ax.collections]))
    assert not [point for point in points if box.contains(*point)]


def test_ranking_that_cannot_be_drawn(frame):
    with pytest.raises(MissingKeyError, match="'spearman'"):
        pl.gene_ranking(frame, column="spearman")
    with pytest.raises(MissingKeyError, match="QQQ"):
        pl.gene_ranking(frame, markers=["QQQ"])
    with pytest.raises(InputError, match="one row a gene"):
        pl.gene_ranking(pd.concat([frame, frame]))


def test_bars_stand_at_the_mean_and_dots_at_the_runs(runs):
    ax = pl.metric_bars(runs, ["AG", "HVG"])
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.0, 0.0, 0.2, 0.5])
    np.testing.assert_allclose(np.asarray(ax.collections[1].get_offsets())[:, 1], [0.1, 0.4, 0.3, 0.6])
    assert labels(ax) == ["mean", "ridge"]


def test_bars_highlight_one_method(runs):
    first, ridge = (pl.metric_bars(runs, ["AG"], highlight=name).patches for name in (None, "ridge"))
    assert first[0].get_facecolor() == ridge[1].get_facecolor()
    assert first[0].get_facecolor() != first[1].get_facecolor()


def test_bars_that_cannot_be_drawn(runs):
    with pytest.raises(MissingKeyError, match="HEG"):
        pl.metric_bars(runs)
    with pytest.raises(InputError, match="highlight='x'"):
        pl.metric_bars(runs, ["AG"], highlight="x")
    with pytest.raises(InputError, match="empty"):
        pl.metric_bars(runs.iloc[:0], ["AG"])


@pytest.mark.parametrize("draw", ["history", "gene_ranking", "metric_bars"])
def test_draws_into_given_axes_and_opens_no_figure(draw, losses, frame, runs):
    data = {"history": losses, "gene_ranking": frame, "metric_bars": runs.assign(HEG=0.0)}[draw]
    figure, ax = plt.subplots()
    assert getattr(pl, draw)(data, ax=ax) is ax
    assert plt.get_fignums() == [figure.number]


def test_save_writes_a_figure_and_closes_it(frame, tmp_path):
    pl.save(pl.gene_ranking(frame), tmp_path / "deep" / "ranking.png")
    assert plt.imread(tmp_path / "deep" / "ranking.png").std() > 0.01
    assert plt.get_fignums() == []
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["ranking.png"]


@pytest.mark.parametrize("name", ["ranking", "ranking.h5ad", "ranking.xlsx"])
def test_an_ending_that_says_no_format(frame, tmp_path, name):
    with pytest.raises(ArgumentError, match=r"ends in .*\.png"):
        pl.save(pl.gene_ranking(frame), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_where_no_file_can_be(frame, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.png", tmp_path / "file" / "ranking.png"):
        with pytest.raises(StoreError, match="no file can be written there"):
            pl.save(pl.gene_ranking(frame), path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder.png"]
