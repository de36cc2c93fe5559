"""Pixels of patches on disk: those of the reader, read once, whole or absent."""

from __future__ import annotations

import logging
import pickle
import resource
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings, strategies as st

from st_gchb._errors import CacheError, DamageError, ScaleError, STGCHBError
from st_gchb.io import open_image
from st_gchb.pp import Slice, read_patches
from st_gchb.pp.patches import PatchPixels

RGB = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
DARK = RGB // 2
SIZE = {"out_px": 9, "patch_um": 12.0}
READER = "st_gchb.pp.patches._pixels.read_patches"


def slide_of(name, centers, rows=None, rgb=RGB, um_per_px=0.5):
    centers = np.asarray(centers, dtype=float)
    rows = np.arange(len(centers)) if rows is None else np.asarray(rows)
    return Slice(name, rows, centers, open_image(rgb), um_per_px=um_per_px)


def centers_of(n, seed=0):
    return np.random.default_rng(seed).uniform(0, [150, 120], (n, 2))


def two_slides():
    """Two slices whose spots alternate."""
    return [slide_of("a", centers_of(5), [0, 2, 4, 6, 8]), slide_of("b", centers_of(4, 1), [1, 3, 5, 7], rgb=DARK)]


def direct(slides, out_px=9, side=24.0):
    """Patches as the reader gives them, in the order of the spots."""
    result = np.zeros((sum(len(slide.rows) for slide in slides), out_px, out_px, 3), dtype=np.uint8)
    for slide in slides:
        for rows, patches in read_patches(slide, side, out_px):
            result[slide.rows[rows]] = patches
    return result


@pytest.fixture
def reads(monkeypatch):
    """Names of the slices that are read."""
    read = []

    def noted(slide, *args, **options):
        # The reader does nothing before its first batch is asked for.
        def batches():
            read.append(slide.name)
            yield from read_patches(slide, *args, **options)

        return batches()

    monkeypatch.setattr(READER, noted)
    return read


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


# ---- The reader's pixels ----


@settings(deadline=None, max_examples=40)
@given(data=st.data(), out_px=st.integers(1, 12), side=st.integers(2, 40), kept=st.booleans())
def test_pixels_are_those_of_the_reader_in_any_order(tmp_path_factory, data, out_px, side, kept):
    n = data.draw(st.integers(1, 12))
    coordinate = st.tuples(st.floats(0, 150), st.floats(0, 120))
    centers = np.array(data.draw(st.lists(coordinate, min_size=n, max_size=n)))
    owner = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    slides = [
        slide_of(f"s{i}", centers[owner == i], np.flatnonzero(owner == i), rgb=RGB if i else DARK)
        for i in np.unique(owner)
    ]
    folder = tmp_path_factory.mktemp("cache") if kept else None
    pixels = PatchPixels(slides, out_px=out_px, patch_um=side / 2, folder=folder)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), dtype=np.int64)
    assert pixels.shape == (n, out_px, out_px, 3)
    assert len(pixels) == n
    found = pixels[rows]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, direct(slides, out_px, side)[rows])


def test_the_side_may_be_given_in_px(tmp_path):
    """Sides in px count in the full-resolution image, of which the slide may hold a smaller copy."""
    slides = [replace(slide, scale=0.5) for slide in two_slides()]
    found = PatchPixels(slides, out_px=9, patch_px=48, folder=tmp_path)[np.arange(9)]
    np.testing.assert_array_equal(found, direct(two_slides()))


def test_what_is_taken_is_a_copy(tmp_path):
    pixels = PatchPixels(two_slides(), **SIZE, folder=tmp_path)
    pixels[np.arange(9)][:] = 0
    np.testing.assert_array_equal(pixels[np.arange(9)], direct(two_slides()))


# ---- Read once ----


def test_nothing_is_read_before_pixels_are_taken(tmp_path, reads):
    pixels = PatchPixels(two_slides(), **SIZE, folder=tmp_path)
    assert (reads, files_in(tmp_path)) == ([], [])
    pixels[np.array([3])]
    pixels[np.array([0])]
    assert reads == ["a", "b"]


def test_a_second_object_reads_no_image(tmp_path, reads):
    for _ in range(2):
        found = PatchPixels(two_slides(), **SIZE, folder=tmp_path)[np.arange(9)]
        np.testing.assert_array_equal(found, direct(two_slides()))
    assert reads == ["a", "b"]
    assert len(files_in(tmp_path)) == 2


def test_slices_are_found_whatever_others_there_are(tmp_path, reads):
    """A fold's training slices, and later the same slice with other rows and another name."""
    first, second = two_slides()
    PatchPixels([first, second], **SIZE, folder=tmp_path)[np.arange(9)]
    alone = replace(second, name="other", rows=np.array([3, 1, 0, 2]))
    found = PatchPixels([alone], **SIZE, folder=tmp_path)[np.array([3, 1])]
    assert reads == ["a", "b"]
    np.testing.assert_array_equal(found, direct([alone])[[3, 1]])


def test_without_a_folder_each_object_reads(reads):
    for _ in range(2):
        PatchPixels(two_slides(), **SIZE)[np.arange(9)]
    assert reads == ["a", "b"] * 2


CHANGES = {
    "pixels": lambda slide: replace(slide, image=open_image(np.where(RGB == RGB[50, 50], 0, RGB).astype(np.uint8))),
    "a position": lambda slide: replace(slide, centers_px=slide.centers_px + 0.01 * np.eye(5, 2)),
    "order of spots": lambda slide: replace(slide, centers_px=slide.centers_px[::-1]),
    "size of a pixel": lambda slide: replace(slide, um_per_px=0.51),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_slice_that_changed_is_read_anew(tmp_path, reads, name):
    first, second = two_slides()
    PatchPixels([first, second], **SIZE, folder=tmp_path)[np.arange(9)]
    changed = CHANGES[name](first)
    PatchPixels([changed, second], **SIZE, folder=tmp_path)[np.arange(9)]
    assert reads == ["a", "b", "a"]
    assert len(files_in(tmp_path)) == 3


@pytest.mark.parametrize("change", [{"out_px": 10}, {"patch_um": 12.5}])
def test_another_size_is_read_anew(tmp_path, reads, change):
    for size in (SIZE, SIZE | change, SIZE):
        PatchPixels(two_slides(), **size, folder=tmp_path)[np.arange(9)]
    assert reads == ["a", "b"] * 2


def test_a_file_whose_pixels_changed_is_read_anew(tmp_path, reads):
    path = tmp_path / "he.tif"
    for rgb in (RGB, DARK):
        tifffile.imwrite(path, rgb, photometric="rgb", compression="zlib")
        slide = replace(two_slides()[0], rows=np.arange(5), image=open_image(path))
        found = PatchPixels([slide], **SIZE, folder=tmp_path / "cache")[np.arange(5)]
        np.testing.assert_array_equal(found, direct([slide]))
    assert reads == ["a", "a"]


# ---- Files that are not what was written ----


def save(path, array, **options):
    with path.open("wb") as file:
        np.save(file, array, **options)


SPOILED = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "header alone": lambda path: path.write_bytes(path.read_bytes()[:128]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("patches"),
    "other shape": lambda path: save(path, np.zeros((5, 9, 9), np.uint8)),
    "other numbers": lambda path: save(path, np.zeros((5, 9, 9, 3), np.int8)),
    "objects": lambda path: save(path, np.array([{}] * 5), allow_pickle=True),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(np.zeros((5, 9, 9, 3), np.uint8))),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_is_read_again_with_a_warning(tmp_path, reads, caplog, name):
    slide = slide_of("a", centers_of(5))
    for _ in range(2):
        PatchPixels([slide], **SIZE, folder=tmp_path)[np.arange(5)]
    assert not caplog.records
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    SPOILED[name](path)
    found = PatchPixels([slide], **SIZE, folder=tmp_path)[np.arange(5)]
    np.testing.assert_array_equal(found, direct([slide]))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert path.name in warning
    assert "read again" in warning
    assert reads == ["a", "a"]
    assert path.read_bytes() == written
    assert files_in(tmp_path) == [path.name]


# ---- Whole or absent ----


@pytest.mark.parametrize("error", [DamageError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("kept", [True, False])
def test_nothing_is_left_when_reading_fails_half_way(tmp_path, monkeypatch, error, kept):
    def failing(slide, *args, **options):
        yield from list(read_patches(slide, *args, **options, batch_size=2))[:1]
        raise error("half way")

    pixels = PatchPixels([slide_of("a", centers_of(5))], **SIZE, folder=tmp_path if kept else None)
    with monkeypatch.context() as patch:
        patch.setattr(READER, failing)
        with pytest.raises(error, match="half way"):
            pixels[np.array([0])]
    assert files_in(tmp_path) == []
    # The same object reads them when it can.
    np.testing.assert_array_equal(pixels[np.arange(5)], direct([slide_of("a", centers_of(5))]))


@contextmanager
def largest_file(n_bytes):
    """Let the operating system refuse what is written beyond a number of bytes, as a full disk does."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("room", [0, 100, 1100])
@pytest.mark.parametrize("kept", [True, False])
def test_a_disk_without_room_is_told(tmp_path, room, kept):
    pixels = PatchPixels([slide_of("a", centers_of(5))], **SIZE, folder=tmp_path / "cache" if kept else None)
    where = str(tmp_path / "cache") if kept else "folder of temporary files"
    with largest_file(room), pytest.raises(CacheError, match=f"slice 'a'.*{where}.*Free space.*cache_dir"):
        pixels[np.array([0])]
    assert [name for name in files_in(tmp_path) if name != "cache"] == []
    np.testing.assert_array_equal(pixels[np.arange(5)], direct([slide_of("a", centers_of(5))]))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "cache").write_text("a file")
    pixels = PatchPixels([slide_of("a", centers_of(5))], **SIZE, folder=tmp_path / "cache")
    with pytest.raises(CacheError, match="slice 'a'.*cache"):
        pixels[np.array([0])]
    assert (tmp_path / "cache").read_text() == "a file"


# ---- Memory ----


def test_patches_are_mapped_and_not_in_memory(tmp_path):
    """1,500 patches of 64 px are 18.4 MB."""
    slide = slide_of("a", centers_of(1500))
    for folder in (tmp_path, None):
        pixels = PatchPixels([slide], out_px=64, patch_um=12.0, folder=folder, memory_mb=6)
        tracemalloc.start()
        try:
            pixels[np.array([0])]
            reading = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            pixels[np.arange(300, 310)]
            taking = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert reading < 7e6
        assert taking < 0.5e6


def test_the_bound_of_memory_reaches_the_reader():
    pixels = PatchPixels([slide_of("a", centers_of(5))], **SIZE, memory_mb=1e-6)
    with pytest.raises(STGCHBError, match="memory_mb"):
        pixels[np.array([0])]


# ---- Slides ----


def test_a_patch_larger_than_the_slide_is_told_before_anything_is_read(tmp_path, reads):
    small = slide_of("b", [[5, 5]], [5], rgb=RGB[:20])
    with pytest.raises(ScaleError, match="slice 'b'.*24 px wide.*150 x 20 px.*no larger than the slide"):
        PatchPixels([slide_of("a", centers_of(5)), small], **SIZE, folder=tmp_path)
    with pytest.raises(ScaleError, match="slice 'b'.*size of a pixel is not known"):
        PatchPixels([replace(small, um_per_px=None)], **SIZE, folder=tmp_path)
    assert reads == []


def broken(path, n_bytes=40):
    """A tiled TIFF of which the tile in the lower right corner cannot be decoded."""
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[-1]
    content[start : start + n_bytes] = b"\x55" * n_bytes
    path.write_bytes(content)
    return open_image(path)


def test_damage_under_a_spot_is_told_and_nothing_kept(tmp_path):
    slide = replace(slide_of("a", [[20, 20], [140, 110]]), image=broken(tmp_path / "he.tif"))
    pixels = PatchPixels([slide], **SIZE, folder=tmp_path / "cache")
    with pytest.raises(DamageError, match=r"slice 'a' \(.*he\.tif.*1 of 2 spots"):
        pixels[np.array([0])]
    assert not list(tmp_path.rglob("*.npy"))


def test_damage_elsewhere_does_not_matter(tmp_path, caplog):
    slide = replace(slide_of("a", [[20, 20], [30, 40]]), image=broken(tmp_path / "he.tif"))
    with caplog.at_level(logging.INFO, logger="st_gchb"):
        found = PatchPixels([slide], **SIZE, folder=tmp_path / "cache")[np.arange(2)]
    np.testing.assert_array_equal(found, direct([slide_of("a", [[20, 20], [30, 40]])]))


def test_an_image_that_is_gone_is_no_fault_of_the_cache(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    slide = replace(slide_of("a", centers_of(5)), image=open_image(path))
    pixels = PatchPixels([slide], **SIZE)
    slide.image.release()
    path.unlink()
    with pytest.raises(STGCHBError, match=r"he\.tif") as caught:
        pixels[np.array([0])]
    assert not isinstance(caught.value, CacheError)
