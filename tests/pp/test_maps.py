"""Feature maps: beside features that stay as they are, whole or not at all, and found by the spots' features."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from anndata import AnnData, concat, read_h5ad
from hypothesis import given, strategies as st
from torch import nn

from st_gchb._errors import CacheError, DamageError, EncoderError, InputError, MissingFileError, MissingKeyError
from st_gchb.pp import FeatureSpec, embed_patches, embed_patches_like, get_encoder
from st_gchb.pp.encoders import Encoder
from st_gchb.pp.patches import (
    MapsWriter,
    PatchMaps,
    _feature_maps as maps_module,
    find_maps,
    ids_of,
    last_stage,
    writing,
)
from trainings import narrow_resnet

RGB = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
CENTERS = np.random.default_rng(1).uniform(20, 180, (9, 2))
OPTIONS = {"patch_um": 40.0, "um_per_px": 1.0, "device": "cpu", "n_views": 1, "save_feature_maps": True}


@pytest.fixture(autouse=True, scope="module")
def _narrow_encoder():
    with pytest.MonkeyPatch.context() as patch:
        narrow_resnet(patch)
        yield


@pytest.fixture(scope="module")
def encoder(_narrow_encoder):
    """An image encoder on small patches; without training, MobileNetV2's numbers would be too small for float16."""
    made = get_encoder("resnet18", None)
    return replace(made, input_px=64, identity=f"{made.identity}-64")


@pytest.fixture
def passed(encoder):
    """Patches that have gone through the encoder."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for module in (encoder.module, encoder.folded)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.fixture
def embedded(encoder, tmp_path):
    def make(n=9, image=RGB, **options):
        adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]), obsm={"spatial": CENTERS[:n].copy()})
        embed_patches(adata, **OPTIONS | {"encoder": encoder, "image": image, "cache_dir": tmp_path} | options)
        return adata

    return make


def found(adata, key="X_patch"):
    return find_maps(adata.uns[key], ids_of(adata.obsm[key]), key)


def everything(maps):
    return maps[np.arange(len(maps))]


def files_in(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("n_views", [1, 4])
def test_features_are_the_same_to_the_bit_and_the_stage_makes_them_of_the_maps(embedded, encoder, n_views, tmp_path):
    plain = embedded(save_feature_maps=False, n_views=n_views, cache_dir=tmp_path / "other")
    adata = embedded(n_views=n_views, batch_size=4)
    np.testing.assert_array_equal(adata.obsm["X_patch"], plain.obsm["X_patch"])
    maps = everything(found(adata))
    assert maps.shape == (9, n_views, 32, 4, 4)
    assert maps.dtype == np.float16
    with torch.inference_mode():
        stage = last_stage(encoder.module)
        made = np.mean([stage(torch.from_numpy(maps[:, view]).float()).numpy() for view in range(n_views)], axis=0)
    np.testing.assert_allclose(made, plain.obsm["X_patch"], atol=2e-3 * np.abs(made).max())
    assert "feature_maps" not in plain.uns["X_patch"]
    assert FeatureSpec.from_uns(adata.uns["X_patch"]).feature_maps


def test_they_follow_the_spots_wherever_these_go(embedded, tmp_path):
    adata = embedded()
    whole = everything(found(adata))
    order = np.array([5, 2, 8])
    np.testing.assert_array_equal(everything(found(adata[order].copy())), whole[order])
    adata[order].write_h5ad(tmp_path / "part.h5ad")
    np.testing.assert_array_equal(everything(found(read_h5ad(tmp_path / "part.h5ad"))), whole[order])
    twice = concat([adata[:4], adata[2:]], uns_merge="first", index_unique="-")
    np.testing.assert_array_equal(everything(found(twice)), whole[[0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8]])
    # A query's own, made by the rule that was stored.
    query = AnnData(obs=adata.obs.copy(), obsm={"spatial": CENTERS[::-1].copy()})
    rule = FeatureSpec.from_uns(adata.uns["X_patch"])
    with pytest.raises(EncoderError, match="hash"):
        embed_patches_like(query, replace(rule, weights_sha256="0"), image=RGB, um_per_px=1.0, cache_dir=tmp_path)
    embed_patches_like(query, replace(rule, feature_maps=False), image=RGB, um_per_px=1.0, cache_dir=tmp_path / "q")
    assert "maps" not in query.uns["X_patch"]


def test_they_are_never_taken_for_those_of_other_features(embedded, monkeypatch, tmp_path):
    adata = embedded()
    path = Path(adata.uns["X_patch"]["maps"][0])
    changed = adata.copy()
    changed.obsm["X_patch"][3] += 1
    with pytest.raises(MissingKeyError, match=r"1 of 9 spots.*embed_patches"):
        found(changed)
    with pytest.raises(MissingKeyError, match=r"names no feature maps.*save_feature_maps=True"):
        found(embedded(save_feature_maps=False))
    # A folder that was moved is found through today's cache folder.
    shutil.move(path.parent, tmp_path / "new" / "features")
    with pytest.raises(MissingFileError, match="no longer there.*embed_patches"):
        found(adata)
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path / "new"))
    assert len(found(adata)) == 9
    moved = tmp_path / "new" / "features" / path.name
    moved.write_bytes(moved.read_bytes()[:-1])
    with pytest.raises(MissingFileError, match="damaged.*embed_patches"):
        found(adata)


def test_what_is_cached_is_not_computed_again(embedded, passed):
    first = embedded()
    passed.clear()
    assert found(embedded()).shape == found(first).shape
    # The shape of the maps is asked of one empty patch.
    assert sum(passed) == 1


def test_features_that_were_cached_before_stay_those_of_the_maps(embedded, passed):
    before = embedded(save_feature_maps=False)
    passed.clear()
    adata = embedded()
    assert sum(passed) == 1 + 9
    np.testing.assert_array_equal(adata.obsm["X_patch"], before.obsm["X_patch"])
    assert len(found(adata)) == 9


def cut_short(content):
    return content[:-100]


def one_bit(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize("harm", [cut_short, one_bit, lambda _: b"", lambda content: content[:4]])
def test_a_damaged_file_is_made_again(embedded, harm, caplog):
    adata = embedded()
    expected = everything(found(adata))
    path = Path(adata.uns["X_patch"]["maps"][0])
    path.write_bytes(harm(path.read_bytes()))
    caplog.clear()
    np.testing.assert_array_equal(everything(found(embedded())), expected)
    assert "made again" in caplog.text


def test_other_weights_have_maps_of_their_own(embedded, encoder):
    other = replace(encoder, identity="other")
    first, second = embedded(), embedded(encoder=other)
    assert first.uns["X_patch"]["maps"][0] != second.uns["X_patch"]["maps"][0]


def test_a_full_disk_is_said_before_anything_is_encoded(embedded, passed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CacheError, match=rf"GB in {tmp_path}.*1e-06 GB are free.*cache_dir="):
        embedded()
    assert sum(passed) == 1
    assert files_in(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing_half_written(encoder, tmp_path, monkeypatch):
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("st_gchb.pp.patches._feature_maps.ids_of", full)
    adata = AnnData(obsm={"spatial": CENTERS.copy()})
    with pytest.raises(CacheError, match="No space left on device.*Nothing is left"):
        embed_patches(adata, **OPTIONS, encoder=encoder, image=RGB, cache_dir=tmp_path)
    assert calls
    assert files_in(tmp_path) == []
    assert list(adata.obsm) == ["spatial"]
    assert not adata.uns
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="could not be written"):
        embed_patches(adata, **OPTIONS, encoder=encoder, image=RGB, cache_dir=tmp_path / "file")


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    with (
        pytest.raises(EncoderError, match="65504"),
        writing(tmp_path / "a", 2, (1, 2)) as file,
    ):
        file.put(np.array([1]), np.array([[[1.0, np.inf]]], dtype=np.float16))
    assert files_in(tmp_path) == []
    assert isinstance(file, MapsWriter)


def test_arguments_are_refused_before_a_patch_is_read(embedded, encoder):
    for options in ({"cache": False}, {"save_feature_maps": "layer4"}):
        with pytest.raises(InputError, match=next(iter(options))):
            embedded(**options)
    own = nn.Flatten()
    with pytest.raises(EncoderError, match="last stage"):
        embedded(encoder=Encoder("module:Flatten", "module", "", 64, 3, own, transform=torch.Tensor.float))


def test_spots_that_cannot_be_decoded_have_no_maps(embedded, tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, n = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    content[start : start + n] = bytes(n)
    path.write_bytes(content)
    with pytest.raises(DamageError):
        embedded(image=path)
    assert [file.name for file in files_in(tmp_path)] == ["slide.tif"]
    adata = embedded(image=path, on_damage="nan")
    lost = adata.obs_names.isin(adata.uns["X_patch"]["excluded"])
    assert 0 < lost.sum() < 9
    # Batches are others, so sums are rounded in another order.
    expected = everything(found(embedded()))[~lost]
    np.testing.assert_allclose(everything(found(adata[~lost].copy())), expected, rtol=1e-2, atol=1e-2)


@given(data=st.data())
def test_any_spots_in_any_order_from_any_files(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    sources = [np.arange(n, dtype=np.float16).reshape(n, 1, 1, 1, 1) + 10 * i for i, n in enumerate(sizes)]
    all_maps = np.concatenate(sources)
    maps = PatchMaps(sources, np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes]))
    rows = np.array(data.draw(st.lists(st.integers(0, sum(sizes) - 1), min_size=1)))
    index = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))), dtype=np.int64)
    np.testing.assert_array_equal(maps.subset(rows)[index], all_maps[rows[index]])
    np.testing.assert_array_equal(maps.subset(rows).held()[index], all_maps[rows[index]])


def test_more_than_the_limit_stays_on_disk(embedded, monkeypatch):
    adata = embedded()
    held = found(adata)
    monkeypatch.setattr(maps_module, "MEMORY_BYTES", 1000)
    mapped = found(adata)
    assert not isinstance(held._sources[0], np.memmap)
    assert isinstance(mapped._sources[0], np.memmap)
    np.testing.assert_array_equal(everything(mapped), everything(held))
