"""The encoder at work gives the features of the plain image encoder: folded, compiled, in halves, in half precision."""

import shutil

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import nn

from st_gchb._compat import cpu_supports
from st_gchb._errors import EncoderError
from st_gchb.pp import FeatureSet, FeatureSpec, embed_patches, embed_patches_like, get_encoder
from st_gchb.pp.encoders import EncoderRunner, EncodingOptions

RNG = np.random.default_rng(0)
PATCHES = RNG.integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
CPU = torch.device("cpu")


class Picky(nn.Module):
    """Mean colors, where no more patches come than the device's memory takes."""

    input_px = 32

    def __init__(self, at_most=100):
        super().__init__()
        self.at_most, self.seen = at_most, []

    def transform(self, patches):
        return patches.float()

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.at_most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return x.mean((2, 3))


def run(encoder, *, n_views=1, batches=(PATCHES,), device=CPU, **options):
    made = EncoderRunner(get_encoder(encoder), n_views, EncodingOptions(64, device, 100.0, **options))
    found = []
    made.run(((i, patches, []) for i, patches in enumerate(batches)), lambda _, features: found.append(features))
    return np.concatenate(found)


@pytest.fixture(scope="module")
def image_encoder():
    """An image encoder whose batch norm does something, as that of trained weights does."""
    encoder = get_encoder("mobilenet_v3_small", None)
    generator = torch.Generator().manual_seed(0)
    for layer in encoder.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for numbers in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
                numbers.copy_(torch.rand(numbers.shape, generator=generator) * 0.5 + 0.7)
    return encoder


def test_folding_changes_nothing_but_the_time(image_encoder):
    patches = torch.from_numpy(RNG.integers(0, 256, (3, 3, 224, 224), dtype=np.uint8))
    before = image_encoder.module(image_encoder._prepare(patches))
    after = image_encoder.folded(image_encoder._prepare(patches))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    norms = [
        [isinstance(layer, nn.BatchNorm2d) for layer in one.modules()]
        for one in (image_encoder.module, image_encoder.folded)
    ]
    assert sum(norms[0]) == 34
    assert sum(norms[1]) == 0
    assert image_encoder.folded is image_encoder.folded


def test_what_a_user_brings_is_not_taken_apart():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    encoder = get_encoder(module, transform=lambda patches: patches.float())
    assert encoder.folded is encoder.module


def test_batches_come_in_order_and_each_is_fetched_after_the_next_has_started():
    order = []

    class Noted(Picky):
        def forward(self, x):
            order.append("started")
            return super().forward(x)

    encoder = get_encoder(Noted())
    order.clear()

    def take(i, features):
        order.append(i)
        np.testing.assert_allclose(features, PATCHES[[i]].mean((1, 2)), rtol=1e-5)

    work = EncoderRunner(encoder, 1, EncodingOptions(64, CPU, 100.0))
    work.run(((i, PATCHES[[i]], []) for i in range(3)), take)
    assert order == ["started", "started", 0, "started", 1, 2]
    work.run([], take)
    assert len(order) == 6


def test_what_came_before_an_error_is_taken():
    def batches():
        yield 0, PATCHES, []
        raise KeyboardInterrupt

    taken = []
    work = EncoderRunner(get_encoder(Picky()), 1, EncodingOptions(64, CPU, 100.0))
    with pytest.raises(KeyboardInterrupt):
        work.run(batches(), lambda i, _: taken.append(i))
    assert taken == [0]


def test_where_memory_is_short_the_batch_is_halved_and_stays_so(caplog):
    module = Picky()
    encoder = get_encoder(module)
    encoder.module.at_most = 3
    encoder.module.seen.clear()
    found = run(encoder, batches=(PATCHES, PATCHES[:4]))
    np.testing.assert_allclose(found, np.concatenate([PATCHES, PATCHES[:4]]).mean((1, 2)), rtol=1e-5)
    assert encoder.module.seen == [8, 4, 2, 2, 2, 2, 2, 1, 2, 2]
    told = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert told == [f"The device ran out of memory: encoding goes on with {n} patches at once." for n in (4, 2)]


def test_memory_too_small_for_one_patch_is_an_error():
    encoder = get_encoder(Picky())
    encoder.module.at_most = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(encoder)


def test_half_precision_is_near_and_has_a_name_of_its_own(image_encoder):
    patches = RNG.integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    exact, half = run(image_encoder, batches=(patches,)), run(image_encoder, batches=(patches,), precision="bfloat16")
    assert half.dtype == np.float32
    assert not np.array_equal(exact, half)
    np.testing.assert_allclose(half, exact, atol=0.02 * np.abs(exact).max())
    options = {name: EncodingOptions(64, CPU, 100.0, name) for name in ("float32", "bfloat16")}
    made = {name: EncoderRunner(image_encoder, 1, one).identity for name, one in options.items()}
    assert made == {"float32": image_encoder.identity, "bfloat16": f"{image_encoder.identity}-bfloat16"}


def test_half_precision_is_part_of_the_rule_and_kept_apart_in_the_cache(tmp_path, image_encoder):
    pixels = RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    options = {"image": pixels, "um_per_px": 1.0, "cache_dir": tmp_path, "device": "cpu"}
    spots = {name: AnnData(obsm={"spatial": np.array([[100.0, 100.0]])}) for name in ("float32", "bfloat16", "query")}
    for name in ("float32", "bfloat16"):
        embed_patches(spots[name], encoder=image_encoder, precision=name, patch_um=50.0, n_views=1, **options)
    exact, half = (spots[name].obsm["X_patch"] for name in ("float32", "bfloat16"))
    assert not np.array_equal(exact, half)
    rules = {name: FeatureSpec.from_uns(spots[name].uns["X_patch"]) for name in ("float32", "bfloat16")}
    assert [rule.precision for rule in rules.values()] == [None, "bfloat16"]
    embed_patches_like(spots["query"], rules["bfloat16"], encoder=image_encoder, **options)
    np.testing.assert_array_equal(spots["query"].obsm["X_patch"], half)


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_half_precision_that_the_cpu_emulates_is_told_once(precision, supported, monkeypatch, caplog):
    monkeypatch.setattr("st_gchb.pp.patches._embed_slices.cpu_supports", lambda _: supported)
    pixels = RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    options = {"image": pixels, "um_per_px": 1.0, "cache": False, "device": "cpu"}
    spots = [AnnData(obsm={"spatial": np.array([[100.0, 100.0]])}) for _ in range(2)]
    embed_patches(spots[0], encoder="texture", precision=precision, patch_um=(50.0, 80.0), n_views=1, **options)
    asked = [record.getMessage() for record in caplog.records if "in hardware" in record.getMessage()]
    embed_patches_like(spots[1], FeatureSet.from_uns(spots[0].uns["X_patch"]), **options)
    followed = [record.getMessage() for record in caplog.records if "in hardware" in record.getMessage()][len(asked) :]
    if supported or precision == "float32":
        assert not asked + followed
        return
    (asked,), (followed,) = asked, followed
    told = f"This CPU does not support {precision} in hardware: "
    told += "encoding can take more than ten times as long as in float32. "
    assert asked == told + "Pass precision='float32'."
    assert followed == told + "Encode on another machine, or make the reference's features anew in float32."


def test_the_processor_is_asked(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    assert cpu_supports("bfloat16")
    assert not cpu_supports("float16")


def test_what_is_compiled_sees_one_shape(monkeypatch):
    shapes, asked = [], {}

    def compile_(module, **options):
        asked.update(options)

        class Compiled(nn.Module):
            def forward(self, x):
                shapes.append(tuple(x.shape))
                return module(x)

        return Compiled()

    monkeypatch.setattr(torch, "compile", compile_)
    plain, compiled = run(Picky(), n_views=4), run(Picky(), n_views=4, compiled=True)
    np.testing.assert_array_equal(plain, compiled)
    # Eleven patches in batches of eight: the last one is filled up.
    assert set(shapes) == {(8, 3, 32, 32)}
    assert asked == {"dynamic": False, "options": {"freezing": True}}


@pytest.fixture
def one_kernel():
    """Compile without what pays off for many kernels alone: a precompiled header and trials of vector instructions."""
    from torch._inductor import config

    with config.patch({"cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True, "cpp.simdlen": 0}):
        yield


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_for_real(one_kernel):
    module = nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten())
    module.input_px, module.transform = 32, lambda patches: patches.float() / 255
    np.testing.assert_allclose(run(module, compiled=True), run(module), atol=1e-5)


def test_no_compiler(monkeypatch):
    def compile_(module, **_):
        class Broken(nn.Module):
            def forward(self, x):
                raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return Broken()

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(EncoderError, match="could not be compiled.*No working C.*leave out compiled=True"):
        run(Picky(), compiled=True)
