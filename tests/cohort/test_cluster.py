"""Real processes that are really killed: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from st_gchb._errors import ClusterError
from st_gchb.cohort import Embed, _dask as _send, _worker as _work, embed_slides, predict_slides

from .conftest import READ, TEXTURE

pytestmark = pytest.mark.slow


def hook():
    """A plugin for the workers; made inside a function, it travels with its code."""
    from distributed import WorkerPlugin

    class Hook(WorkerPlugin):
        """Logs what is computed; stops in the middle of a ``victim``, once, and dies of a ``killer``."""

        name = "hook"

        def setup(self, worker):
            import importlib
            import os
            import signal
            import time
            from pathlib import Path

            import pytest

            from st_gchb.cohort import _worker as _work
            from trainings import SMALL_TEXTURE_PX, set_texture_patches

            # As in the process of the tests.
            set_texture_patches(pytest.MonkeyPatch(), SMALL_TEXTURE_PX)
            tables = importlib.import_module("st_gchb.model._result_tables")

            def log(job, *words):
                with (Path(job.out) / "log.txt").open("a") as file:
                    file.write(" ".join(map(str, words)) + "\n")

            make, write = _work._make, tables.write_whole

            def logged(slide, job, *arguments):
                log(job, "begin", slide.name, os.getpid())
                if slide.name.startswith("killer"):
                    os.kill(os.getpid(), signal.SIGKILL)
                receipt = make(slide, job, *arguments)
                log(job, "end", slide.name, os.getpid())
                return receipt

            def slow(path):
                # The patches are encoded, and the file is about to be written.
                marker = Path(path).parent / "middle.txt"
                if Path(path).name == "victim.h5ad" and not marker.exists():
                    with write(path) as part:
                        part.write_bytes(b"half")
                        marker.write_text(str(os.getpid()))
                        time.sleep(600)
                return write(path)

            # A worker takes seconds to start.
            _work.DEATHS = 2
            _work._make, tables.write_whole = logged, slow

    return Hook()


@pytest.fixture(scope="module")
def client(forked_workers, tmp_path_factory):
    """Two workers, each a process with one thread."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
    space = str(tmp_path_factory.mktemp("workers"))
    # A worker that was killed and is not back within 15 s, dask's own limit, would be given up for good.
    given_up_after = dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    with given_up_after, LocalCluster(**options, local_directory=space) as cluster, Client(cluster) as client:
        client.register_plugin(hook())
        yield client


def kill_in_the_middle(out, seconds=300):
    """Kill the process that says that it is in the middle of a slide."""
    marker = out / "middle.txt"
    for _ in range(seconds * 10):
        if marker.exists() and marker.read_text():
            os.kill(int(marker.read_text()), signal.SIGKILL)
            return
        time.sleep(0.1)


def log_of(out):
    lines = [line.split() for line in (out / "log.txt").read_text().splitlines()]
    return [Counter(name for what, name, _ in lines if what == word) for word in ("begin", "end")]


def rows(images, names):
    import pandas as pd

    return pd.DataFrame({"path": [str(path) for path in images], "name": names})


def test_a_worker_is_killed_in_the_middle(client, model, images, tmp_path, same):
    names = ["a", "victim", "b", "c", "d"]
    out = tmp_path / "cluster"
    killer = threading.Thread(target=kill_in_the_middle, args=(out,), daemon=True)
    killer.start()
    report = predict_slides(model, rows(images, names), out, client=client, **READ)
    killer.join(1)
    assert not killer.is_alive()
    # Nothing lost: in the order given, each with its result.
    assert report["name"].tolist() == names
    assert set(report["status"]) == {"done"}
    # Nothing twice: one came to its end for each result, and the victim alone was begun once more.
    begun, ended = log_of(out)
    assert ended == dict.fromkeys(names, 1)
    assert begun == dict.fromkeys(names, 1) | {"victim": 2}
    assert report.set_index("name")["attempts"].to_dict() == begun
    assert len({line.split()[2] for line in (out / "log.txt").read_text().splitlines()}) >= 2
    assert not [path for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".begun"]
    alone = predict_slides(model, rows(images, names), tmp_path / "alone", threads=1, **READ)
    assert alone["n_spots"].tolist() == report["n_spots"].tolist()
    for name in names:
        same(tmp_path / "alone" / f"{name}.h5ad", out / f"{name}.h5ad")
    # Another client, later: all of it is there.
    again = predict_slides(model, rows(images, names), out, client=client, **READ)
    assert set(again["status"]) == {"kept"}
    assert log_of(out)[0] == begun


def test_a_slide_that_no_worker_survives(client, images, tmp_path, monkeypatch):
    """dask blames all that a dead worker had been given; here the others are done all the same."""
    monkeypatch.setattr(_send, "DEATHS", 2)
    # By itself it takes four deaths for that.
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    names = ["killer", "a", "b", "c", "d"]
    report = embed_slides(rows(images, names), tmp_path, client=client, **TEXTURE, **READ).set_index("name")
    assert report["status"].to_dict() == {"killer": "failed"} | dict.fromkeys(names[1:], "done")
    message = report.loc["killer", "message"]
    assert message.startswith("ClusterError: the worker died each of 2 times that it was at this slide")
    assert "memory" in message
    begun, ended = log_of(tmp_path)
    assert begun["killer"] == 2
    assert ended == dict.fromkeys(names[1:], 1)
    assert not (tmp_path / "killer.h5ad").exists()


def test_the_door_asks_the_workers(client, images, tmp_path, monkeypatch):
    # Those that were killed above may not be back.
    client.wait_for_workers(2, timeout=300)
    options = TEXTURE | READ
    needs = property(lambda _: [str(tmp_path), str(tmp_path / "nowhere")])
    with monkeypatch.context() as patch:
        patch.setattr(Embed, "needs", needs)
        with pytest.raises(ClusterError, match="does not see .*nowhere.*all share"):
            embed_slides(images, tmp_path / "out", client=client, **options)
    monkeypatch.setattr(_work, "__version__", "0.0.1")
    with pytest.raises(ClusterError, match="has st-gchb .*, the process that called 0.0.1: results would differ"):
        embed_slides(images, tmp_path / "out", client=client, **options)
    assert list(Path(tmp_path / "out").glob("*.h5ad")) == []
