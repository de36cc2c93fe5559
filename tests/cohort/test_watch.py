"""A cluster without workers says so, once, and says when it has some again."""

from __future__ import annotations

import logging

import pytest
from distributed import Client, LocalCluster

from st_gchb._logging import logger
from st_gchb.cohort import _dask as _watch, embed_slides

from .conftest import READ, TEXTURE

NONE: dict[str, int] = {}


class Looks:
    """In place of the clock: so many looks, and then it is over."""

    def __init__(self, n):
        self.left = n

    def wait(self, seconds):
        self.left -= 1
        return self.left < 0


class Workers:
    """In place of a client: what it finds, look after look."""

    def __init__(self, *found):
        self.found = list(found)

    def nthreads(self):
        found = self.found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def said(caplog, *found):
    with caplog.at_level(logging.INFO, logger=logger.name):
        _watch._watch(Workers(*found), Looks(len(found)), 30.0)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_one_look_without_workers_is_a_restart(caplog):
    assert said(caplog, {"a": 1}, NONE, {"a": 1}, NONE, {"a": 1}) == []


def test_said_once_for_each_time(caplog):
    some = {"a": 1, "b": 1}
    lines = said(caplog, some, NONE, NONE, NONE, NONE, some, some, NONE, NONE)
    assert [level for level, _ in lines] == ["WARNING", "INFO", "WARNING"]
    assert "no worker for 30 s or more: slides wait until there is one" in lines[0][1]
    assert "has workers again: 2" in lines[1][1]


@pytest.mark.parametrize("error", [OSError("lost"), RuntimeError("IOLoop is closed"), AttributeError("ncores")])
def test_a_connection_that_is_lost_ends_it(caplog, error):
    looks = Workers({"a": 1}, error, NONE, NONE)
    _watch._watch(looks, Looks(4), 30.0)
    assert len(looks.found) == 2
    assert caplog.records == []


def test_slides_wait_for_workers(images, tmp_path, monkeypatch):
    monkeypatch.setattr(_watch, "SECONDS", 0.01)
    options = {"threads_per_worker": 1, "dashboard_address": None, "processes": False}
    with LocalCluster(n_workers=0, **options) as cluster, Client(cluster, set_as_default=False) as client:

        class Hire(logging.Handler):
            """Start a worker when it is said that there is none."""

            def emit(self, record):
                if "has had no worker" in record.getMessage():
                    cluster.scale(1)

        hire = Hire()
        logger.addHandler(hire)
        try:
            report = embed_slides(images[:2], tmp_path, client=client, **TEXTURE, **READ)
        finally:
            logger.removeHandler(hire)
    assert report["status"].tolist() == ["done", "done"]
    assert report["message"].tolist() == ["", ""]
