"""Slides of which a part cannot be decoded: exactly the spots that touch it are left out, or it is an error."""

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from anndata import AnnData
from PIL import Image
from torch import nn

from st_gchb._errors import DamageError, ImageError, InputError
from st_gchb.io import open_image
from st_gchb.pp import Slice, embed_patches, find_tissue, read_patches
from st_gchb.pp.patches import Damage, cache_folder

RGB = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
TILE = 64
SIDE = 30
# The tile of row 2 and column 3, and two that touch, at the border.
PLACES = [(2, 3), (5, 6), (6, 6)]
LOST = [(y * TILE, min((y + 1) * TILE, 400), x * TILE, (x + 1) * TILE) for y, x in PLACES]
rng = np.random.default_rng(1)
CENTERS = np.round(np.column_stack([rng.uniform(0, 500, 150), rng.uniform(0, 400, 150)]))


def broken_tiff(path, compression="zlib", places=PLACES, fill=b"\x55"):
    """A tiled TIFF in which the bytes of some tiles are overwritten."""
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(TILE, TILE), compression=compression)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        for y, x in places:
            tile = y * -(-500 // TILE) + x
            start, n = page.dataoffsets[tile], page.databytecounts[tile]
            content[start : start + n] = fill * n
    path.write_bytes(content)
    return path


def broken_zarr(path):
    """A Zarr array in which the files of some chunks are overwritten."""
    array = zarr.create_array(path, shape=RGB.shape, chunks=(TILE, TILE, 3), dtype="uint8")
    array[:] = RGB
    for y, x in PLACES:
        (path / "c" / str(y) / str(x) / "0").write_bytes(b"\x55" * 500)
    return zarr.open(path, mode="r")


SOURCES = {
    "deflate": broken_tiff,
    "jpeg": lambda path: broken_tiff(path, "jpeg"),
    "lzw": lambda path: broken_tiff(path, "lzw"),
    "zarr": broken_zarr,
}


def touched(side=SIDE):
    """Whether the window of a spot, mirrored at the border, shows a pixel that is lost; pixel by pixel."""
    lost = np.zeros(RGB.shape[:2], dtype=bool)
    for y0, y1, x0, x1 in LOST:
        lost[y0:y1, x0:x1] = True
    padded = np.pad(lost, side, mode="reflect")
    starts = (CENTERS + 0.5 - side / 2).astype(int) + side
    return np.array([padded[y : y + side, x : x + side].any() for x, y in starts])


def spots():
    return AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(150)]), obsm={"spatial": CENTERS.copy()})


class Mean(nn.Module):
    """Mean color."""

    input_px = SIDE

    def transform(self, patches):
        return patches.float()

    def forward(self, x):
        return x.mean((2, 3))


def embedded(source, **options):
    adata = spots()
    settings = {"encoder": Mean(), "patch_px": SIDE, "n_views": 1, "device": "cpu", "cache": False, "image": source}
    embed_patches(adata, **{**settings, **options})
    return adata


@pytest.mark.parametrize("kind", SOURCES)
def test_exactly_the_spots_that_touch_damage_are_left_out(kind, tmp_path, caplog):
    expected = touched()
    assert 10 < expected.sum() < 60
    adata = embedded(SOURCES[kind](tmp_path / "he"), on_damage="nan")
    features = adata.obsm["X_patch"]
    np.testing.assert_array_equal(np.isnan(features).any(1), expected)
    np.testing.assert_array_equal(np.isnan(features).all(1), expected)
    assert adata.uns["X_patch"]["excluded"].tolist() == adata.obs_names[expected].tolist()
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING" and "Left" in record.msg]
    assert f"{expected.sum()} of 150 spots" in message
    assert "x 192 to 256, y 128 to 192; x 384 to 448, y 320 to 400 (" in message
    if kind != "jpeg":
        whole = embedded(RGB).obsm["X_patch"]
        np.testing.assert_allclose(features[~expected], whole[~expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_mb", [512, 6.5])
def test_bands_of_a_damaged_slide_agree(tmp_path, memory_mb, monkeypatch):
    monkeypatch.setattr("st_gchb.io.images._chunks.PIECE_PX", TILE)
    adata = embedded(broken_tiff(tmp_path / "he.tif"), on_damage="nan", memory_mb=memory_mb, batch_size=8)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_patch"]).any(1), touched())


def test_of_a_pyramid_the_level_that_is_read_counts(tmp_path):
    path = tmp_path / "p.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb", tile=(TILE, TILE), compression="zlib", subifds=1)
        writer.write(RGB[::2, ::2], photometric="rgb", tile=(TILE, TILE), compression="zlib", subfiletype=1)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0].pages[0]
        content[page.dataoffsets[6] : page.dataoffsets[6] + 20] = bytes(20)
    path.write_bytes(content)
    slide = Slice("a", np.arange(150), CENTERS, open_image(path))
    with pytest.raises(DamageError, match=r"px x 256 to 384, y 128 to 256 \("):
        list(read_patches(slide, 60, 10))
    assert sum(len(rows) for rows, _ in read_patches(slide, 60, 60)) == 150


def test_reference_data_have_to_be_whole(tmp_path):
    adata = spots()
    adata.uns["kept"] = 1
    path = broken_tiff(tmp_path / "he.tif")
    with pytest.raises(DamageError, match=rf"he\.tif.*{touched().sum()} of 150 spots.*px x 192 .*on_damage='nan'"):
        embed_patches(adata, encoder=Mean(), patch_px=SIDE, n_views=1, image=path)
    assert list(adata.obsm) == ["spatial"]
    assert list(adata.uns) == ["kept"]
    with pytest.raises(InputError, match="on_damage='drop'; expected 'raise' or 'nan'"):
        embedded(path, on_damage="drop")


def test_patches_of_the_others_come_before_the_error(tmp_path):
    slide = Slice("a", np.arange(150), CENTERS, open_image(broken_tiff(tmp_path / "he.tif")))
    seen = []
    with pytest.raises(DamageError):
        seen.extend(row for rows, _ in read_patches(slide, SIDE, SIDE, 16) for row in rows)
    assert sorted(seen) == np.flatnonzero(~touched()).tolist()


def test_nothing_is_left(tmp_path):
    everywhere = [(y, x) for y in range(7) for x in range(8)]
    path = broken_tiff(tmp_path / "he.tif", places=everywhere)
    with pytest.raises(DamageError, match=r"no spot is left.*px x 0 to 500, y 0 to 400"):
        embedded(path, on_damage="nan", patch_px=2 * SIDE)


@pytest.mark.parametrize("kind", SOURCES)
def test_features_of_a_damaged_slide_are_not_cached(kind, tmp_path):
    source = SOURCES[kind](tmp_path / "he")
    for _ in range(2):
        adata = embedded(source, on_damage="nan", cache=True, cache_dir=tmp_path)
        assert len(adata.uns["X_patch"]["excluded"]) == touched().sum()
        with pytest.raises(DamageError):
            embedded(source, cache=True, cache_dir=tmp_path)
    assert not list(cache_folder(tmp_path).glob("*"))


def test_a_jpeg_cut_short_is_an_error(tmp_path):
    """It is decoded whole, so nothing of it can be trusted."""
    Image.fromarray(RGB).save(tmp_path / "he.jpg")
    content = (tmp_path / "he.jpg").read_bytes()
    (tmp_path / "he.jpg").write_bytes(content[: len(content) // 2])
    for on_damage in ("raise", "nan"):
        with pytest.raises(ImageError, match=r"he\.jpg.*damaged or incomplete") as caught:
            embedded(tmp_path / "he.jpg", on_damage=on_damage)
        assert not isinstance(caught.value, DamageError)


def test_a_missing_file_is_no_damage(tmp_path, monkeypatch):
    """Else all spots of a share that went away would be left out with a warning."""
    path = broken_tiff(tmp_path / "he.tif", places=[])
    image = open_image(path)
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read") as caught:
        embedded(image, on_damage="nan")
    assert not isinstance(caught.value, DamageError)


def test_places_that_cannot_be_decoded_are_no_tissue(tmp_path, caplog):
    """Textured stain all over, in a pyramid with one level."""
    stained = np.array([180, 110, 170]) + rng.integers(-50, 50, (400, 500, 1))
    tifffile.imwrite(tmp_path / "he.tif", stained.astype(np.uint8), photometric="rgb", tile=(64, 64), compression="lzw")
    options = {"um_per_px": 4.0, "resolution_um": 8.0, "min_area_um2": 1.0}
    assert find_tissue(tmp_path / "he.tif", **options).mask.all()
    content = bytearray((tmp_path / "he.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "he.tif") as file:
        start = file.pages[0].dataoffsets[19]
    content[start : start + 200] = bytes(200)
    (tmp_path / "he.tif").write_bytes(content)
    mask = find_tissue(tmp_path / "he.tif", **options).mask
    assert "cannot be decoded" in caplog.text
    assert not mask[64:96, 96:128].any()
    assert mask.mean() > 0.95


def test_messages_name_some_regions_and_count_the_others():
    damage = Damage("a", "he.tif", 100)
    cause = DamageError("outer")
    cause.__cause__ = ValueError("bad data")
    for i in range(9):
        damage.note(i, [((100 * i, 100 * i + 10, 5, 25), cause)], 2.0)
    assert damage.regions[0] == (0, 20, 10, 50)
    assert "9 of 100 spots" in damage.describe()
    assert damage.describe().count("x 10 to 50") == 5
    assert damage.describe().endswith("and 4 more regions (bad data)")
