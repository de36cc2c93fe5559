"""The gallery: a section that is shown was not trained on, and the gene is chosen without it."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image

from studies import gallery as study
from studies._tissues import TISSUES, Tissue


def exhibit(*markers: str, held_out: str = "S2", **ids: str) -> study.Exhibit:
    return study.Exhibit("Simulated tissue", held_out, dict.fromkeys(markers, "nothing real"), ids)


def result(**expected: float) -> AnnData:
    var = pd.DataFrame({"st_gchb_expected_pcc": expected.values()}, index=list(expected), dtype=float)
    return AnnData(np.zeros((2, len(expected)), np.float32), var=var)


def test_exhibits_are_of_known_data_sets_and_their_pictures_are_there():
    assert set(study.EXHIBITS) <= set(TISSUES)
    folder = study.build_parser().get_default("out")
    pictures = [folder / f"{name}.jpg" for name in study.EXHIBITS]
    sizes = [path.stat().st_size for path in pictures]
    assert max(sizes) <= study.MAX_BYTES
    record = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
    text = (folder / "gallery.md").read_text(encoding="utf-8")
    for name, one in study.EXHIBITS.items():
        shown = record["tissues"][name]
        assert shown["held_out"] == one.held_out
        assert one.held_out not in shown["trained_on"]
        assert not one.markers or shown["gene"] in one.markers
        assert study.caption(name, one, shown, record["seed"]) in text


def test_the_marker_of_highest_expected_correlation_is_chosen():
    pred = result(A=0.2, ENS1=0.4, C=0.9)
    assert study.choose(pred, exhibit("A", "B", B="ENS1")) == "B"
    assert study.choose(pred, exhibit("A", "absent")) == "A"
    assert study.choose(pred, exhibit()) == "C"
    with pytest.raises(study.InputError, match="none of the markers"):
        study.choose(pred, exhibit("absent"))


def test_a_picture_is_as_good_as_its_size_allows(tmp_path, monkeypatch):
    def noise():
        figure = plt.figure(figsize=(2, 2))
        figure.figimage(np.random.default_rng(0).random((200, 200, 3)))
        return figure

    best = study.write_picture(noise(), tmp_path / "noise.jpg").stat().st_size
    monkeypatch.setattr(study, "MAX_BYTES", int(0.7 * best))
    assert study.write_picture(noise(), tmp_path / "noise.jpg").stat().st_size <= int(0.7 * best)
    monkeypatch.setattr(study, "MAX_BYTES", 1000)
    with pytest.raises(study.InputError, match="Draw it smaller"):
        study.write_picture(noise(), tmp_path / "noise.jpg")


def test_the_command_shows_a_section_that_was_held_out(tmp_path, monkeypatch, tissue, short_trainings):
    seen = []
    setup = study.STGCHB.setup_anndata
    monkeypatch.setattr(
        study.STGCHB, "setup_anndata", lambda adata, **options: (seen.append(adata), setup(adata, **options))
    )
    monkeypatch.setattr(study, "embedded", lambda *given: tissue)
    monkeypatch.setitem(TISSUES, "one", Tissue("one", "slice", lambda data: []))
    monkeypatch.setitem(study.EXHIBITS, "one", exhibit(*tissue.var_names))
    call = ["--data", str(tmp_path), "--tissues", "one", "--n-top-genes", "20", "--device", "cpu", "--quiet"]
    assert study.main([*call, "--out", str(tmp_path / "out")]) == 0
    assert [sorted(set(adata.obs["slice"])) for adata in seen] == [["S1", "S3"]]
    (record,) = json.loads((tmp_path / "out/gallery.json").read_text(encoding="utf-8"))["tissues"].values()
    assert record["trained_on"] == ["S1", "S3"]
    text = (tmp_path / "out/gallery.md").read_text(encoding="utf-8")
    for part in ("(one.jpg)", "section S2, which was held out", "trained on S1 and S3", "seed 0", record["gene"]):
        assert part in text
    with Image.open(tmp_path / "out/one.jpg") as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tissues", "liver"], "--tissues ['liver']: unknown; known are her2st"),
        (["--tissues", "one"], "expected 'S9' and another one"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, tissue, options, said):
    monkeypatch.setattr(study, "embedded", lambda *given: tissue)
    monkeypatch.setitem(TISSUES, "one", Tissue("one", "slice", lambda data: []))
    monkeypatch.setitem(study.EXHIBITS, "one", exhibit("A", held_out="S9"))
    assert study.main(["--data", str(tmp_path), "--out", str(tmp_path), "--quiet", *options]) == 2
    assert said in capsys.readouterr().err
