"""Encoders of a hub: small networks with the published configurations go the way that the large ones go."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from PIL import Image
from safetensors.torch import load, save_file

import st_gchb
from st_gchb.errors import (
    EncoderError,
    MissingExtraError,
    WeightsAccessError,
    WeightsUnavailableError,
)
from st_gchb.model import STGCHB
from st_gchb.pp import FeatureSpec, embed_patches, embed_patches_like, get_encoder, list_encoders, register_encoder
from st_gchb.pp.encoders import PATHOLOGY_ENCODERS, license_of

timm = pytest.importorskip("timm")

PATCHES = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}
BY_TIMM = [name for name, entry in PATHOLOGY_ENCODERS.items() if entry.loader == "timm"]
BY_TRANSFORMERS = [name for name, entry in PATHOLOGY_ENCODERS.items() if entry.loader == "transformers"]


def built(name: str, **more: Any) -> torch.nn.Module:
    """Network of timm by the table."""
    entry = PATHOLOGY_ENCODERS[name]
    layers = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "SiLU": torch.nn.SiLU}
    arguments = {key: layers.get(value, value) if value else value for key, value in entry.arguments.items()}
    return timm.create_model(entry.architecture, num_classes=0, **arguments | more)


@pytest.fixture
def small(monkeypatch):
    """The table with the same recipes for networks of one block."""
    for name in BY_TIMM:
        entry = PATHOLOGY_ENCODERS[name]
        monkeypatch.setitem(PATHOLOGY_ENCODERS, name, replace(entry, arguments={**entry.arguments, **SMALL}))


def files_of_timm(name: str, folder: Path, *, torch_file: bool = False) -> dict[str, bytes]:
    """A repository of timm's format: config.json and weights."""
    torch.manual_seed(3)
    model, entry = built(name, **SMALL), PATHOLOGY_ENCODERS[name]
    plain = {key: value for key, value in {**entry.arguments, **SMALL}.items() if not isinstance(value, str)}
    # Cards give a normalization of their own, and not always that of the recipe.
    config = {
        "architecture": entry.architecture,
        "num_classes": 0,
        "model_args": plain,
        "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.1, 0.1, 0.1], "std": [0.9, 0.9, 0.9]},
    }
    folder.mkdir(exist_ok=True)
    if torch_file:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected_of(name: str, folder: Path) -> torch.Tensor:
    """Features by the recipe on the card, written out."""
    entry = PATHOLOGY_ENCODERS[name]
    torch.manual_seed(3)
    model = built(name, **SMALL).eval()
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in entry.normalization)
    with torch.no_grad():
        answer = model((PATCHES / 255 - mean) / std)
    if entry.pooling == "class token":
        return answer
    return torch.cat([answer[:, 0], answer[:, 1 + entry.arguments.get("reg_tokens", 0) :].mean(1)], dim=1)


@pytest.mark.parametrize("name", BY_TIMM)
def test_a_short_name_is_enough(small, hub, tmp_path, name):
    entry = PATHOLOGY_ENCODERS[name]
    commit = hub.put(entry.repo_id, files_of_timm(name, tmp_path / "files"))
    encoder = get_encoder(name)
    torch.testing.assert_close(encoder(PATCHES), expected_of(name, tmp_path), rtol=1e-4, atol=1e-4)
    assert (encoder.mean, encoder.std) == entry.normalization
    assert (encoder.input_px, encoder.name, encoder.weights) == (224, name, f"default@{commit}")
    # The same by its address, whatever its capitals, by the downloaded folder, and by the weights file alone.
    others = [
        get_encoder(f"hf-hub:{entry.repo_id.lower()}"),
        get_encoder(name, tmp_path / "files"),
        get_encoder(name, tmp_path / "files" / "model.safetensors"),
        get_encoder(name, f"default@{commit}"),
    ]
    assert {one.weights_sha256 for one in others} == {encoder.weights_sha256}
    assert all(torch.equal(one(PATCHES), encoder(PATCHES)) for one in others)


@pytest.mark.parametrize("name", BY_TIMM)
def test_the_published_networks_have_the_size_that_the_table_says(name):
    entry = PATHOLOGY_ENCODERS[name]
    with torch.device("meta"):
        model = built(name, weight_init="skip").eval()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    # All blocks give what they take, and a pass of shapes takes a second through forty.
    del model.blocks[1:]
    answer = model(torch.zeros(1, 3, entry.input_px, entry.input_px, device="meta"))
    assert round(n_parameters / 1e6) == entry.millions
    assert answer.shape[-1] * (1 if entry.pooling == "class token" else 2) == entry.n_features
    assert answer.ndim == (2 if entry.pooling == "class token" else 3)


def files_of_transformers(folder: Path, *, size: int = 224, **more: Any) -> dict[str, bytes]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=size, patch_size=14, **more
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3], "crop_size": {"height": 224}})
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", BY_TRANSFORMERS)
def test_a_short_name_is_enough_for_networks_of_transformers(hub, tmp_path, name):
    entry = PATHOLOGY_ENCODERS[name]
    # Midnight's positions are stored for larger images.
    commit = hub.put(entry.repo_id, files_of_transformers(tmp_path / "files", size=518, use_swiglu_ffn=True))
    import transformers

    model = transformers.Dinov2Model.from_pretrained(tmp_path / "files").eval()
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in entry.normalization)
    with torch.no_grad():
        tokens = model(pixel_values=(PATCHES / 255 - mean) / std).last_hidden_state
    alone = entry.pooling == "class token"
    expected = tokens[:, 0] if alone else torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    encoder = get_encoder(name)
    torch.testing.assert_close(encoder(PATCHES), expected, rtol=1e-4, atol=1e-4)
    assert (encoder.mean, encoder.std) == entry.normalization
    assert encoder.weights == f"default@{commit}"
    assert get_encoder(name, tmp_path / "files").weights_sha256 == encoder.weights_sha256
    with pytest.raises(EncoderError, match=r"does not tell what network.*the folder with its config\.json"):
        get_encoder(name, tmp_path / "files" / "model.safetensors")


def test_any_repository_of_transformers_or_timm(small, hub, tmp_path):
    hub.put("lab/dino", files_of_transformers(tmp_path / "dino"))
    encoder = get_encoder("hf-hub:lab/dino")
    assert (encoder.n_features, encoder.input_px) == (48, 224)
    assert (encoder.mean, encoder.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    hub.put("lab/vit", files_of_timm("uni", tmp_path / "vit", torch_file=True))
    encoder = get_encoder("hf-hub:lab/vit")
    assert (encoder.n_features, encoder.mean, encoder.std) == (24, (0.1, 0.1, 0.1), (0.9, 0.9, 0.9))


def test_revisions_are_kept_apart(small, hub, tmp_path):
    files = files_of_timm("uni", tmp_path / "files")
    hub.put("MahmoodLab/UNI", files)
    state = {"cls_token": torch.ones(1, 1, 24)}
    save_file(load(files["model.safetensors"]) | state, tmp_path / "other.safetensors")
    second = hub.put(
        "MahmoodLab/UNI", files | {"model.safetensors": (tmp_path / "other.safetensors").read_bytes()}, "v2"
    )
    first, other = get_encoder("hf-hub:MahmoodLab/UNI"), get_encoder("hf-hub:MahmoodLab/UNI@v2")
    assert first.weights_sha256 != other.weights_sha256
    assert other.weights == f"default@{second}"
    assert get_encoder("uni", f"default@{second}").weights_sha256 == other.weights_sha256
    with pytest.raises(WeightsUnavailableError, match="no revision 'v9'"):
        get_encoder("hf-hub:MahmoodLab/UNI@v9")


def slide() -> AnnData:
    return AnnData(
        obsm={"spatial": np.array([[60.0, 60.0], [80.0, 90.0]])},
        uns={
            "spatial": {
                "S": {
                    "images": {"hires": np.random.default_rng(0).integers(0, 255, (160, 160, 3)).astype(np.uint8)},
                    "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 20.0},
                }
            }
        },
    )


def test_a_query_takes_the_revision_of_its_reference(small, hub, tmp_path):
    files = files_of_timm("uni", tmp_path / "files")
    commit = hub.put("MahmoodLab/UNI", files)
    adata = slide()
    embed_patches(adata, encoder="uni", patch_um=80, um_per_px=2.0, n_views=1, cache=False)
    rule = FeatureSpec.from_uns(adata.uns["X_patch"])
    assert (rule.encoder, rule.weights) == ("uni", f"default@{commit}")
    # The main branch goes on; the query's features are those of the reference all the same.
    hub.repositories["MahmoodLab/UNI"]["main"] = {"README.md": b"moved"}
    query = slide()
    embed_patches_like(query, rule, um_per_px=2.0, cache=False)
    np.testing.assert_array_equal(query.obsm["X_patch"], adata.obsm["X_patch"])


def test_without_network_what_was_fetched_is_used(small, hub, tmp_path, monkeypatch, caplog):
    hub.put("MahmoodLab/UNI", files_of_timm("uni", tmp_path / "files"))
    before = get_encoder("uni")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert get_encoder("uni").weights == before.weights
    assert "in the cache is used" in caplog.text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WeightsUnavailableError, match=r"cannot be reached.*weights=.*folder.*texture"):
        get_encoder("uni")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["GET /api/models/", "/resolve/"])
def test_a_license_that_was_not_accepted(small, hub, tmp_path, status, where):
    hub.put("MahmoodLab/UNI", files_of_timm("uni", tmp_path / "files"))
    hub.refuse(where, status, "GatedRepo", "Access to model MahmoodLab/UNI is restricted")
    with pytest.raises(WeightsAccessError) as caught:
        get_encoder("uni")
    words = str(caught.value)
    for step in (
        f"{hub.url}/MahmoodLab/UNI",
        "accept the terms",
        "hf auth login",
        "models--MahmoodLab--UNI",
        "weights=",
    ):
        assert step in words
    assert isinstance(caught.value, PermissionError)
    assert isinstance(caught.value, FileNotFoundError)


def test_terms_are_told_for_names_of_timm_too(hub, monkeypatch):
    hub.put("MahmoodLab/UNI", {"config.json": b"{}"})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.refuse("/resolve/", 403, "GatedRepo")
    with pytest.raises(WeightsAccessError, match=r"MahmoodLab/UNI.*accept the terms"):
        get_encoder("timm:hf-hub:MahmoodLab/UNI")


def test_half_a_file_is_no_encoder(small, hub, tmp_path):
    files = files_of_timm("uni", tmp_path / "files")
    hub.put("MahmoodLab/UNI", files)
    hub.cut = {"model.safetensors"}
    with pytest.raises(WeightsUnavailableError, match="broke off"):
        get_encoder("uni")
    hub.cut = set()
    hub.put("MahmoodLab/UNI", files | {"model.safetensors": files["model.safetensors"][:2000]})
    with pytest.raises(EncoderError, match="damaged"):
        get_encoder("uni")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"README.md": b""}, r"has no config\.json"),
        ({"config.json": b"{}"}, r"has no model\.safetensors or pytorch_model\.bin"),
        ({"config.json": b"{", "model.safetensors": b""}, "cannot be read"),
        ({"config.json": b"[1]", "model.safetensors": b""}, "holds a list"),
        ({"config.json": b"{}", "model.safetensors": b""}, "neither an architecture of timm nor a model_type"),
        ({"config.json": b'{"model_type": "swin"}', "model.safetensors": b""}, "'swin' of transformers"),
        (
            {"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}', "model.safetensors": b""},
            "not run",
        ),
    ],
)
def test_repositories_that_hold_no_encoder(hub, files, told):
    hub.put("lab/other", files)
    with pytest.raises(EncoderError, match=told):
        get_encoder("hf-hub:lab/other")


def test_weights_of_another_network(small, hub, tmp_path):
    files = files_of_timm("uni2-h", tmp_path / "files")
    hub.put(
        "MahmoodLab/UNI", files_of_timm("uni", tmp_path / "uni") | {"model.safetensors": files["model.safetensors"]}
    )
    with pytest.raises(EncoderError, match=r"do not fit the network"):
        get_encoder("uni")
    # Of a file alone, timm loads what there is.
    own = load(files_of_timm("uni", tmp_path / "lacking")["model.safetensors"])
    del own["blocks.0.attn.qkv.weight"]
    save_file(own, tmp_path / "lacking.safetensors")
    with pytest.raises(EncoderError, match="blocks.0.attn.qkv.weight|do not fit"):
        get_encoder("uni", tmp_path / "lacking.safetensors")
    dino = files_of_transformers(tmp_path / "dino")
    save_file({"layernorm.weight": torch.ones(24)}, tmp_path / "part.safetensors")
    # The format that transformers asks for.
    save_file({"layernorm.weight": torch.ones(24)}, tmp_path / "part.safetensors", {"format": "pt"})
    hub.put("owkin/phikon-v2", dino | {"model.safetensors": (tmp_path / "part.safetensors").read_bytes()})
    with pytest.raises(EncoderError, match="tensors are missing"):
        get_encoder("phikon-v2")


class Bomb:
    def __reduce__(self):
        return (open, ("bomb_went_off", "w"))


@pytest.mark.parametrize("name", ["uni", "phikon-v2"])
def test_code_in_a_weights_file_is_not_run(small, hub, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    files = files_of_timm("uni", tmp_path / "f") if name == "uni" else files_of_transformers(tmp_path / "f")
    del files["model.safetensors"]
    hub.put(PATHOLOGY_ENCODERS[name].repo_id, files | {"pytorch_model.bin": pickle.dumps({"a": Bomb()})})
    with pytest.raises(EncoderError, match="holds more than tensors"):
        get_encoder(name)
    assert not (tmp_path / "bomb_went_off").exists()


def test_an_encoder_that_needs_its_own_code_says_how(hub):
    with pytest.raises(EncoderError, match=r"authors' package.*mahmoodlab/CONCH.*register_encoder"):
        get_encoder("conch")
    assert hub.asked == []


def test_packages_that_are_not_installed(monkeypatch, hub, tmp_path, small):
    hub.put("owkin/phikon-v2", files_of_transformers(tmp_path / "dino"))
    hub.put("MahmoodLab/UNI", files_of_timm("uni", tmp_path / "uni"))
    for name, package in (("phikon-v2", "transformers"), ("uni", "timm")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"pip install 'st-gchb\[{package}\]'"):
            get_encoder(name)


def test_paths_and_names_that_lead_nowhere(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsUnavailableError, match="no such weights file"):
        get_encoder("uni", tmp_path / "none.bin")
    with pytest.raises(WeightsUnavailableError, match=r"has no config\.json"):
        get_encoder("uni", tmp_path / "empty")
    with pytest.raises(EncoderError, match="weights=None makes none"):
        get_encoder("midnight", None)
    with pytest.raises(st_gchb.errors.ArgumentError, match="owner/name"):
        get_encoder("hf-hub:nowhere")
    with pytest.raises(EncoderError, match="'uni2-h'"):
        get_encoder("uni2")


def test_random_weights_need_no_hub(small, hub, caplog):
    encoder = get_encoder("uni", None)
    assert (encoder.weights, encoder.n_features) == ("none", 24)
    assert "random weights" in caplog.text
    assert hub.asked == []


@pytest.mark.parametrize("name", [*PATHOLOGY_ENCODERS, "hf-hub:lab/vit"])
def test_short_names_stay_the_packages_own(name):
    with pytest.raises(EncoderError, match="package's own encoders"):
        register_encoder(name, lambda: None)


def test_the_list_is_a_table_of_facts():
    table = list_encoders()
    wanted = {"uni", "uni2-h", "virchow2", "h-optimus-0", "h-optimus-1", "phikon-v2", "conch", "gigapath", "midnight"}
    assert set(table.index) == wanted
    assert table["repo_id"].str.fullmatch(r"[\w-]+/[\w-]+").all()
    assert (
        table[["repo_id", "license", "loader", "n_features", "input_px", "patch_um", "mean", "std"]].notna().all().all()
    )
    assert table["um_per_px"].between(0.4, 0.6).all()
    assert pd.isna(table.loc["midnight", "gated"])
    for name in wanted:
        assert table.loc[name, "license"] in license_of(name)
        assert (f"huggingface.co/{table.loc[name, 'repo_id']}" in license_of(name)) == (
            table.loc[name, "gated"] in ("terms", "by hand")
        )
    assert "torchvision" in license_of("resnet50")
    assert license_of("timm:resnet10t") == license_of("my-own") == "not known to st-gchb"


def test_a_model_finds_the_weights_of_its_reference_again(small, hub, tmp_path):
    commit = hub.put("MahmoodLab/UNI", files_of_timm("uni", tmp_path / "files"))
    tissue = st_gchb.datasets.synthetic_tissue(2, n_rows=5, n_cols=5, n_genes=20)
    embed_patches(tissue, encoder="uni", patch_um=112, n_views=1, cache=False)
    STGCHB.setup_anndata(tissue, slice_key="slice")
    model = STGCHB(tissue, n_top_genes=10, k=5)
    model.train(max_epochs=1, calibrate=False, enable_progress_bar=False, accelerator="cpu")
    model.save(tmp_path / "model")
    assert "CC BY-NC-ND 4.0, terms to be accepted" in model.write_model_card(
        tmp_path, license_info="mit", training_data="synthetic"
    ).read_text(encoding="utf-8")
    hub.repositories["MahmoodLab/UNI"]["main"] = {"README.md": b"moved"}
    pixels = tissue.uns["spatial"]["S1"]["images"]["hires"]
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "slide.png")
    options = {"um_per_px": 1.0, "spacing_um": 150.0, "tissue": "all"}
    report = st_gchb.cohort.predict_slides(tmp_path / "model", [tmp_path / "slide.png"], tmp_path / "out", **options)
    assert set(report["status"]) == {"done"}
    query = st_gchb.pp.tile_tissue(tmp_path / "slide.png", **options)
    found = STGCHB.load(tmp_path / "model", accelerator="cpu").predict(query)
    assert found.uns["st_gchb"]["weights"] == f"default@{commit}"
    made = st_gchb.cohort.embed_slides(
        [tmp_path / "slide.png"], tmp_path / "made", encoder="uni", weights=f"default@{commit}", n_views=1, **options
    )
    assert set(made["status"]) == {"done"}
