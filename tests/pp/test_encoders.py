"""Encoders by name, by file and as modules; weights that do not fit."""

import hashlib
import http.server
import pickle
import threading

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.convnext import CNBlockConfig

from st_gchb._errors import EncoderError, InputError, MissingExtraError, WeightsUnavailableError
from st_gchb.pp import get_encoder
from st_gchb.pp.encoders import torchvision_names

PATCHES = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    model = torchvision.models.resnet18(weights=None).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_features_are_those_of_the_model_before_its_head(resnet18):
    model, path = resnet18
    encoder = get_encoder("resnet18", path.as_posix())
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    values = (PATCHES.float() / 255 - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(3, 1, 1)
    with torch.no_grad():
        expected = model(values)
        found = model.fc(encoder(PATCHES))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert encoder.n_features == 512
    assert encoder.input_px == 224
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"]
)
def test_families_are_cut_at_their_head(name):
    encoder = get_encoder(name, None)
    assert encoder(PATCHES[:1].repeat(2, 1, 1, 1)[:, :, : encoder.input_px]).shape == (2, encoder.n_features)
    assert encoder.n_features != 1000


@pytest.fixture
def few_layers(monkeypatch):
    """The largest networks have a few of their layers, which are as wide as all are."""
    build, stages = torchvision.models.get_model, [(96, 192), (192, 384), (384, 768), (768, None)]
    small = {
        "vit_b_16": lambda: torchvision.models.VisionTransformer(224, 16, 2, 12, 768, 3072),
        "convnext_tiny": lambda: torchvision.models.ConvNeXt([CNBlockConfig(*sides, 1) for sides in stages]),
    }
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, **options: small.get(name, lambda: build(name, **options))()
    )


@pytest.fixture
def zero_weights(monkeypatch):
    """Networks are built without the random numbers that most of the time of building them goes to."""
    for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: nn.init.zeros_(tensor))


@pytest.mark.parametrize(
    "name",
    ["alexnet", "densenet121", "googlenet", "inception_v3", "convnext_tiny", "swin_t", "vit_b_16", "maxvit_t", "vgg11"],
)
def test_all_other_families(zero_weights, few_layers, name):
    assert get_encoder(name, None).n_features != 1000


class Draws(TorchFunctionMode):
    """Counts the random numbers that are drawn for weights."""

    n = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.n += func.__name__ in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "timm:vit_tiny_patch16_224"])
def test_nothing_is_drawn_for_what_a_file_replaces(name, tmp_path):
    """And nothing is left empty: all that the network holds is of the file."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with Draws() as drawn:
        random = get_encoder(name, None)
    assert drawn.n > 0
    state = {key: value.contiguous() for key, value in random.module.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    with Draws() as drawn:
        loaded = get_encoder(name, str(tmp_path / "weights.safetensors"))
    assert drawn.n == 0
    assert all(torch.equal(state.pop(key), value) for key, value in loaded.module.state_dict().items())
    assert not state
    patches = PATCHES[:, :, : loaded.input_px, : loaded.input_px]
    assert torch.equal(loaded(patches), random(patches))


ENCODER = "st_gchb.pp.encoders._encoder"


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_16"])
def test_the_width_of_a_large_network_is_found_without_a_patch(zero_weights, few_layers, monkeypatch, name):
    expected = get_encoder(name, None)
    assert expected(PATCHES[:1, :, : expected.input_px, : expected.input_px]).shape == (1, expected.n_features)
    monkeypatch.setattr(f"{ENCODER}._LARGE", 0)
    with monkeypatch.context() as patch:
        patch.setattr(f"{ENCODER}._probe", lambda encoder: pytest.fail("a patch was encoded"))
        assert get_encoder(name, None).n_features == expected.n_features


def test_a_large_network_that_looks_at_numbers_is_given_a_patch(zero_weights, monkeypatch):
    monkeypatch.setattr(f"{ENCODER}._LARGE", 0)
    shapes = []

    def looks(self, x, forward=torchvision.models.SqueezeNet.forward):
        shapes.append(x.device.type)
        return forward(self, x) if x.mean() else x

    monkeypatch.setattr(torchvision.models.SqueezeNet, "forward", looks)
    assert get_encoder("squeezenet1_1", None).n_features == 512
    assert shapes == ["meta", "cpu"]


def test_what_a_large_network_keeps_of_a_pass_of_shapes_is_not_kept(zero_weights, monkeypatch):
    monkeypatch.setattr(f"{ENCODER}._LARGE", 0)
    devices = []

    def keeps(self, x, forward=torchvision.models.SqueezeNet.forward):
        if not hasattr(self, "ones"):
            self.ones = torch.ones_like(x)
        devices.append(self.ones.device.type)
        return forward(self, x * self.ones)

    monkeypatch.setattr(torchvision.models.SqueezeNet, "forward", keeps)
    encoder = get_encoder("squeezenet1_1", None)
    assert encoder(PATCHES[:1]).shape == (1, 512)
    assert devices == ["meta", "cpu"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(resnet18, tmp_path, value):
    state = {key: tensor.clone() for key, tensor in resnet18[0].state_dict().items()}
    state["layer3.0.conv1.weight"][-1, -1, 0, 0] = value
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(EncoderError, match=r"NaN or infinite weights \('layer3.0.conv1.weight'\)"):
        get_encoder("resnet18", str(tmp_path / "weights.safetensors"))


def test_random_weights_are_the_same_each_time_and_leave_the_callers_seed():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = get_encoder("squeezenet1_1", None), get_encoder("squeezenet1_1", None)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.weights_sha256 == second.weights_sha256
    assert first.weights == "none"


@pytest.mark.parametrize("form", ["plain", "wrapped", "parallel", "no head", "other classes"])
def test_forms_of_a_state_dict(tmp_path, narrow_encoder, form):
    state = torchvision.models.get_model("resnet18", weights=None).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    if form == "parallel":
        state = {f"module.{key}": value for key, value in state.items()}
    if form == "no head":
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if form == "other classes":
        state["fc.weight"], state["fc.bias"] = torch.zeros(7, 64), torch.zeros(7)
    torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, tmp_path / "w.pth")
    encoder = get_encoder("resnet18", str(tmp_path / "w.pth"))
    assert encoder.weights_sha256 == get_encoder("resnet18", str(tmp_path / "w.safetensors")).weights_sha256


def test_weights_of_another_architecture_are_named(resnet18, tmp_path):
    _, path = resnet18
    with pytest.raises(EncoderError, match=r"not those of encoder 'resnet34'.*encoder='resnet18'") as caught:
        get_encoder("resnet34", str(path))
    assert path.name in str(caught.value)
    with pytest.raises(EncoderError, match="encoder='resnet18'"):
        get_encoder("mobilenet_v2", str(path))
    # Without its head, it has the size of other architectures.
    state = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    headless = {key: value for key, value in state.items() if not key.startswith("classifier.3.")}
    save_file(headless, tmp_path / "headless.safetensors")
    with pytest.raises(EncoderError, match="encoder='mobilenet_v3_small'"):
        get_encoder("squeezenet1_1", str(tmp_path / "headless.safetensors"))


def test_foreign_and_damaged_weights(tmp_path, resnet18):
    _, path = resnet18
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(EncoderError, match="no model of torchvision"):
        get_encoder("squeezenet1_1", str(tmp_path / "foreign.safetensors"))
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(path.read_bytes()[:1000])
        with pytest.raises(EncoderError, match=f"{name}.*damaged"):
            get_encoder("resnet18", str(tmp_path / name))
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(EncoderError, match="state dict"):
        get_encoder("resnet18", str(tmp_path / "list.pth"))
    with pytest.raises(WeightsUnavailableError, match="texture"):
        get_encoder("resnet18", str(tmp_path / "nowhere.pth"))


class Bomb:
    def __reduce__(self):
        return (open, ("bomb_went_off", "w"))


def test_code_in_a_weights_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"a": Bomb()}))
    for name in ("bomb.pth", "bomb.pt"):
        with pytest.raises(EncoderError, match="safetensors"):
            get_encoder("resnet18", name)
    assert not (tmp_path / "bomb_went_off").exists()


@pytest.mark.parametrize(
    ("name", "meant"), [("resnet5", "resnet50"), ("mobilenetv2", "mobilenet_v2"), ("textur", "texture")]
)
def test_unknown_names(name, meant):
    with pytest.raises(EncoderError, match=meant):
        get_encoder(name)
    with pytest.raises(InputError, match="expected text, a Module or an Encoder"):
        get_encoder(50)


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.endswith("short.pth"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x" * 100)
        else:
            self.send_error(503)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("file", ["resnet18-12345678.pth", "short-12345678.pth", "dead"])
def test_a_download_that_fails_says_what_to_do(server, tmp_path, monkeypatch, file):
    address = f"{server}/{file}" if file != "dead" else "http://127.0.0.1:9/resnet18-12345678.pth"
    if file.startswith("short"):
        monkeypatch.setattr(Server, "do_GET", _send_garbage)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(weights, "_value_", type(weights.value)(address, weights.transforms, weights.meta))
    with pytest.raises(WeightsUnavailableError, match=r"weights='path/to/.*encoder='texture'"):
        get_encoder("resnet18")
    assert isinstance(WeightsUnavailableError(), FileNotFoundError)


def _send_garbage(self):
    self.send_response(200)
    self.send_header("Content-Length", "100")
    self.end_headers()
    self.wfile.write(b"x" * 100)


def test_default_weights_come_by_download(server, tmp_path, monkeypatch, resnet18):
    model, _ = resnet18
    torch.save(model.state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()

    def send(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    monkeypatch.setattr(Server, "do_GET", send)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    address = f"{server}/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(weights, "_value_", type(weights.value)(address, weights.transforms, weights.meta))
    assert get_encoder("resnet18").weights == "default"


class Tiny(nn.Module):
    input_px = 32

    def __init__(self, answer="features"):
        super().__init__()
        self.convolution, self.answer = nn.Conv2d(3, 5, 4, stride=4), answer
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        maps = self.drop(self.convolution(x))
        if self.answer == "tokens":
            return maps.flatten(2).transpose(1, 2)
        return {"features": maps.mean((2, 3)), "maps": maps, "other": [maps], "scalar": maps.mean()}[self.answer]


def scaled(patches):
    return patches.float() / 255


def test_a_module_is_copied_and_used_in_eval_mode():
    module = Tiny().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    encoder = get_encoder(module, transform=scaled)
    patches = PATCHES[:, :, :32, :32]
    assert torch.equal(encoder(patches), encoder(patches))
    assert module.training
    assert module.convolution.weight.requires_grad
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert (encoder.n_features, encoder.input_px, encoder.name) == (5, 32, "module:Tiny")


def test_tokens_and_maps_are_pooled():
    patches = PATCHES[:, :, :32, :32]
    maps, tokens = get_encoder(Tiny("maps"), transform=scaled), get_encoder(Tiny("tokens"), transform=scaled)
    tokens.module.load_state_dict(maps.module.state_dict())
    raw = maps.module.convolution(scaled(patches))
    torch.testing.assert_close(maps(patches), raw.mean((2, 3)))
    flat = raw.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens(patches), torch.cat([flat[:, 0], flat[:, 1:].mean(1)], dim=1))


def test_modules_with_the_same_weights_and_another_transform_are_told_apart():
    module = Tiny()
    identities = {
        get_encoder(module, transform=transform).identity for transform in (scaled, lambda x: scaled(x) * 2, scaled)
    }
    assert len(identities) == 2


MODULES = {
    "no transform": (Tiny(), None, "no transform"),
    "list": (Tiny("other"), scaled, "expected features"),
    "scalar": (Tiny("scalar"), scaled, "expected features"),
    "uint8 in": (Tiny(), lambda x: x, "cannot take"),
    "PIL transform": (Tiny(), torchvision.transforms.ToTensor(), "v2"),
    "NaN": (Tiny(), lambda x: x.float() * np.nan, "finite"),
    "no tensor": (Tiny(), lambda x: None, "no tensor"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_give_no_features(name):
    module, transform, message = MODULES[name]
    with pytest.raises(EncoderError, match=message):
        get_encoder(module, transform=transform)


def test_a_transform_belongs_to_a_module():
    with pytest.raises(EncoderError, match="Leave it out"):
        get_encoder("texture", transform=scaled)


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    encoder = get_encoder("timm:resnet10t", None)
    model = timm.create_model("resnet10t", pretrained=False)
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    loaded = get_encoder("timm:resnet10t", str(tmp_path / "t.safetensors"))
    assert encoder.n_features == loaded.n_features == 512
    assert encoder.weights_sha256 != loaded.weights_sha256
    values = loaded._prepare(PATCHES[:, :, : loaded.input_px, : loaded.input_px])
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features(values), pre_logits=True)
    torch.testing.assert_close(loaded.module(values), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(EncoderError, match="resnet10t"):
        get_encoder("timm:resnet10", None)
    with pytest.raises(EncoderError, match="timm:resnet18"):
        get_encoder("timm:resnet18", str(tmp_path / "t.safetensors"))


def test_timm_without_network(monkeypatch, tmp_path):
    pytest.importorskip("timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsUnavailableError, match="texture"):
        get_encoder("timm:resnet10t")


def test_timm_absent(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'st-gchb\[timm\]'"):
        get_encoder("timm:resnet10t", None)


def test_texture_does_not_depend_on_orientation_and_sees_stain_and_grain():
    encoder = get_encoder("texture")
    patches = PATCHES[:, :, :112, :112]
    first = encoder(patches)
    for other in (patches.flip(3), patches.rot90(1, (2, 3))):
        torch.testing.assert_close(encoder(other), first, rtol=1e-3, atol=1e-3)
    flat = torch.full((1, 3, 112, 112), 255, dtype=torch.uint8)
    purple = flat * torch.tensor([0.5, 0.3, 0.7]).view(1, 3, 1, 1)
    answers = encoder(torch.cat([flat, torch.zeros_like(flat), purple.to(torch.uint8)]))
    assert torch.isfinite(answers).all()
    assert (answers[2, :12] - answers[0, :12]).abs().max() > 0.1


def test_texture_is_the_same_whoever_sorts(monkeypatch):
    """numpy on a CPU; torch on a GPU, and where it compiles the encoder."""
    encoder = get_encoder("texture")
    patches = torch.cat([PATCHES[:, :, :112, :112], torch.full((1, 3, 112, 112), 255, dtype=torch.uint8)])
    fast, calls = encoder(patches), []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: calls.append(1) or True)
    assert torch.equal(encoder(patches).view(torch.int32), fast.view(torch.int32))
    assert calls


@pytest.mark.tissue
def test_the_pretrained_image_encoder(weights_path):
    encoder = get_encoder("mobilenet_v2", str(weights_path))
    assert (encoder.n_features, encoder.input_px) == (1280, 224)
    expected = encoder.module.features(encoder._prepare(PATCHES)).mean((2, 3))
    torch.testing.assert_close(encoder(PATCHES), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(EncoderError, match="encoder='mobilenet_v2'"):
        get_encoder("resnet50", str(weights_path))


def test_texture_is_no_name_of_torchvision():
    assert "texture" not in torchvision_names()
