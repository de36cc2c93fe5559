"""The thread that reads patches while the encoder runs: order, errors, an end."""

import threading
from contextlib import closing

import pytest

from st_gchb.pp.patches import AHEAD, prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("st_gchb-patches")]


class Source:
    """Numbers that note how far they were asked for, and by which thread."""

    def __init__(self, n, fails_at=None, error=ValueError):
        self.n, self.fails_at, self.error = n, fails_at, error
        self.made, self.threads = 0, set()

    def __iter__(self):
        for i in range(self.n):
            self.threads.add(threading.current_thread().name)
            if i == self.fails_at:
                raise self.error(f"item {i}")
            self.made += 1
            yield i


@pytest.mark.parametrize("n", [0, 1, AHEAD, 50])
def test_order_and_number(n):
    source = Source(n)
    assert list(prefetch(iter(source))) == list(range(n))
    assert not threads()
    assert all(name.startswith("st_gchb-patches") for name in source.threads)


def test_it_is_ahead_but_not_far():
    source = Source(100)
    ready = threading.Event()
    with closing(prefetch(iter(source))) as items:
        for i in items:
            ready.wait(0.001)
            assert source.made <= i + 1 + AHEAD
            if i == 20:
                break
        # While one item is used the next are made.
        for _ in range(1000):
            if source.made == 21 + AHEAD:
                break
            ready.wait(0.005)
        assert source.made == 21 + AHEAD
    assert not threads()


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_comes_where_its_item_would(error):
    seen = []
    with pytest.raises(error, match="item 7"):
        seen.extend(prefetch(iter(Source(20, 7, error))))
    assert seen == list(range(7))
    assert not threads()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_thread_ends_when_the_caller_fails(error):
    source = Source(10**6)

    def use(items):
        for i in items:
            if i == 3:
                raise error

    with pytest.raises(error), closing(prefetch(iter(source))) as items:
        use(items)
    assert not threads()
    assert source.made <= 4 + AHEAD
