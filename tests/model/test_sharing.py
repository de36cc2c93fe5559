"""Models on a hub: shared whole with a card, found again, and refused in plain words."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import st_gchb
from hub_server import TOKEN, Hub, running_hub
from st_gchb.errors import (
    ArgumentError,
    HubAccessError,
    HubError,
    HubNotFoundError,
    InputError,
    MissingFileError,
    ModelCardError,
    ModelFileError,
    NotTrainedError,
)
from st_gchb.model import STGCHB

FACTS = {"license_info": "cc-by-4.0", "training_data": "Two synthetic slices, made by st_gchb.datasets."}
FILES = {"README.md", "model.json", "network.safetensors", "reference.safetensors", "origin.parquet"}
NAME = "my-lab/breast"


@pytest.fixture(scope="module")
def pushed(model) -> Hub:
    """What a hub holds after the upload, and was asked for it; not to be changed."""
    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        model.push_to_hub(NAME, **FACTS, token=TOKEN)
    return hub


@pytest.fixture
def shared(pushed, hub) -> Hub:
    """A hub of the test's own that has the model, as if it had been uploaded there."""
    for name in ("repositories", "private", "asked"):
        setattr(hub, name, copy.deepcopy(getattr(pushed, name)))
    return hub


def pulled(source: str | Path = NAME, **options) -> STGCHB:
    return STGCHB.from_pretrained(source, token=TOKEN, accelerator="cpu", **options)


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_shared_model_answers_exactly_as_the_trained_one(model, shared, query):
    here, there = model.predict(query), pulled().predict(query)
    np.testing.assert_array_equal(here.layers["st_gchb"], there.layers["st_gchb"])
    np.testing.assert_array_equal(here.obs["st_gchb_confidence"], there.obs["st_gchb_confidence"])
    assert here.uns["st_gchb"]["model_id"] == there.uns["st_gchb"]["model_id"]


def test_the_folder_goes_up_whole_with_its_card_in_one_commit(shared):
    assert set(shared.repositories[NAME]["main"]) == FILES | {".gitattributes"}
    assert [asked for asked in shared.asked if "/commit/" in asked] == [f"POST /api/models/{NAME}/commit/main"]
    assert shared.private[NAME]


def test_where_it_is_and_who_sees_it(model, hub):
    assert model.push_to_hub(NAME, **FACTS, private=False, token=TOKEN) == f"{hub.url}/{NAME}"
    assert not hub.private[NAME]
    assert model.push_to_hub(NAME, **FACTS, create_pr=True, token=TOKEN) == f"{hub.url}/{NAME}/discussions/1"


def test_revisions_are_kept_apart(model, shared, query):
    first = next(commit for commit, files in shared.repositories[NAME].items() if "model.json" in files)
    before = dict(shared.repositories[NAME]["main"])
    model.push_to_hub(NAME, **FACTS | {"license_info": "mit"}, revision="v2", token=TOKEN)
    assert shared.repositories[NAME]["main"] == before
    assert metadata_of(shared.repositories[NAME]["v2"]["README.md"].decode())["license"] == "mit"
    assert pulled(revision="v2").model_id_ == pulled(revision=first).model_id_ == model.model_id_


def test_a_file_that_the_model_no_longer_has_is_removed_and_others_stay(model, shared):
    kept = shared.repositories[NAME]["main"] | {"index.safetensors": b"old", "notes.md": b"mine"}
    shared.put(NAME, kept)
    model.push_to_hub(NAME, **FACTS, token=TOKEN)
    assert set(shared.repositories[NAME]["main"]) == FILES | {".gitattributes", "notes.md"}


def test_a_folder_is_loaded_without_a_hub(model, hub, tmp_path):
    model.save(tmp_path / "model")
    model.write_model_card(tmp_path / "model", **FACTS)
    assert pulled(tmp_path / "model").model_id_ == pulled(str(tmp_path / "model")).model_id_ == model.model_id_
    assert hub.asked == []
    with pytest.raises(InputError, match="no revisions"):
        pulled(tmp_path / "model", revision="v1")


def test_only_files_of_a_model_are_fetched(shared):
    shared.put(NAME, shared.repositories[NAME]["main"] | {"setup.py": b"raise SystemExit", "data.h5ad": b"x" * 99})
    shared.asked.clear()
    pulled()
    fetched = {asked.rpartition("/")[2] for asked in shared.asked if asked.startswith("GET") and "/resolve/" in asked}
    assert fetched == FILES


def test_what_was_fetched_is_not_fetched_again_and_needs_no_hub(model, shared, monkeypatch, caplog):
    pulled()
    shared.asked.clear()
    pulled()
    assert not [asked for asked in shared.asked if asked.startswith("GET") and "/resolve/" in asked]
    assert pulled(local_files_only=True).model_id_ == model.model_id_
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pulled().model_id_ == model.model_id_
    assert "in the cache is used" in caplog.text


REFUSALS = [
    (401, "", HubAccessError, r"hf auth login"),
    (403, "", HubAccessError, r"hf auth login"),
    (401, "GatedRepo", HubAccessError, r"accept the terms"),
    (403, "GatedRepo", HubAccessError, r"accept the terms"),
    (404, "RepoNotFound", HubNotFoundError, r"There is no repository"),
    (404, "", HubNotFoundError, r"There is no repository"),
    (429, "", HubError, r"Wait, and call again"),
    (500, "", HubError, r"Call again"),
]
LISTING, FILE = r"GET /api/models/", r"(GET|HEAD) /my-lab/breast/resolve/"


@pytest.mark.parametrize(
    ("where", "status", "code", "kind", "told"),
    # A file that is listed and not there is no answer of a hub.
    [(LISTING, *one) for one in REFUSALS] + [(FILE, *one) for one in REFUSALS if one[0] != 404],
)
def test_refusals_say_what_to_do(shared, tmp_path, monkeypatch, where, status, code, kind, told):
    # The client waits between attempts.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    shared.refuse(where, status, code, "because")
    with pytest.raises(HubError, match=told) as caught:
        pulled()
    assert type(caught.value) is kind
    assert NAME in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not list((tmp_path / "hub_cache").rglob("*.safetensors"))


def test_terms_that_were_not_accepted_are_told_step_by_step(shared):
    shared.refuse("/api/models/", 403, "GatedRepo")
    with pytest.raises(PermissionError) as caught:
        pulled()
    words = str(caught.value)
    for step in ("huggingface.co", f"{shared.url}/{NAME}", "hf auth login", "HF_TOKEN", "models--my-lab--breast"):
        assert step in words


def test_half_a_file_is_no_model(shared, model):
    shared.cut = {"reference.safetensors"}
    with pytest.raises(HubError, match=r"broke off.*Nothing was loaded.*Call again"):
        pulled()
    shared.cut = set()
    assert pulled().model_id_ == model.model_id_


@pytest.mark.parametrize("name", sorted(FILES - {"README.md"}))
def test_a_file_that_was_put_there_in_half_is_no_model(shared, name):
    files = shared.repositories[NAME]["main"]
    shared.put(NAME, files | {name: files[name][: len(files[name]) // 2]})
    with pytest.raises(ModelFileError, match="damaged"):
        pulled()


def test_names_that_lead_nowhere(hub, tmp_path):
    hub.put("my-lab/other", {"config.json": b"{}", "pytorch_model.bin": b""})
    with pytest.raises(HubNotFoundError, match="no repository my-lab/none"):
        pulled("my-lab/none")
    with pytest.raises(HubNotFoundError, match="no revision 'v9'"):
        pulled("my-lab/other", revision="v9")
    hub.asked.clear()
    with pytest.raises(ModelFileError, match=r"no model of st-gchb.*config\.json.*push_to_hub"):
        pulled("my-lab/other")
    assert not [asked for asked in hub.asked if "/resolve/" in asked]
    for source in ("no folder", "a/b/c", "../model", tmp_path / "none", Path("my-lab/other")):
        with pytest.raises(MissingFileError, match="no model folder"):
            pulled(source)
    with pytest.raises(HubError, match=r"asks no server.*no copy"):
        pulled("my-lab/other", local_files_only=True)


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.parametrize("where", ["/preupload/", "/commit/"])
def test_a_refused_upload_leaves_the_repository_as_it_was(model, shared, monkeypatch, status, where):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    before = {branch: dict(files) for branch, files in shared.repositories[NAME].items()}
    shared.refuse(where, status, "", "because")
    with pytest.raises(HubError, match=r"Nothing was uploaded\. The repository is as it was"):
        model.push_to_hub(NAME, **FACTS | {"license_info": "mit"}, token=TOKEN)
    assert shared.repositories[NAME] == before
    with pytest.raises(HubError, match=r"The repository my-lab/new was made, and is empty"):
        model.push_to_hub("my-lab/new", **FACTS, token=TOKEN)
    assert set(shared.repositories["my-lab/new"]["main"]) == {".gitattributes"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_repository_that_may_not_be_made_is_not_there(model, hub, status):
    hub.refuse("POST /api/repos/create", status, "", "because")
    with pytest.raises(HubAccessError, match=r"write there.*Nothing was uploaded"):
        model.push_to_hub(NAME, **FACTS, token=TOKEN)
    assert hub.repositories == {}


def test_nobody_is_logged_in(model, hub):
    with pytest.raises(HubAccessError, match=r"hf auth login.*Nothing was uploaded"):
        model.push_to_hub(NAME, **FACTS, token=False)
    assert hub.repositories == {}


@pytest.mark.parametrize("missing", ["license_info", "training_data"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_card_without_data_or_license_is_refused_before_anything_is_asked(model, hub, tmp_path, missing, text):
    with pytest.raises(ModelCardError, match=missing):
        model.push_to_hub(NAME, **FACTS | {missing: text}, token=TOKEN)
    with pytest.raises(ModelCardError, match=missing):
        model.write_model_card(tmp_path / "card.md", **FACTS | {missing: text})
    assert hub.asked == []
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# My model\n", "no license"),
        ("---\nlicense: mit\n---\n# My model\n", "nothing of the data"),
        ("---\nlicense: mit\n---\n## Training data\n\n## Use\n\nso\n", "nothing of the data"),
        ("---\nlicense: [\n---\n## Training data\nbreast\n", "no YAML"),
        ("---\ntags: []\n---\n## Training data\nbreast\n", "no license"),
        (b"\xff\xfe", "UTF-8"),
        (None, "no card that can be read"),
    ],
)
def test_a_card_of_ones_own_is_read_first(model, hub, tmp_path, text, told):
    path = tmp_path / "card.md"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelCardError, match=told):
        model.push_to_hub(NAME, card=path, token=TOKEN)
    assert hub.asked == []


def test_an_edited_card_is_shared(model, hub, tmp_path):
    path = model.write_model_card(tmp_path / "card.md", **FACTS)
    path.write_text(path.read_text().replace("Two synthetic", "My two"), encoding="utf-8")
    model.push_to_hub(NAME, card=str(path), token=TOKEN)
    assert hub.repositories[NAME]["main"]["README.md"] == path.read_bytes()


def test_bad_names_and_models_are_refused_before_anything_is_asked(model, reference, hub):
    for name in ("breast", "a/b/c", "my lab/breast", "../breast", "my-lab/"):
        with pytest.raises(ArgumentError, match="owner/name"):
            model.push_to_hub(name, **FACTS, token=TOKEN)
    with pytest.raises(InputError, match="create_pr"):
        model.push_to_hub(NAME, **FACTS, revision="v1", create_pr=True, token=TOKEN)
    STGCHB.setup_anndata(reference, slice_key="slice")
    for call in (lambda m: m.push_to_hub(NAME, **FACTS), lambda m: m.write_model_card("card.md", **FACTS)):
        with pytest.raises(NotTrainedError):
            call(STGCHB(reference, n_top_genes=10, k=5))
    assert hub.asked == []


def test_a_card_is_not_overwritten_unasked(model, tmp_path):
    path = model.write_model_card(tmp_path, **FACTS)
    assert path == tmp_path / "README.md"
    path.write_text("mine")
    with pytest.raises(InputError, match="overwrite=True"):
        model.write_model_card(tmp_path, **FACTS)
    assert path.read_text() == "mine"
    model.write_model_card(tmp_path, **FACTS, overwrite=True)
    assert "mine" not in path.read_text()


def card_of(model: STGCHB, folder: Path, **more) -> str:
    return model.write_model_card(folder / "card.md", **FACTS | more, overwrite=True).read_text(encoding="utf-8")


def test_the_card_says_what_the_model_is(model, tmp_path):
    card = card_of(
        model, tmp_path, tissues=["breast"], training_data_url="https://x.org/d", repo_id=NAME, references="Us 2026."
    )
    rules = model.rules_
    metadata = metadata_of(card)
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["library_name"] == "st-gchb"
    assert {"tissue:breast", "model_cls_name:STGCHB"} < set(metadata["tags"])
    assert f'STGCHB.from_pretrained("{NAME}")' in card
    assert rules.features.first.weights_sha256 in card
    assert "no weights; part of st-gchb" in card
    assert f"{len(rules.expression.genes)} genes" in card
    counts = pd.Series(model.bank_.slices).value_counts()
    for name, n in counts.items():
        assert re.search(rf"\| `{name}` \|.* {n} \|", card)
    middle = float(np.nanmedian(model.calibration_.expected_pcc))
    assert f"median {middle:.2f}" in card
    best = rules.expression.genes[int(np.nanargmax(model.calibration_.expected_pcc))]
    assert re.search(rf"correlation \|\n\| --- \| --- \|\n\| `{best}` \|", card)
    for part in ("https://x.org/d", "Us 2026.", "Two synthetic slices", model.model_id_, "not for diagnosis"):
        assert part in card
    assert st_gchb.citation() in card


def test_a_model_without_calibration_says_so(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "calibration_", None)
    assert "calibrate=False" in card_of(model, tmp_path)


def test_names_from_files_are_shown_as_text(model, tmp_path, monkeypatch):
    genes = list(model.rules_.expression.genes)
    odd = ["<script>alert(1)</script>", "A|B", "`x`", "a\n## License\n"]
    expression = replace(model.rules_.expression, genes=pd.Index([*odd, *genes[4:]]))
    monkeypatch.setattr(model, "rules_", replace(model.rules_, expression=expression))
    card = card_of(model, tmp_path)
    assert "`<script>alert(1)</script>`" in card
    assert r"`A\|B`" in card
    assert "`` `x` ``" in card
    assert card.count("\n## License\n") == 1


def test_paths_of_this_machine_are_not_shared(model, hub, tmp_path, monkeypatch):
    spec = replace(model.rules_.features.first, weights="/home/anna/secret/uni.bin")
    monkeypatch.setattr(model, "rules_", replace(model.rules_, features=type(model.rules_.features)([spec])))
    card = card_of(model, tmp_path)
    assert "`uni.bin`" in card
    assert "anna" not in card
    model.push_to_hub(NAME, **FACTS, token=TOKEN)
    assert pulled().rules_.features.first.weights == "uni.bin"
    assert not [name for name, content in hub.repositories[NAME]["main"].items() if b"anna" in content]
