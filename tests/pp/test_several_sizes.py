"""Several encoders and patch sizes at once: the features of each as if it were alone, from pixels decoded once."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from st_gchb.errors import DamageError, EncoderError, InputError, ScaleError, StaleError
from st_gchb.io import SlideImage, sections_of
from st_gchb.io.images import _chunks, chunk_edges
from st_gchb.pp import FeatureSet, FeatureSpec, Slice, Stain, embed_patches, embed_patches_like, get_encoder
from st_gchb.pp.patches import Damage, _embed_slices as embed, feature_parts, made_key
from st_gchb.pp.patches._reader import PatchRead, patches_of_sizes

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
CENTERS = np.column_stack([rng.uniform(0, 400, 40), rng.uniform(0, 300, 40)])
SIZES = (20.0, 37.5, 110.0)


class Convolved(nn.Module):
    """A small network whose last digits depend on which patches stand in a batch, as those of large ones do."""

    input_px = 24

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 29, 3), nn.ReLU())

    def transform(self, patches: Tensor) -> Tensor:
        return patches.float() / 255

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CONVOLVED = get_encoder(Convolved())
# Its statistics take a tenth of the time on patches of 32 px.
TEXTURE = replace(get_encoder("texture"), input_px=32)


class Counted:
    """A level that counts how often each of its chunks is decoded."""

    def __init__(self, pixels: np.ndarray, chunks: tuple[int, int] = (32, 48)) -> None:
        self.pixels, self.shape, self.chunks = pixels, pixels.shape, chunks
        self.edges = chunk_edges(chunks, pixels.shape[:2])
        self.times = np.zeros([len(edges) - 1 for edges in self.edges], dtype=int)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        touched = [(e[:-1] < part.stop) & (e[1:] > part.start) for e, part in zip(self.edges, window, strict=True)]
        self.times[np.ix_(*touched)] += 1
        return self.pixels[window]


def counted(*downsamples: int) -> SlideImage:
    """Return a pyramid that counts what is decoded."""
    return SlideImage([Counted(RGB[::factor, ::factor]) for factor in downsamples], [float(one) for one in downsamples])


def spots(n: int = 40) -> AnnData:
    return AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]), obsm={"spatial": CENTERS[:n].copy()})


def embedded(adata: AnnData | None = None, **options: Any) -> AnnData:
    adata = spots() if adata is None else adata
    given = {"encoder": CONVOLVED, "patch_um": SIZES, "um_per_px": 1.0, "n_views": 1, "image": RGB, "cache": False}
    embed_patches(adata, **{**given, "device": "cpu", **options})
    return adata


def batches_of(slide: Slice, sizes: list[tuple[float, int]], batch_size: int, memory_mb: float) -> list[list[Any]]:
    """Return the batches of each size: the spots and the bytes of their patches."""
    reads = [PatchRead(side, out, Damage("a", "he", len(slide.rows))) for side, out in sizes]
    found: list[list[Any]] = [[] for _ in sizes]
    for size, rows, patches in patches_of_sizes(slide, reads, batch_size, memory_mb):
        found[size].append((rows.tolist(), patches.tobytes()))
    return found


def least_memory(slide: Slice, size: tuple[float, int], batch_size: int) -> float:
    """Return the memory that the error asks for where there is too little."""
    with pytest.raises(InputError, match="memory_mb=") as caught:
        batches_of(slide, [size], batch_size, 1e-6)
    return float(re.search(r"Pass memory_mb=(\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.floats(1, 300), st.integers(1, 30)), min_size=1, max_size=5, unique=True),
    levels=st.sampled_from([(1,), (1, 2), (1, 2, 4)]),
    chunks=st.sampled_from([(32, 48), (7, 400), (64, 64)]),
    batch_size=st.integers(1, 15),
    more=st.sampled_from([0.0, 0.3, 1.0, 500.0]),
)
def test_batches_of_each_size_are_those_of_the_size_alone(
    sizes: list[tuple[float, int]], levels: tuple[int, ...], chunks: tuple[int, int], batch_size: int, more: float
) -> None:
    """The same spots in the same order, and the same pixels, however little memory there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "PIECE_PX", 64)
        image = SlideImage([Counted(RGB[::one, ::one], chunks) for one in levels], [float(one) for one in levels])
        slide = Slice("a", np.arange(12), CENTERS[:12], image)
        memory_mb = max(least_memory(slide, size, batch_size) for size in sizes) + more
        alone = [batches_of(slide, [size], batch_size, memory_mb)[0] for size in sizes]
        assert batches_of(slide, sizes, batch_size, memory_mb) == alone


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.floats(4, 300), min_size=1, max_size=4, unique=True),
    encoders=st.permutations([CONVOLVED, TEXTURE]),
    levels=st.sampled_from([(1,), (1, 2, 4)]),
    batch_size=st.integers(3, 20),
)
def test_features_of_each_part_are_those_of_the_part_alone(
    sizes: list[float], encoders: list[Any], levels: tuple[int, ...], batch_size: int
) -> None:
    """Bit for bit, in the columns that the set names."""
    options = {"image": counted(*levels), "batch_size": batch_size}
    alone = [embedded(spots(16), encoder=e, patch_um=um, **options).obsm["X_patch"] for e in encoders for um in sizes]
    together = embedded(spots(16), encoder=encoders, patch_um=sizes, **options)
    parts = feature_parts(together, "X_patch").parts
    assert [(part.encoder, part.patch_um) for part in parts] == [(e.name, um) for e in encoders for um in sizes]
    for part, expected in zip(parts, alone, strict=True):
        np.testing.assert_array_equal(together.obsm["X_patch"][:, part.columns], expected)
    assert together.obsm["X_patch"].dtype == np.float32


def test_sizes_of_one_level_decode_it_once() -> None:
    """For all sizes and encoders."""
    image = counted(1)
    embedded(encoder=[CONVOLVED, TEXTURE], image=image)
    assert image.levels[0].times.max() == 1
    alone = counted(1)
    for um in SIZES:
        embedded(patch_um=um, image=alone)
    assert alone.levels[0].times.max() == 3


def test_each_level_is_decoded_once() -> None:
    """The small patches are read from the finest level, the large ones from the coarse one."""
    image = counted(1, 2)
    embedded(patch_um=(20, 40, 100, 120), image=image)
    assert [level.times.max() for level in image.levels] == [1, 1]


def test_too_little_memory_for_all_sizes_reads_them_in_turn(
    watched_windows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound holds, at the price of decoding once for each size."""
    monkeypatch.setattr(_chunks, "PIECE_PX", 64)
    sizes = [(90.0, 90), (100.0, 100), (110.0, 110)]
    level = Counted(np.tile(RGB, (5, 5, 1)))
    centers = np.random.default_rng(0).uniform(0, 1, (400, 2)) * (2000, 1500)
    slide = Slice("a", np.arange(400), centers, SlideImage([level], [1.0]))
    memory_mb = least_memory(slide, sizes[-1], 50) + 1
    level.times[:] = 0
    del watched_windows[:]
    batches_of(slide, sizes, 50, memory_mb)
    assert 1 < level.times.max() <= 3
    assert 0 < max(band.peak_bytes for band in watched_windows) <= memory_mb * 1e6
    level.times[:] = 0
    batches_of(slide, sizes, 50, memory_mb + 30)
    assert level.times.max() == 1


def test_one_size_in_a_list_is_one_size() -> None:
    """Features and everything that is written about them."""
    one, listed = embedded(patch_um=20), embedded(encoder=[CONVOLVED], patch_um=np.array([20.0]), weights=["default"])
    np.testing.assert_array_equal(one.obsm["X_patch"], listed.obsm["X_patch"])
    np.testing.assert_array_equal(one.obsm["X_patch_made"], listed.obsm["X_patch_made"])
    assert {key: str(value) for key, value in one.uns["X_patch"].items()} == {
        key: str(value) for key, value in listed.uns["X_patch"].items()
    }
    assert FeatureSpec.from_uns(one.uns["X_patch"]).patch_um == 20.0


def test_sizes_in_px_and_views_and_stain_are_for_all(tissue: AnnData) -> None:
    """Other options are shared by all parts."""
    stain = Stain("reinhard", (60.0, 20.0, -10.0, 15.0, 5.0, 5.0))
    options = {"n_views": 4, "stain_norm": stain, "um_per_px": None}
    adata = tissue[:12].copy()
    embed_patches(adata, encoder=[CONVOLVED, TEXTURE], patch_px=(30, 50), cache=False, **options)
    found = feature_parts(adata, "X_patch")
    together = adata.obsm["X_patch"]
    for part, encoder in zip(found.parts, [CONVOLVED] * 2 + [TEXTURE] * 2, strict=True):
        embed_patches(adata, encoder=encoder, patch_px=part.patch_px, cache=False, **options)
        np.testing.assert_array_equal(together[:, part.columns], adata.obsm["X_patch"])
    assert (found.stain, found.first.n_views, found.in_px) == (stain, 4, True)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sides of the patches that are read."""
    seen: list[float] = []
    original = embed.patches_of_sizes

    def read(slide: Any, reads: Any, *others: Any) -> Any:
        seen.extend(read.side_px for read in reads)
        return original(slide, reads, *others)

    monkeypatch.setattr(embed, "patches_of_sizes", read)
    return seen


def test_a_size_or_an_encoder_that_is_added_is_all_that_is_computed(passed: list[float], tmp_path: Any) -> None:
    """The cache holds one entry for each part, which is also that of the part alone."""
    options = {"cache": True, "cache_dir": tmp_path}
    alone = embedded(patch_um=20, **options)
    first = embedded(patch_um=(20, 37.5), **options)
    assert passed == [20.0, 37.5]
    np.testing.assert_array_equal(first.obsm["X_patch"][:, :29], alone.obsm["X_patch"])
    again = embedded(patch_um=(110, 37.5, 20), **options)
    assert passed == [20.0, 37.5, 110.0]
    np.testing.assert_array_equal(again.obsm["X_patch"][:, 29:58], first.obsm["X_patch"][:, 29:])
    embedded(encoder=[TEXTURE, CONVOLVED], patch_um=(37.5, 20), **options)
    assert passed == [20.0, 37.5, 110.0, 37.5, 20.0]
    embedded(encoder=[CONVOLVED, TEXTURE], patch_um=(20, 37.5), **options)
    assert len(passed) == 5


def test_the_image_is_hashed_once_for_all_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Of an image in memory each level is decoded once for the key, of a file all bytes are read once."""
    seen: list[int] = []
    original = SlideImage.fingerprint
    monkeypatch.setattr(SlideImage, "fingerprint", lambda self, level=0: seen.append(level) or original(self, level))
    embedded(encoder=[CONVOLVED, TEXTURE], cache=True, cache_dir=tmp_path)
    assert seen == [0]
    tifffile.imwrite(tmp_path / "he.tif", RGB, photometric="rgb", tile=(64, 64))
    embedded(encoder=[CONVOLVED, TEXTURE], image=tmp_path / "he.tif", cache=True, cache_dir=tmp_path)
    assert seen == [0, 0]


def broken(path: Any) -> Any:
    """Write a tiled TIFF of which one tile cannot be decoded."""
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, n = file.pages[0].dataoffsets[9], file.pages[0].databytecounts[9]
    content[start : start + n] = b"\x55" * n
    path.write_bytes(content)
    return path


def test_a_spot_that_one_part_leaves_out_is_left_out_by_all(tmp_path: Any, caplog: Any) -> None:
    """The largest patches touch more of what is damaged."""
    path = broken(tmp_path / "he.tif")
    small, large = (embedded(image=path, patch_um=um, on_damage="nan") for um in (20, 110))
    few, many = (set(one.uns["X_patch"]["excluded"]) for one in (small, large))
    assert few < many
    caplog.clear()
    both = embedded(encoder=[CONVOLVED, TEXTURE], image=path, patch_um=(20, 110), on_damage="nan")
    assert set(both.uns["X_patch"]["excluded"]) == many
    bad = both.obs_names.isin(list(many))
    np.testing.assert_array_equal(np.isnan(both.obsm["X_patch"]).all(1), bad)
    np.testing.assert_array_equal(np.isnan(both.obsm["X_patch"]).any(1), bad)
    assert sum("Left out" in record.msg for record in caplog.records) == 1
    with pytest.raises(DamageError, match=rf"patches of {len(many)} of 40 spots touch pixels"):
        embedded(image=path, patch_um=(20, 110))


def test_what_the_cache_holds_of_a_slice_is_told_once(tmp_path: Any, caplog: Any) -> None:
    options = {"cache": True, "cache_dir": tmp_path}
    with caplog.at_level("INFO", logger="st_gchb"):
        told = []
        for um in ((20, 37.5), (20, 37.5), (20, 37.5, 110), (50,)):
            caplog.clear()
            embedded(patch_um=um, **options)
            told.append([record.getMessage() for record in caplog.records if "found in" in record.getMessage()])
    whole = f"slice 'slice': features of 40 spots found in {tmp_path / 'features'}"
    assert told == [[], [f"{whole}."], [f"{whole}, for 2 of 3 encoders and patch sizes."], []]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_files_say_how_all_parts_were_made(tmp_path: Any, kind: str) -> None:
    """A file that is read again knows its parts, and a query follows it."""
    adata = embedded(spots()[:9].copy(), encoder=["texture", CONVOLVED])
    getattr(adata, f"write_{kind}")(tmp_path / f"a.{kind}")
    again = getattr(anndata, f"read_{kind}")(tmp_path / f"a.{kind}")
    assert feature_parts(again, "X_patch") == feature_parts(adata, "X_patch")
    query = spots()[:9].copy()
    rule = FeatureSet.from_uns(again.uns["X_patch"])
    options = {"image": RGB, "um_per_px": 1.0, "cache": False}
    with pytest.raises(EncoderError, match="module:Convolved.*not stored.*Pass encoder="):
        embed_patches_like(query, rule, **options)
    embed_patches_like(query, rule, encoder=CONVOLVED, **options)
    np.testing.assert_array_equal(query.obsm["X_patch"], adata.obsm["X_patch"])
    np.testing.assert_array_equal(query.obsm["X_patch_made"], adata.obsm["X_patch_made"])
    embed_patches_like(query, rule, encoder=[None, CONVOLVED], weights=[None, None], **options)
    with pytest.raises(InputError, match="encoder= has 1 entries for 2 encoders"):
        embed_patches_like(query, rule, encoder=[CONVOLVED], **options)


def test_one_module_or_file_for_several_is_asked_which(tmp_path: Any, small_patches: None) -> None:
    """Where only one encoder can be meant, it is taken."""
    options = {"image": RGB, "um_per_px": 1.0, "cache": False}
    two = embedded(encoder=[CONVOLVED, Convolved(1)], patch_um=20)
    rule = FeatureSet.from_uns(two.uns["X_patch"])
    with pytest.raises(InputError, match="encoder= is one.*2 encoders.*of which 2 take it"):
        embed_patches_like(spots(), rule, encoder=CONVOLVED, **options)
    state = get_encoder("squeezenet1_1", None).module.state_dict()
    torch.save(state, tmp_path / "w.pth")
    named = embedded(encoder=["texture", "squeezenet1_1"], weights=["default", tmp_path / "w.pth"], patch_um=30)
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    query = spots()
    rule = FeatureSet.from_uns(named.uns["X_patch"])
    embed_patches_like(query, rule, weights=tmp_path / "moved.pth", **options)
    np.testing.assert_array_equal(query.obsm["X_patch"], named.obsm["X_patch"])


def test_features_of_other_parts_are_stale() -> None:
    """Objects whose features were made in different ways are not joined unnoticed."""
    from st_gchb.pp.patches import check_made

    first, second = embedded(patch_um=(20, 40)), embedded(patch_um=(40, 20))
    first.obs_names = [f"a{i}" for i in range(40)]
    for one, name in ((first, "a"), (second, "b")):
        one.obs["slice"] = name
    same = embedded(patch_um=(20, 40))
    same.obs["slice"] = "b"
    joined = anndata.concat([first, same], uns_merge="unique")
    check_made(joined, "X_patch", sections_of(joined, "slice"), "")
    assert feature_parts(joined, "X_patch").sizes == [20.0, 40.0]
    joined = anndata.concat([first, second], uns_merge="unique")
    with pytest.raises(StaleError, match="2 different ways"):
        check_made(joined, "X_patch", sections_of(joined, "slice"), "")
    assert (first.obsm[made_key("X_patch")][:, 3] != second.obsm[made_key("X_patch")][:, 3]).all()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no size": ({"patch_um": []}, InputError, "no patch size. Pass patch_um= with at least one"),
    "no size in px": ({"patch_px": ()}, InputError, "no patch size. Pass patch_px= with at least one"),
    "no encoder": ({"encoder": []}, InputError, "no encoder. Pass encoder= with at least one"),
    "size twice": ({"patch_um": (20, 40, 20.0)}, InputError, "patch size 20 is given more than once"),
    "size in px twice": ({"patch_px": (64, 64)}, InputError, "patch size 64 is given more than once"),
    "encoder twice": ({"encoder": ("texture", "texture")}, InputError, "encoder 'texture' is given more than once"),
    "module twice": ({"encoder": (CONVOLVED, Convolved())}, InputError, "'module:Convolved' is given more than once"),
    "a size below 0": ({"patch_um": (20, -1)}, InputError, "with -1 in it"),
    "a size of text": ({"patch_um": (20, "40")}, InputError, "with '40' in it"),
    "text for sizes": ({"patch_um": "20,40"}, InputError, "patch_um='20,40'"),
    "no finite size": ({"patch_um": (20, float("nan"))}, InputError, "with nan in it"),
    "an encoder of a number": ({"encoder": ("texture", 3)}, InputError, "with 3 in it"),
    "an unknown encoder": ({"encoder": ("texture", "resnet5")}, EncoderError, "resnet5"),
    "weights of others": ({"encoder": ("texture", CONVOLVED), "weights": ["default"]}, InputError, "1 entries for 2"),
    "a transform": (
        {"encoder": ("texture", CONVOLVED), "transform": lambda x: x},
        InputError,
        "transform= goes with one encoder, and there are 2",
    ),
    "maps of sizes": (
        {"encoder": "squeezenet1_1", "weights": None, "save_feature_maps": True, "patch_um": (40, 20)},
        EncoderError,
        "1 encoders .squeezenet1_1. at 2 sizes. Pass encoder='squeezenet1_1' and patch_um=20",
    ),
    "maps of encoders": (
        {"encoder": ("texture", CONVOLVED), "save_feature_maps": True, "patch_px": 40},
        EncoderError,
        "Pass encoder='module:Convolved' and patch_px=40",
    ),
    "larger than the slide": ({"patch_um": (20, 301)}, ScaleError, "301 µm is 301 px wide.*400 x 300 px"),
    "larger in px": ({"patch_px": 300.6}, ScaleError, "300.6 px is 300.6 px wide.*Pass patch_px="),
    "smaller than a px": ({"patch_um": (20, 0.1)}, ScaleError, "0.1 px wide"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_is_written(case: str) -> None:
    """With what was found and what is expected."""
    options, error, message = BAD[case]
    adata = spots()
    with pytest.raises(error, match=message):
        embedded(adata, **options)
    assert list(adata.obsm) == ["spatial"]
    assert not adata.uns


def test_a_patch_as_large_as_the_slide_is_none_too_large() -> None:
    """Up to the shorter side, with the rounding of windows."""
    assert embedded(patch_um=(300.4, 20)).obsm["X_patch"].shape == (40, 58)


def test_the_slide_that_is_too_small_is_named() -> None:
    """Of several slices, each has its own image."""
    adata = spots()
    adata.obs["slice"] = np.where(np.arange(40) < 20, "large", "small")
    adata.obsm["spatial"][20:] /= 4
    with pytest.raises(ScaleError, match="slice 'small': a patch of 110 µm"):
        embedded(adata, image={"large": RGB, "small": RGB[:80, :110]})
