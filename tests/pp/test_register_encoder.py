"""Encoders of others, registered under a name."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import torch
from torch import nn

import st_gchb
from st_gchb._errors import ArgumentError, EncoderError, WeightsUnavailableError
from st_gchb.model import STGCHB
from st_gchb.pp import FeatureSpec, embed_patches_like, get_encoder, register_encoder
from st_gchb.pp.encoders import FACTORIES

PATCHES = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    FACTORIES.clear()


class MeanColor(nn.Module):
    input_px = 16

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def transform(self, patches):
        return patches.float() / 255

    def forward(self, rgb):
        return self.gain * rgb.mean((2, 3))


def test_a_registered_name_gives_the_factorys_encoder():
    assert register_encoder("mean-color", MeanColor) is MeanColor
    encoder = get_encoder("mean-color")
    assert (encoder.name, encoder.weights, encoder.input_px, encoder.n_features) == ("mean-color", "default", 16, 3)
    torch.testing.assert_close(encoder(PATCHES), (PATCHES.float() / 255).mean((2, 3)))
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_a_decorator_leaves_the_function_as_it_is():
    @register_encoder("color")
    def color():
        return get_encoder(MeanColor(2.0), transform=lambda patches: patches.float())

    assert color().name == "module:MeanColor"
    torch.testing.assert_close(get_encoder("color")(PATCHES), 2 * PATCHES.float().mean((2, 3)))
    assert get_encoder("color").identity != get_encoder(MeanColor(2.0)).identity


def test_weights_are_passed_to_a_factory_that_takes_them():
    given = []

    @register_encoder("color")
    def color(weights):
        given.append(weights)
        return MeanColor(2.0)

    assert [get_encoder("color", weights).weights for weights in ("default", None, "w.pt")] == [
        "default",
        "none",
        "w.pt",
    ]
    assert given == ["default", None, "w.pt"]
    register_encoder("plain", MeanColor)
    with pytest.raises(EncoderError, match="weights='w.pt'.*'plain' has no argument weights"):
        get_encoder("plain", "w.pt")
    with pytest.raises(EncoderError, match="Leave it out"):
        get_encoder("plain", transform=lambda patches: patches)


def test_a_taken_name_is_refused_and_replaced_on_request():
    register_encoder("color", MeanColor)
    with pytest.raises(EncoderError, match="'color' is registered already.*overwrite=True"):
        register_encoder("color", lambda: MeanColor(3.0))
    assert get_encoder("color").module.gain == 1
    register_encoder("color", lambda: MeanColor(3.0), overwrite=True)
    assert get_encoder("color").module.gain == 3


@pytest.mark.parametrize("name", ["texture", "resnet50", "timm:uni", "module:Net"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_names_of_the_package_stay_its_own(name, overwrite):
    with pytest.raises(EncoderError, match="package's own encoders. Choose another"):
        register_encoder(name, MeanColor, overwrite=overwrite)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: register_encoder(""), "name=''; expected a name"),
        (lambda: register_encoder(" color "), "without space"),
        (lambda: register_encoder(3), "name=3; expected text"),
        (lambda: register_encoder("color", MeanColor()), None),
        (lambda: register_encoder("color", 3), "factory=3; expected a function or None"),
        (lambda: register_encoder("color")(3), "found a int for 'color'; expected a function"),
        (lambda: register_encoder("color", MeanColor, overwrite="yes"), "overwrite='yes'; expected True or False"),
    ],
)
def test_bad_registrations(call, match):
    if match is None:
        # A module can be called: it is told when it is asked for an encoder.
        call()
        with pytest.raises(EncoderError, match="'color' failed .TypeError"):
            get_encoder("color")
        return
    with pytest.raises(ArgumentError, match=match):
        call()
    assert not FACTORIES


def lost():
    raise FileNotFoundError("weights.pt")


class Bare(nn.Module):
    def forward(self, rgb):
        return rgb


BAD = {
    "nothing": (lambda: None, "returned a NoneType; expected a torch.nn.Module"),
    "no transform": (Bare, "returned a Bare; expected a torch.nn.Module with the attributes"),
    "another name": (lambda: get_encoder("texture"), "returned the encoder 'texture'"),
    "an argument": (lambda size: MeanColor(), "failed .TypeError: .*size"),
    "a lost file": (lost, "failed .FileNotFoundError: weights.pt"),
    "NaN": (lambda: MeanColor(float("nan")), "no finite features"),
}


@pytest.mark.parametrize("name", BAD)
def test_factories_that_give_no_encoder(name):
    factory, match = BAD[name]
    register_encoder("color", factory)
    with pytest.raises(EncoderError, match=match):
        get_encoder("color")


def test_errors_of_the_package_pass_a_factory():
    register_encoder("color", lambda: get_encoder("resnet18", "nowhere.pth"))
    with pytest.raises(WeightsUnavailableError, match="nowhere.pth"):
        get_encoder("color")


def test_a_name_that_is_not_registered_is_told_with_those_that_are():
    with pytest.raises(EncoderError, match="registered in this process .*there is none"):
        get_encoder("colour")
    register_encoder("color", MeanColor)
    with pytest.raises(EncoderError, match="Did you mean 'color'.*registered in this process .* .'color'."):
        get_encoder("colour")


def slide():
    return st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=30)


def test_further_features_are_made_by_the_name():
    register_encoder("color", MeanColor)
    first, second = slide(), slide()
    st_gchb.pp.embed_patches(first, encoder="color", patch_um=150, cache=False)
    rule = FeatureSpec.from_uns(first.uns["X_patch"])
    embed_patches_like(second, rule, cache=False)
    np.testing.assert_array_equal(first.obsm["X_patch"], second.obsm["X_patch"])
    register_encoder("color", lambda: MeanColor(2.0), overwrite=True)
    with pytest.raises(EncoderError, match="encoder 'color': the weights .* have the hash"):
        embed_patches_like(slide(), rule, cache=False)
    FACTORIES.clear()
    with pytest.raises(EncoderError, match=r"'color', which is not registered in this process.*register_encoder"):
        embed_patches_like(slide(), rule, cache=False)


PROGRAM = """
import sys, anndata, torch, st_gchb
from st_gchb.model import STGCHB

class MeanColor(torch.nn.Module):
    input_px = 16
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.0))
    def transform(self, patches):
        return patches.float() / 255
    def forward(self, rgb):
        return self.gain * rgb.mean((2, 3))

model, query = STGCHB.load("model"), anndata.read_h5ad("query.h5ad")
try:
    model.predict(query)
except st_gchb.errors.EncoderError as error:
    print(error)
st_gchb.pp.register_encoder("color", MeanColor)
model.predict(query).write_h5ad("predicted.h5ad")
"""


def test_a_new_process_finds_the_encoder_of_a_model_once_it_is_registered(programs, tmp_path):
    register_encoder("color", MeanColor)
    reference, query = slide(), slide()
    st_gchb.pp.embed_patches(reference, encoder="color", patch_um=150, cache=False)
    STGCHB.setup_anndata(reference)
    model = STGCHB(reference, n_top_genes=10, n_hidden=8, n_embedding=4)
    model.train(max_epochs=1, accelerator="cpu")
    model.save(tmp_path / "model")
    query.write_h5ad(tmp_path / "query.h5ad")
    result = programs.run(PROGRAM, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "'color', which is not registered in this process" in result.stdout
    expected = model.predict(query).layers["st_gchb"]
    predicted = anndata.read_h5ad(tmp_path / "predicted.h5ad")
    np.testing.assert_allclose(predicted.layers["st_gchb"], expected, rtol=1e-5)
    assert predicted.uns["st_gchb"]["encoder"] == "color"
