"""Patches that several threads read: those of one thread bit for bit, within the memory, errors in place, an end."""

from __future__ import annotations

import contextvars
import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings, strategies as st

from st_gchb._errors import DamageError, ImageError
from st_gchb.io import SlideImage, open_image
from st_gchb.io.images import chunk_edges
from st_gchb.pp import Slice, read_patches
from st_gchb.pp.patches import Damage, Workers, _reader as reader, _window_plan as sweep, prefetch
from st_gchb.pp.patches._reader import PatchRead, patches_of_sizes

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
CENTERS = np.column_stack([rng.uniform(0, 400, 60), rng.uniform(0, 300, 60)])
THREADS = "st_gchb.pp.patches._threads"
PIECES = "st_gchb.io.images._chunks.PIECE_PX"


class Level:
    """A level that counts how often each chunk is decoded and by how many threads at once, and fails where told to."""

    def __init__(self, pixels: np.ndarray = RGB, chunks: Any = (32, 48), *, parallel: bool = True) -> None:
        self.pixels, self.shape, self.chunks, self.parallel = pixels, pixels.shape, chunks, parallel
        self.edges = chunk_edges(chunks, pixels.shape[:2])
        self.times = np.zeros([len(edges) - 1 for edges in self.edges], dtype=int)
        self.fails: dict[tuple[int, int], BaseException] = {}
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        touched = [
            np.flatnonzero((edges[:-1] < part.stop) & (edges[1:] > part.start))
            for edges, part in zip(self.edges, window, strict=True)
        ]
        with self.lock:
            self.times[np.ix_(*touched)] += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            for place, error in self.fails.items():
                if place[0] in touched[0] and place[1] in touched[1]:
                    raise error
            return self.pixels[window].copy()
        finally:
            with self.lock:
                self.now -= 1


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("st_gchb-")]


def batches(
    levels: list[Any],
    sizes: list[tuple[float, int]],
    n: int,
    batch_size: int = 8,
    memory_mb: float = 500.0,
    n_spots: int = 60,
) -> list[tuple[int, list[int], bytes]]:
    """Return the batches that a number of threads gives: the size, the spots, and the bytes of their patches."""
    downsamples = [levels[0].shape[0] / level.shape[0] for level in levels]
    slide = Slice("a", np.arange(n_spots), CENTERS[:n_spots], SlideImage(levels, downsamples))
    reads = [PatchRead(side, out, Damage("a", "he", n_spots)) for side, out in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "working_threads", lambda: n)
        found = patches_of_sizes(slide, reads, batch_size, memory_mb)
        return [(size, rows.tolist(), patches.tobytes()) for size, rows, patches in found]


def by_size(found: list[tuple[int, list[int], bytes]]) -> dict[int, list[Any]]:
    return {size: [one[1:] for one in found if one[0] == size] for size in {one[0] for one in found}}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.floats(1, 300), st.integers(1, 30)), min_size=1, max_size=3, unique=True),
    factors=st.sampled_from([(1,), (1, 2, 4)]),
    chunks=st.sampled_from([(32, 48), (7, 400), (64, 64), None]),
    n=st.integers(2, 6),
    parallel=st.booleans(),
    batch_size=st.integers(1, 30),
    memory_mb=st.sampled_from([4.0, 6.0, 20.0, 500.0]),
)
def test_the_batches_are_those_of_one_thread(
    sizes: list[tuple[float, int]],
    factors: tuple[int, ...],
    chunks: Any,
    n: int,
    parallel: bool,
    batch_size: int,
    memory_mb: float,
) -> None:
    """The same spots in the same order, the same pixels, from chunks that are decoded as often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIECES, 64)

        def told(n: int) -> tuple[Any, list[Level]]:
            levels = [Level(RGB[::factor, ::factor], chunks, parallel=parallel) for factor in factors]
            try:
                return by_size(batches(levels, sizes, n, batch_size, memory_mb, n_spots=25)), levels
            except Exception as error:  # noqa: BLE001 - too little memory is the same error for all
                return str(error), levels

        (expected, once), (found, levels) = told(1), told(n)
    assert found == expected
    for level, other in zip(levels, once, strict=True):
        np.testing.assert_array_equal(level.times, other.times)
        assert level.most <= (n if parallel else 1)
    assert not running()


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("memory_mb", [1.6, 3, 64])
def test_what_is_read_ahead_is_within_the_memory(
    watched_windows: list[Any], monkeypatch: pytest.MonkeyPatch, n: int, memory_mb: float
) -> None:
    """What lies in pieces that are being read counts before it is there."""
    monkeypatch.setattr(sweep, "_CELL_PX", 128)
    monkeypatch.setattr(PIECES, 256)
    monkeypatch.setattr(reader, "working_threads", lambda: n)
    level = Level(np.zeros((2000, 2000, 3), dtype=np.uint8), (128, 128))
    y, x = np.mgrid[30:2000:60, 30:2000:60]
    centers = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    slide = Slice("a", np.arange(len(centers)), centers, SlideImage([level], [1.0]))
    for _ in read_patches(slide, 100, 20, 16, memory_mb):
        for band in watched_windows:
            assert band.held_bytes + band._reserved <= memory_mb * 1e6
    assert 0 < max(band.peak_bytes for band in watched_windows) <= memory_mb * 1e6
    assert all(band.held_bytes == band._reserved == 0 and not band._cells for band in watched_windows)
    assert level.most <= n


def until_it_fails(level: Level, n: int, error: type[BaseException]) -> list[Any]:
    """Return what comes before the error."""
    slide = Slice("a", np.arange(60), CENTERS, SlideImage([level], [1.0]))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "working_threads", lambda: n)
        patch.setattr(PIECES, 48)
        with pytest.raises(error, match="here"):
            seen.extend((rows.tolist(), patches.tobytes()) for rows, patches in read_patches(slide, 20, 10, 4))
    return seen


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("spot", [0, 1, 2, 3])
def test_an_error_comes_after_the_batches_before_it(n: int, spot: int) -> None:
    """Wherever the piece that fails was begun ahead."""
    levels = [Level(), Level()]
    x, y = CENTERS[spot].astype(int)
    for level in levels:
        level.fails[y // 32, x // 48] = ImageError("not here")
    alone, several = (until_it_fails(level, k, ImageError) for level, k in zip(levels, (1, n), strict=True))
    assert several == alone
    assert not running()


@pytest.mark.parametrize("n", [1, 3])
def test_an_interruption_leaves_nothing_behind(n: int) -> None:
    level = Level()
    level.fails[4, 4] = KeyboardInterrupt("here")
    until_it_fails(level, n, KeyboardInterrupt)
    assert not running()
    assert level.now == 0
    assert (level.times == 0).any()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_damage_is_that_of_one_thread(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIECES, 100)

    def told(n: int) -> tuple[Any, ...]:
        level = Level()
        level.fails = {(2, 3): DamageError("first"), (7, 7): DamageError("second")}
        slide = Slice("a", np.arange(60), CENTERS, SlideImage([level], [1.0]))
        damage = Damage("a", "he", 60)
        monkeypatch.setattr(reader, "working_threads", lambda: n)
        found = [
            (rows.tolist(), patches.tobytes())
            for rows, patches in reader.whole_patches(slide, 30, 12, 8, 500.0, damage)
        ]
        return found, damage.rows, damage.boxes, damage.reason

    found = told(n)
    assert found == told(1)
    assert found[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_threads_end_when_the_caller_fails(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while a traceback refers to the reader."""
    monkeypatch.setattr(reader, "working_threads", lambda: 3)
    monkeypatch.setattr(PIECES, 48)
    level = Level()
    slide = Slice("a", np.arange(60), CENTERS, SlideImage([level], [1.0]))

    def use(items: Any) -> None:
        for _ in items:
            assert running()
            raise error

    source = read_patches(slide, 20, 10, 4)
    with pytest.raises(error), closing(prefetch(source)) as items:
        use(items)
    assert not running()
    assert list(source) == []


def test_no_thread_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{THREADS}.ThreadPoolExecutor", None)
    assert batches([Level()], [(20.0, 10)], 1)


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster that was given one thread keeps to it, whatever the machine has."""
    for of_torch, cores, expected in ((1, 8, 1), (8, 2, 2), (3, 8, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda of_torch=of_torch: of_torch)
        monkeypatch.setattr("st_gchb._versions.usable_cores", lambda cores=cores: cores)
        assert reader.working_threads() == expected


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), order=st.permutations(range(12)), bad=st.sets(st.integers(0, 11)))
def test_results_are_those_of_the_calls_in_any_order(n: int, order: list[int], bad: set[int]) -> None:
    made = []

    def call(i: int) -> int:
        made.append(i)
        if i in bad:
            raise ValueError(i)
        return i * i

    with Workers(n) as workers:
        tasks = [workers.submit(call, i) for i in range(12)]
        for i in order:
            if i in bad:
                with pytest.raises(ValueError, match=str(i)):
                    tasks[i].result()
            else:
                assert tasks[i].result() == i * i
    assert sorted(made) == list(range(12))


def test_calls_not_begun_are_dropped_at_the_end() -> None:
    begun, go, made = threading.Event(), threading.Event(), []

    def wait() -> None:
        begun.set()
        go.wait(20)

    with Workers(2) as workers:
        workers.submit(wait)
        begun.wait(20)
        for i in range(5):
            workers.submit(made.append, i)
        # Threads end after the call that they are at.
        threading.Timer(0.05, go.set).start()
    assert made == []
    assert not running()


def test_one_that_waits_takes_up_other_calls() -> None:
    """Else a thread would be idle while work is there."""
    begun, go = threading.Event(), threading.Event()

    def first() -> int:
        begun.set()
        return 1 if go.wait(20) else 0

    with Workers(2) as workers:
        task = workers.submit(first)
        begun.wait(20)
        workers.submit(go.set)
        assert task.result() == 1


def test_calls_run_in_the_callers_context_and_keep_torch_to_their_thread() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="")
    name.set("embed_patches")
    seen, before = {}, torch.get_num_threads()
    barrier = threading.Barrier(2)

    def look() -> None:
        barrier.wait(20)
        seen[threading.current_thread().name] = (name.get(), torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        with Workers(3) as workers:
            for task in [workers.submit(look) for _ in range(2)]:
                task._made.result(20)
        assert list(seen.values()) == [("embed_patches", 1)] * 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


KINDS = {
    "jpeg tiles": {"tile": (64, 64), "compression": "jpeg"},
    "deflate tiles": {"tile": (32, 48), "compression": "zlib"},
    "strips": {"rowsperstrip": 16, "compression": "lzw"},
    "planes": {"tile": (64, 64), "compression": "zlib", "planarconfig": "separate"},
    "as it is": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiff_is_read_by_several_threads(kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share one file, of which each reads its own place, also where systems have no call for that or give less."""
    pixels = np.moveaxis(RGB, -1, 0) if kind == "planes" else RGB
    tifffile.imwrite(tmp_path / "he.tif", pixels, photometric="rgb", **KINDS[kind])
    monkeypatch.setattr(PIECES, 64)

    def patches(n: int) -> list[Any]:
        image = open_image(tmp_path / "he.tif")
        assert image.parallel(0)
        slide = Slice("a", np.arange(60), CENTERS, image)
        monkeypatch.setattr(reader, "working_threads", lambda: n)
        return [(rows.tolist(), found.tobytes()) for rows, found in read_patches(slide, 40, 24, 8)]

    expected = patches(1)
    assert patches(4) == expected
    for pread in (None, lambda file, count, offset: b"\0" * (count // 2)):
        monkeypatch.setattr("st_gchb.io.images._tiff._pread", pread)
        assert patches(4) == expected


def test_other_levels_are_read_by_one_thread_at_a_time(tmp_path: Any) -> None:
    assert not open_image(RGB).parallel(0)
    assert not SlideImage([Level(parallel=False)], [1.0]).parallel(0)
    tifffile.imwrite(tmp_path / "he.tif", RGB, photometric="rgb", tile=(64, 64), extratags=[(274, "H", 1, 6, True)])
    assert open_image(tmp_path / "he.tif").parallel(0)
