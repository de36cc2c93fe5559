from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from st_gchb._errors import InputError, MissingKeyError
from st_gchb.metrics import per_gene, summary


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pearson": [0.9, 0.5, 0.31, 0.3, 0.0],
            "spearman": [0.8, 0.4, 0.2, 0.2, 0.0],
            "rmse": [1.0, 2.0, 3.0, 4.0, 5.0],
            "mean_truth": [5.0, 4.0, 3.0, 2.0, 1.0],
            "var_truth": [1.0, 2.0, 3.0, 4.0, 5.0],
            "constant": [False, False, False, False, True],
        },
        index=pd.Index(["ERBB2", "KRT19", "CD74", "COL1A1", "ACTB"], name="gene"),
    )


def test_each_measure_by_hand(frame):
    row = summary(
        frame,
        train_mean=np.array([0, 0, 1, 2, 0]),
        train_var=pd.Series({"ACTB": 0, "ERBB2": 9, "KRT19": 0, "CD74": 8, "COL1A1": 1, "OTHER": 99}),
        markers=["KRT19", "ACTB", "KRT19"],
        n_top=2,
    )
    assert row == pytest.approx(
        {
            "AG": (0.9 + 0.5 + 0.31 + 0.3) / 5,
            "HVG": 0.15,
            "HEG": 0.7,
            "HVG_train": (0.9 + 0.31) / 2,
            "HEG_train": (0.31 + 0.3) / 2,
            "MG": 0.25,
            "n>0.3": 3,
            "n_constant": 1,
            "n_genes": 5,
            "RMSE": 3.0,
            "Spearman": 1.6 / 5,
        }
    )


def test_what_was_not_given_is_not_in_the_row(frame):
    assert set(summary(frame)) == {"AG", "HVG", "HEG", "n>0.3", "n_constant", "n_genes", "RMSE", "Spearman"}


def test_threshold_names_its_column(frame):
    assert summary(frame, threshold=0.45)["n>0.45"] == 2


def test_small_panel_counts_whole(frame):
    row = summary(frame, n_top=50)
    assert row["HVG"] == row["HEG"] == pytest.approx(row["AG"])


def test_row_is_json(frame):
    assert json.loads(json.dumps(summary(frame, markers=["ACTB"]))) == summary(frame, markers=["ACTB"])


def test_perfect_prediction():
    truth = np.random.default_rng(0).random((9, 4))
    row = summary(per_gene(truth, truth, list("abcd")))
    assert row["AG"] == row["HVG"] == row["Spearman"] == pytest.approx(1.0)
    assert row["RMSE"] == 0.0


def test_marker_outside_the_panel_is_named_with_close_ones(frame):
    with pytest.raises(MissingKeyError, match=r"2 of 3 markers.*'Erbb3' \(close: ERBB2\).*'QQQQ'") as caught:
        summary(frame, markers=["ACTB", "Erbb3", "QQQQ"])
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith('"')


def test_one_marker_as_a_string_is_a_gene_not_letters(frame):
    assert summary(frame, markers="KRT19")["MG"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"markers": []}, InputError, "markers is empty"),
        ({"n_top": 0}, InputError, "n_top=0"),
        ({"train_mean": np.ones(3)}, InputError, "train_mean has 3 values and the panel 5 genes"),
        ({"train_var": np.array([1, 2, np.nan, 3, 4])}, InputError, "train_var holds NaN"),
        ({"train_var": pd.Series({"ERBB2": 1.0})}, MissingKeyError, "train_var has no value for 4 genes"),
    ],
)
def test_arguments_that_cannot_be_used(frame, arguments, error, says):
    with pytest.raises(error, match=says):
        summary(frame, **arguments)


def test_tables_that_are_not_per_gene(frame):
    with pytest.raises(MissingKeyError, match=r"lacks the columns \['rmse'\]"):
        summary(frame.drop(columns="rmse"))
    with pytest.raises(InputError, match="empty"):
        summary(frame.iloc[:0])
    with pytest.raises(InputError, match="more than once"):
        summary(pd.concat([frame, frame]))
    frame.loc["ACTB", "pearson"] = np.nan
    with pytest.raises(InputError, match=r"NaN in \['pearson'\]"):
        summary(frame)
