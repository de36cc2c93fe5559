"""Levels in chunks: how they are grouped, overviews and hashes piece by piece, and reading around damage."""

import dask.array
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from st_gchb import _logging
from st_gchb._errors import DamageError, ImageError
from st_gchb.io import SlideImage, open_image
from st_gchb.io.images import (
    _chunks as chunks,
    chunk_edges,
    divided,
    grouped,
    piece_edges,
    shrink,
)

RGB = np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)
LAYOUTS = [None, (16, 16), (1, 170), (130, 170), ((50, 80), (60, 10, 100)), (50, 60, 3)]


class Level:
    """An array in chunks, some of which cannot be decoded; notes the largest window."""

    def __init__(self, array, layout, broken=()):
        self.array, self.shape, self.chunks, self.largest = array, array.shape, layout, 0
        self.edges = chunk_edges(layout, array.shape[:2])
        self.broken = [[slice(*self.edges[a][[i, i + 1]]) for a, i in enumerate(place)] for place in broken]

    def __getitem__(self, window):
        for place in self.broken:
            if all(a.start < b.stop and b.start < a.stop for a, b in zip(place, window, strict=True)):
                raise DamageError("broken")
        self.largest = max(self.largest, self.array[window].size)
        return self.array[window]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_grouping_and_dividing_keep_the_edges(sides, limit):
    edges = np.concatenate([[0], np.cumsum(sides)])
    joined = grouped(edges, limit)
    assert set(joined) <= set(edges)
    assert (joined[0], joined[-1]) == (0, edges[-1])
    longest = np.diff(joined)
    assert ((longest <= limit) | np.isin(longest, sides)).all()
    # No two neighbors would have fitted together.
    assert (longest[:-1] + longest[1:] > limit).all() or (joined[2:] - joined[:-2] > limit).all()
    parts = divided(edges, limit)
    assert set(edges) <= set(parts)
    assert np.diff(parts).max() <= limit
    assert np.diff(parts).min() >= 1


def test_pieces_of_strips_are_low_and_of_tiles_square():
    strips = piece_edges(chunk_edges((4, 40_000), (8000, 40_000)))
    assert [len(edges) for edges in strips] == [8000 // 24 + 2, 2]
    tiles = piece_edges(chunk_edges((256, 256), (8000, 8000)))
    assert [np.diff(edges).max() for edges in tiles] == [1024, 1024]
    large = piece_edges(chunk_edges((3000, 3000), (8000, 8000)))
    assert large[0].tolist() == [0, 3000, 6000, 8000]


@settings(deadline=None)
@given(layout=st.sampled_from(LAYOUTS), size=st.integers(1, 180), piece=st.sampled_from([1, 7, 64, 1024]))
def test_an_overview_is_the_mean_of_blocks_whatever_the_chunks(layout, size, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "PIECE_PX", piece)
        small, scale = SlideImage([Level(RGB, layout)], [1.0]).thumbnail(size)
    step = -(-170 // size)
    rows, columns = min(step, 130), min(step, 170)
    whole = RGB[: 130 // rows * rows, : 170 // columns * columns]
    expected = whole.reshape(130 // rows, rows, 170 // columns, columns, 3).mean((1, 3), dtype=np.float32)
    np.testing.assert_array_equal(small, expected.round().astype(np.uint8))
    assert scale == 1 / step


def test_overview_and_hash_hold_no_more_than_a_piece():
    """A pyramid with one level: the whole slide is passed over, in pieces."""
    level = Level(np.zeros((3000, 5000, 3), dtype=np.uint8), (256, 256))
    image = SlideImage([level], [1.0])
    image.thumbnail(100)
    image.fingerprint()
    assert level.largest <= 3 * 1024 * 1024


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_hash_does_not_depend_on_the_chunks(layout, monkeypatch):
    monkeypatch.setattr(chunks, "PIECE_PX", 64)
    assert SlideImage([Level(RGB, layout)], [1.0]).fingerprint() == open_image(RGB).fingerprint()


def test_the_hash_sees_every_pixel_and_the_shape():
    plain = open_image(RGB).fingerprint()
    for y, x in ((0, 0), (129, 169), (64, 100)):
        other = RGB.copy()
        other[y, x, 2] ^= 1
        assert open_image(other).fingerprint() != plain
    swapped = RGB.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert open_image(swapped).fingerprint() != plain
    assert open_image(RGB.reshape(170, 130, 3)).fingerprint() != plain


def test_bars_are_shown_for_long_work_alone(monkeypatch):
    delays = []
    monkeypatch.setattr(_logging, "tqdm", lambda items, *, delay, **_: delays.append(delay) or items)
    open_image(RGB).thumbnail(10)
    assert delays == [1.0]


def test_reading_around_chunks_that_cannot_be_decoded():
    image = SlideImage([Level(RGB, (50, 60), [(1, 1), (2, 0)])], [1.0])
    pixels, lost = image.read_chunks(0, (0, 130, 0, 170))
    assert [box for box, _ in lost] == [(50, 100, 60, 120), (100, 130, 0, 60)]
    expected = RGB.copy()
    expected[50:100, 60:120] = 0
    expected[100:, :60] = 0
    np.testing.assert_array_equal(pixels, expected)
    whole, none = image.read_chunks(0, (0, 50, 0, 170))
    np.testing.assert_array_equal(whole, RGB[:50])
    assert none == []


def test_an_overview_is_white_where_pixels_cannot_be_decoded(caplog):
    image = SlideImage([Level(np.full_like(RGB, 90), (50, 60), [(1, 1)])], [1.0])
    small, _, damaged = shrink(image, 17)
    assert "cannot be decoded" in caplog.text
    expected = np.zeros((13, 17), dtype=bool)
    expected[5:10, 6:12] = True
    np.testing.assert_array_equal(damaged, expected)
    np.testing.assert_array_equal(small[..., 0], np.where(expected, 255, 90))
    with pytest.raises(DamageError):
        image.fingerprint()


def test_a_lazy_array_with_one_bad_block_gives_the_others():
    def block(block_info=None):
        place = block_info[None]["chunk-location"]
        if place[:2] == (1, 1):
            raise RuntimeError("error during blosc decompression: -1")
        return np.full(block_info[None]["chunk-shape"], 7, dtype=np.uint8)

    lazy = dask.array.map_blocks(block, chunks=((50, 80), (60, 110), (3,)), dtype=np.uint8)
    image = open_image(lazy)
    assert (image.read(0, 0, 50, 0, 170) == 7).all()
    with pytest.raises(DamageError, match=r"lazy image array: the pixels cannot be decoded \(error during blosc"):
        image.read(0, 0, 60, 0, 170)
    assert [box for box, _ in image.read_chunks(0, (0, 130, 0, 170))[1]] == [(50, 130, 60, 170)]


def test_a_disk_that_fails_is_no_damage_of_a_chunk():
    """Else half a slide would be left out because a connection broke."""

    def fail(block_info=None):
        raise OSError(5, "Input/output error")

    image = open_image(dask.array.map_blocks(fail, chunks=((50, 80), (60, 110), (3,)), dtype=np.uint8))
    with pytest.raises(ImageError, match="Input/output error") as caught:
        image.read(0, 0, 10, 0, 10)
    assert not isinstance(caught.value, DamageError)
