"""The steps of the surroundings are chosen for a data set on the others alone."""

from __future__ import annotations

import pandas as pd
import pytest

from st_gchb.evaluate import METHODS
from st_gchb.model import PRESETS
from studies import surroundings as study
from studies._tissues import TISSUES, Tissue


def scores(**best: int) -> pd.DataFrame:
    """Scores of data sets on each of which one number of steps is best, by 10 %, whatever the level."""
    rows = []
    for level, (name, own) in enumerate(best.items(), start=1):
        for steps in study.STEPS:
            value = 0.1 * level * (1.1 if steps == own else 1.0)
            rows.append({"tissue": name, "steps": steps} | dict.fromkeys(study.CRITERION, value))
    return pd.DataFrame(rows)


def test_a_data_set_has_no_part_in_its_own_choice():
    assert study.chosen(scores(a=48, b=12, c=12)) == {"a": 12, "b": 12, "c": 12}
    assert study.chosen(scores(a=48, b=24)) == {"a": 24, "b": 48}
    assert study.relative(scores(a=48, b=12)).loc["b", 12] == pytest.approx(1.1)


def test_the_default_is_among_the_steps():
    assert PRESETS["default"].context_surroundings in study.STEPS


def test_the_command_writes_a_table(tissue, tmp_path, monkeypatch, short_trainings):
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    monkeypatch.setattr(study, "STEPS", (0, 4))
    monkeypatch.setattr(study, "embedded", lambda *given: adata)
    for name in ("one", "two"):
        monkeypatch.setitem(TISSUES, name, Tissue(f"tissue {name}", "slice", lambda data: []))
    call = ["--data", str(tmp_path), "--tissues", "one", "two", "--n-top-genes", "15", "--device", "cpu", "--quiet"]
    call += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert study.main(call) == 0
    lines = (tmp_path / "out/surroundings.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| tissue | without | 4 steps | chosen on the others |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| tissue one", "| tissue two", "| mean, relative"]
    assert lines[2].split("|")[2:] == lines[3].split("|")[2:], "the same data under two names"
    assert len(pd.read_csv(tmp_path / "out/surroundings.csv")) == 4
    assert METHODS["default"]
