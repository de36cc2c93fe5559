"""Names that are imported when they are first asked for, without garbage collection meanwhile."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import st_gchb
from st_gchb import metrics


class Watch:
    """Finder that notes whether garbage is collected while a module is looked for, and finds none."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, list[bool]()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            self.seen.append(gc.get_threshold()[0] > 0)
            # Which libraries ask for when they are imported.
            assert gc.isenabled()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A module of the package is imported anew."""
    watch = Watch("st_gchb._versions")
    monkeypatch.setattr(sys, "meta_path", [watch, *sys.meta_path])
    importlib.import_module(watch.name)
    monkeypatch.delitem(sys.modules, watch.name)
    watch.seen.clear()
    before = gc.get_threshold()
    yield watch
    gc.set_threshold(*before)


@pytest.mark.parametrize("collecting", [True, False])
def test_nothing_is_collected_while_a_name_is_imported(watch, collecting):
    """Of which nothing is seen afterwards, whoever had switched it off before."""
    if not collecting:
        gc.set_threshold(0)
    before = gc.get_threshold()
    assert callable(st_gchb.print_versions)
    assert watch.seen == [False]
    assert gc.get_threshold() == before


def test_a_room_that_has_no_such_name(watch):
    for room in (st_gchb, metrics):
        with pytest.raises(AttributeError, match="no_such_name"):
            room.no_such_name  # noqa: B018
    assert gc.get_threshold()[0] > 0


def test_an_import_that_fails_leaves_it_on(watch, monkeypatch):
    monkeypatch.setitem(sys.modules, watch.name, None)
    with pytest.raises(ImportError):
        st_gchb.print_versions  # noqa: B018
    assert gc.get_threshold()[0] > 0


def test_in_rooms_too(monkeypatch):
    """A room's names go the same way."""
    home = metrics.pearson.__module__
    watch = Watch(home)
    monkeypatch.setattr(sys, "meta_path", [watch, *sys.meta_path])
    monkeypatch.delitem(sys.modules, home)
    # Found again by the room, which keeps what it has found.
    monkeypatch.delattr(metrics, "pearson")
    assert metrics.pearson.__module__ == home
    assert watch.seen == [False]
    assert gc.get_threshold()[0] > 0
