"""Features written whole or not at all, found again in the cache, and the same by every route."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from PIL import Image
from torch import nn

from st_gchb._errors import (
    ArgumentError,
    CoordinateError,
    EncoderError,
    ImageError,
    InputError,
    MissingKeyError,
    ScaleError,
    WeightsUnavailableError,
)
from st_gchb.pp import FeatureSet, FeatureSpec, embed_patches, embed_patches_like, get_encoder
from st_gchb.pp.patches import _embed_slices as embed, cache_folder

RGB = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
CENTERS = np.random.default_rng(1).uniform(20, 280, (23, 2))
OPTIONS = {"encoder": "texture", "patch_um": 40.0, "um_per_px": 1.0, "device": "cpu"}


def spots(n=23, **uns):
    adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]), obsm={"spatial": CENTERS[:n].copy()})
    adata.uns.update(uns)
    return adata


class Mean(nn.Module):
    """Mean color, and mean of the left half: sees mirroring, and counts what passes."""

    input_px = 40

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.passed = []

    def transform(self, patches):
        return patches.float()

    def forward(self, x):
        self.passed.append(len(x))
        return torch.cat([x.mean((2, 3)), x[..., :20].mean((2, 3)), x[:, :, :20].mean((2, 3))], dim=1) * self.scale


def embedded(adata=None, **options):
    adata = spots() if adata is None else adata
    embed_patches(adata, **{**OPTIONS, "image": RGB, "cache": False, "n_views": 1, **options})
    return adata


def test_features_are_those_of_each_spots_own_patch():
    found = embedded(encoder=Mean(), batch_size=4).obsm["X_patch"]
    padded = np.pad(RGB, ((40, 40), (40, 40), (0, 0)), mode="reflect")
    for (x, y), features in zip(CENTERS, found, strict=True):
        x0, y0 = (int(np.floor(v - 20 + 0.5)) + 40 for v in (x, y))
        patch = padded[y0 : y0 + 40, x0 : x0 + 40].astype(float)
        expected = np.concatenate([patch.mean((0, 1)), patch[:, :20].mean((0, 1)), patch[:20].mean((0, 1))])
        np.testing.assert_allclose(features, expected, rtol=1e-4)
    assert found.dtype == np.float32


def test_views_are_averaged():
    one, four, eight = (embedded(encoder=Mean(), n_views=n_views).obsm["X_patch"] for n_views in (1, 4, 8))
    assert not np.allclose(one[:, 3:6], one[:, :3], rtol=1e-3)
    # The four rotations of a patch have its left, lower, right and upper half on the left.
    np.testing.assert_allclose(four[:, 3:6], one[:, :3], rtol=1e-4)
    np.testing.assert_allclose(eight, four, rtol=1e-4)
    with pytest.raises(InputError, match="n_views"):
        embedded(n_views=3)


def test_one_view_is_the_default_beside_texture_features_and_four_without_them():
    images = {"image": RGB, "cache": False, "um_per_px": 1.0, "patch_um": 40.0, "device": "cpu"}
    for encoder, n_views in (("texture", 1), ((Mean(), "texture"), 1), (Mean(), 4), ((Mean(), Mean(2.0)), 4)):
        adata = spots()
        embed_patches(adata, encoder=encoder, **images)
        assert FeatureSet.from_uns(adata.uns["X_patch"]).first.n_views == n_views
        expected = embedded(encoder=encoder, n_views=n_views).obsm["X_patch"]
        np.testing.assert_array_equal(adata.obsm["X_patch"], expected)
    assert FeatureSet.from_uns(embedded(n_views=4).uns["X_patch"]).first.n_views == 4


def test_what_is_written_and_that_it_survives_a_file(tmp_path):
    adata = embedded()
    written = adata.uns["X_patch"]
    assert written["encoder"] == "texture"
    assert written["patch_um"] == 40.0
    assert "patch_px" not in written
    assert written["um_per_px"].tolist() == [1.0]
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = read_h5ad(tmp_path / "a.h5ad")
    assert FeatureSpec.from_uns(again.uns["X_patch"]) == FeatureSpec.from_uns(written)
    with pytest.raises(MissingKeyError, match="embed_patches again"):
        FeatureSpec.from_uns({"encoder": "texture"})


def test_copy_leaves_the_object_alone():
    adata = spots()
    copied = embed_patches(adata, image=RGB, cache=False, copy=True, key_added="other", **OPTIONS)
    assert "other" in copied.obsm
    assert "other" in copied.uns
    assert set(adata.obsm) == {"spatial"}
    assert not adata.uns


def test_a_patch_in_px_needs_no_scale_and_follows_the_images():
    library = {
        "images": {"hires": RGB},
        "scalefactors": {"tissue_hires_scalef": 0.5},
    }
    adata = spots(spatial={"lib": library})
    adata.obsm["spatial"] *= 2
    with pytest.raises(ScaleError, match=r"um_per_px=.*patch_px="):
        embed_patches(adata, encoder="texture", patch_um=150)
    embed_patches(adata, encoder="texture", patch_px=80, n_views=1, cache=False)
    np.testing.assert_array_equal(adata.obsm["X_patch"], embedded().obsm["X_patch"])
    assert "patch_um" not in adata.uns["X_patch"]


def test_several_slices_keep_their_rows():
    adata = spots()
    adata.obs["slice"] = np.where(np.arange(23) % 2, "odd", "even")
    images = {"odd": RGB, "even": 255 - RGB}
    embedded(adata, encoder=Mean(), image=images)
    odd, even = embedded(encoder=Mean()).obsm["X_patch"], embedded(encoder=Mean(), image=255 - RGB).obsm["X_patch"]
    np.testing.assert_allclose(adata.obsm["X_patch"], np.where((np.arange(23) % 2)[:, None], odd, even), rtol=1e-5)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Count the patches that reach an encoder, with a cache of the test's own."""
    passed = []
    original = embed.patches_of_sizes

    def read(*args, **kwargs):
        for size, rows, patches in original(*args, **kwargs):
            passed.append(len(rows))
            yield size, rows, patches

    monkeypatch.setattr(embed, "patches_of_sizes", read)

    def run(adata=None, **options):
        before = sum(passed)
        result = embedded(adata, cache=True, cache_dir=tmp_path, **options)
        return sum(passed) - before, result.obsm["X_patch"]

    run.folder = cache_folder(tmp_path)
    return run


def test_nothing_is_computed_twice(cached, tmp_path):
    count, first = cached()
    assert count == 23
    count, second = cached(image=RGB.copy())
    assert count == 0
    np.testing.assert_array_equal(first, second)


def test_a_change_of_anything_that_matters_is_seen(cached, tmp_path):
    cached(encoder=Mean())
    other = RGB.copy()
    other[5, 5, 0] ^= 1
    moved = spots()
    moved.obsm["spatial"][0, 0] += 0.25
    for change in (
        {"image": other},
        {"adata": moved},
        {"patch_um": 41.0},
        {"n_views": 4},
        {"um_per_px": 1.1},
        {"encoder": Mean(2.0)},
        {"encoder": "texture"},
    ):
        assert cached(**{"encoder": Mean(), **change})[0] == 23, change
    assert cached(encoder=Mean())[0] == 0
    assert cached(encoder=Mean(), batch_size=3)[0] == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "a bit", "text"])
def test_a_damaged_cache_is_seen_and_mended(cached, damage, caplog):
    _, first = cached()
    (file,) = cached.folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(
        {"empty": b"", "cut": content[: len(content) // 2], "a bit": content, "text": b"hello" * 20}[damage]
    )
    count, second = cached()
    assert count == 23
    assert "computed again" in caplog.text
    np.testing.assert_array_equal(first, second)
    assert cached()[0] == 0


def test_a_cache_that_cannot_be_written_is_told(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    adata = embedded(cache=True, cache_dir=tmp_path / "file")
    assert "X_patch" in adata.obsm
    assert "could not be cached" in caplog.text


def test_pixels_are_given_back_after_use(tmp_path):
    from st_gchb.io import open_image

    Image.fromarray(RGB).save(tmp_path / "he.png")
    image = open_image(tmp_path / "he.png")
    embedded(image=image)
    assert image.levels[0]._pixels is None


def test_the_same_rule_gives_the_same_features():
    reference = embedded(n_views=4, patch_um=50.0)
    rule = FeatureSpec.from_uns(reference.uns["X_patch"])
    query = spots()
    embed_patches_like(query, rule, image=RGB, um_per_px=1.0, cache=False)
    np.testing.assert_array_equal(query.obsm["X_patch"], reference.obsm["X_patch"])
    assert FeatureSpec.from_uns(query.uns["X_patch"]) == rule
    coarse = spots()
    coarse.obsm["spatial"] /= 2
    embed_patches_like(coarse, rule, image=RGB[::2, ::2], um_per_px=2.0, cache=False)
    assert coarse.obsm["X_patch"].shape == reference.obsm["X_patch"].shape


@pytest.mark.parametrize(
    "asked",
    [{"patch_um": 30.0}, {"patch_px": 30}, {"n_views": 1}, {"stain_norm": "macenko"}, {"save_feature_maps": True}]
    + [{"precision": "float32"}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_the_rule_says_cannot_be_asked_for(asked):
    rule = FeatureSpec.from_uns(embedded(spots(2)).uns["X_patch"])
    with pytest.raises(ArgumentError, match="^embed_patches_like has no argument"):
        embed_patches_like(spots(2), rule, image=RGB, um_per_px=1.0, cache=False, **asked)


def test_a_rule_holds_to_its_weights(tmp_path):
    torch.save(get_encoder("squeezenet1_1", None).module.state_dict(), tmp_path / "w.pth")
    small = {"patch_um": 30.0, "encoder": "squeezenet1_1", "weights": tmp_path / "w.pth"}
    rule = FeatureSpec.from_uns(embedded(spots(2), **small).uns["X_patch"])
    options = {"image": RGB, "um_per_px": 1.0, "cache": False}
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(WeightsUnavailableError, match="weights="):
        embed_patches_like(spots(2), rule, **options)
    embed_patches_like(spots(2), rule, weights=tmp_path / "moved.pth", **options)
    state = {key: value * 0.9 for key, value in torch.load(tmp_path / "moved.pth").items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match="hash"):
        embed_patches_like(spots(2), rule, **options)


def test_a_rule_of_a_module_asks_for_it():
    module = Mean()
    rule = FeatureSpec.from_uns(embedded(encoder=module).uns["X_patch"])
    with pytest.raises(EncoderError, match="Pass encoder= with it again"):
        embed_patches_like(spots(), rule, image=RGB, um_per_px=1.0)
    embed_patches_like(spots(), rule, encoder=module, image=RGB, um_per_px=1.0, cache=False)
    with pytest.raises(EncoderError, match="hash"):
        embed_patches_like(spots(), rule, encoder=Mean(3.0), image=RGB, um_per_px=1.0)


BAD = {
    "no positions": ({}, CoordinateError, lambda adata: adata.obsm.pop("spatial")),
    "16-bit": ({"image": RGB.astype(np.uint16)}, ImageError, None),
    "small image": ({"image": RGB[::10, ::10]}, CoordinateError, None),
    "encoder": ({"encoder": "resnet5"}, EncoderError, None),
    "weights": ({"encoder": "resnet18", "weights": "/nowhere.pth"}, WeightsUnavailableError, None),
    "patch": ({"patch_um": -1.0}, InputError, None),
    "patch in px": ({"patch_px": float("nan")}, InputError, None),
    "batch": ({"batch_size": 0}, InputError, None),
    "device": ({"device": "abacus"}, InputError, None),
    "precision": ({"precision": "float64"}, InputError, None),
    "tiny patch": ({"patch_um": 0.1}, ScaleError, None),
    "scale": ({"um_per_px": None}, ScaleError, None),
    "sdata argument": ({"table": "table"}, InputError, None),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_the_object_as_it_was(name):
    options, error, spoil = BAD[name]
    adata = spots(kept=1)
    adata.obsm["X_patch"] = np.ones((23, 2))
    if spoil:
        spoil(adata)
    before = set(adata.obsm)
    with pytest.raises(error):
        embedded(adata, **options)
    assert set(adata.obsm) == before
    assert dict(adata.uns) == {"kept": 1}
    assert (adata.obsm["X_patch"] == 1).all()


def test_a_truncated_jpeg_found_in_the_second_slice_writes_nothing(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "he.jpg")
    (tmp_path / "he.jpg").write_bytes((tmp_path / "he.jpg").read_bytes()[:20000])
    adata = spots()
    adata.obs["slice"] = ["a"] * 11 + ["b"] * 12
    with pytest.raises(ImageError, match=r"he\.jpg.*damaged"):
        embedded(adata, image={"a": RGB, "b": tmp_path / "he.jpg"})
    assert set(adata.obsm) == {"spatial"}
    with pytest.raises(InputError, match="an AnnData or a SpatialData"):
        embed_patches([1, 2])


def test_what_was_encoded_before_an_error_is_kept(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "he.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "he.jpg").read_bytes()[:20000])
    adata = spots()
    adata.obs["slice"] = ["a"] * 11 + ["b"] * 12
    encoder = get_encoder(Mean())
    options = {"encoder": encoder, "cache": True, "cache_dir": tmp_path, "adata": adata}
    with pytest.raises(ImageError):
        embedded(image={"a": RGB, "b": tmp_path / "cut.jpg"}, **options)
    encoder.module.passed.clear()
    embedded(image={"a": RGB, "b": tmp_path / "he.jpg"}, **options)
    assert sum(encoder.module.passed) == 12, "of the second slice alone"


def test_modules_that_turn_bad_on_real_patches_are_seen():
    class Brittle(Mean):
        def forward(self, x):
            return super().forward(x) if len(x) == 1 else super().forward(x) * np.nan

    with pytest.raises(EncoderError, match="NaN"):
        embedded(encoder=Brittle())


@pytest.fixture(scope="module")
def tumor(her2st_path, tmp_path_factory):
    """Positions of twelve spots, and the part of the slide that they lie on, which is decoded once."""
    table = pd.read_csv(her2st_path / "C2_selection.tsv", sep="\t").query("selected == 1").iloc[:12]
    centers = table[["pixel_x", "pixel_y"]].to_numpy(float)
    corner = np.maximum(centers.min(axis=0).astype(int) - 200, 0)
    path = tmp_path_factory.mktemp("tumor") / "C2.tif"
    with Image.open(her2st_path / "C2.jpg") as full:
        full.crop((*corner, *(centers.max(axis=0).astype(int) + 200))).save(path)
    return centers - corner, path


@pytest.mark.tissue
@pytest.mark.parametrize("route", ["path", "uns"])
def test_real_tissue(tumor, weights_path, route, tmp_path):
    centers, image = tumor
    adata = AnnData(
        obs=pd.DataFrame({"slice": ["C2"] * 12}, index=[f"C2_{i}" for i in range(12)]), obsm={"spatial": centers}
    )
    options = {"weights": weights_path, "encoder": "mobilenet_v2", "patch_um": 150, "cache_dir": tmp_path, "n_views": 1}
    if route == "uns":
        metadata = {"source_image_path": str(image)}
        adata.uns["spatial"] = {"C2": {"images": {}, "scalefactors": {"microns_per_pixel": 0.7}, "metadata": metadata}}
    else:
        options |= {"image": image, "um_per_px": 0.7}
    embed_patches(adata, **options)
    features = adata.obsm["X_patch"]
    assert features.shape == (12, 1280)
    with Image.open(image) as full:
        side = round(150 / 0.7)
        x, y = (int(np.floor(v - side / 2 + 0.5)) for v in adata.obsm["spatial"][5])
        crop = full.crop((x, y, x + side, y + side)).resize((224, 224), Image.Resampling.BILINEAR)
        with pytest.raises(CoordinateError, match="scale factor of about"):
            embed_patches(adata, encoder="texture", patch_um=150, image=np.asarray(full.reduce(16)), um_per_px=11.2)
    encoder = get_encoder("mobilenet_v2", weights_path)
    expected = encoder(torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None])[0].numpy()
    similarity = [np.corrcoef(expected, row)[0, 1] for row in features]
    assert np.argmax(similarity) == 5
    assert similarity[5] > 0.999
