"""The study of the paper's parts: every variant is a model that can be made, and the table says which is which."""

from __future__ import annotations

import pandas as pd
import pytest

from st_gchb.model import PRESETS, settings_for
from studies import parts as study
from studies._tissues import TISSUES, Tissue


@pytest.mark.parametrize("part", study.PARTS)
def test_a_variant_differs_from_the_default_in_what_it_names(part):
    settings = settings_for("default", study.PARTS[part])
    assert (settings == PRESETS["default"]) == (part == "default")


def test_each_variant_is_asked_for_retrieval_alone_and_for_the_whole(tissue, short_trainings):
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    names = ["default", "GraphSAGE, both branches"]
    plain = Tissue("drawn", "slice", lambda data: [])
    found = study.scores(adata, plain, names, n_top_genes=15, seeds=[0], device="cpu")
    assert len(found) == 2 * 2 * 2
    assert set(found["part"]) == set(names)
    measured = found.set_index(["fold", "seed", "part", "read_out"])["AG"]
    assert not measured.unstack("read_out").nunique(axis=1).eq(1).any(), "both read-outs give the same"
    assert not measured.unstack("part").nunique(axis=1).eq(1).all(), "both variants give the same"


def test_the_command_writes_a_table(tmp_path, monkeypatch):
    def made_up(adata, tissue, parts, **options):
        assert parts == ["default"]
        rows = [
            ("S1", 0.1, 0.2, 0.3, "retrieval alone"),
            ("S2", 0.3, 0.4, 0.5, "retrieval alone"),
            ("S1", 1, 2, 3, "whole"),
        ]
        return pd.DataFrame(rows, columns=["fold", *study.CRITERION, "read_out"]).assign(part="default")

    monkeypatch.setattr(study, "scores", made_up)
    monkeypatch.setattr(study, "embedded", lambda *given: None)
    call = ["--data", str(tmp_path), "--tissues", "visium_lung", "--parts", "default", "--device", "cpu", "--quiet"]
    assert study.main([*call, "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out/parts.md").read_text(encoding="utf-8").splitlines()
    title = TISSUES["visium_lung"].title
    assert lines[0] == f"| part | {title}, retrieval alone | {title}, whole |"
    assert lines[2:] == ["| default | 0.200 0.300 0.400 | 1.000 2.000 3.000 |"]
    assert len(pd.read_csv(tmp_path / "out/parts.csv")) == 3
