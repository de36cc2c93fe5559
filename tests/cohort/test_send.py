"""Ways through dask and around it, with workers that are threads of this process, so that they can be watched."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from distributed import Client, Future, LocalCluster

from st_gchb._errors import ClusterError, InputError
from st_gchb.cohort import _api as _call, _worker as _work, embed_slides, predict_slides

from .conftest import READ, TEXTURE

OPTIONS = TEXTURE | READ | {"spacing_um": 250.0}


@pytest.fixture
def client():
    """One worker with four threads."""
    options = {"n_workers": 1, "threads_per_worker": 4, "dashboard_address": None, "processes": False}
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def gate(monkeypatch, computed):
    """All slides but the first wait until this is set."""
    gate, make = threading.Event(), _work._make

    def second_waits(*arguments):
        if computed:
            gate.wait(60)
        return make(*arguments)

    monkeypatch.setattr(_work, "_make", second_waits)
    return gate


def test_a_worker_does_one_slide_at_a_time_with_all_its_threads(client, images, tmp_path, monkeypatch):
    make, now, most, threads = _work._make, [], [], []

    def watched(slide, *arguments):
        now.append(slide.name)
        most.append(len(now))
        threads.append(torch.get_num_threads())
        time.sleep(0.05)
        receipt = make(slide, *arguments)
        now.remove(slide.name)
        return receipt

    monkeypatch.setattr(_work, "_make", watched)
    before = torch.get_num_threads()
    assert set(embed_slides(images, tmp_path / "a", client=client, **OPTIONS)["status"]) == {"done"}
    assert most == [1] * 5
    assert threads == [4] * 5
    embed_slides(images[:1], tmp_path / "b", client=client, threads=3, **OPTIONS)
    embed_slides(images[:1], tmp_path / "c", threads=2, **OPTIONS)
    embed_slides(images[:1], tmp_path / "d", **OPTIONS)
    assert threads[5:] == [3, 2, before]
    assert torch.get_num_threads() == before


def test_faults_come_back_through_dask(client, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    slides = [images[0], tmp_path / "bad.png", tmp_path / "none.svs"]
    report = embed_slides(slides, tmp_path / "out", client=client, **OPTIONS)
    alone = embed_slides(slides, tmp_path / "alone", **OPTIONS)
    assert report["status"].tolist() == ["done", "failed", "failed"]
    assert report["message"].tolist() == alone["message"].tolist()
    assert report["message"][1].startswith("ImageError: ")
    assert report["message"][2].startswith("MissingFileError: ")


@pytest.mark.parametrize("through_dask", [False, True])
def test_ctrl_c_leaves_what_is_done(client, images, tmp_path, monkeypatch, computed, gate, through_dask):
    def interrupted(receipts, *_):
        yield next(receipts)
        raise KeyboardInterrupt

    where = {"client": client if through_dask else None}
    with monkeypatch.context() as patch:
        patch.setattr(_call, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed_slides(images, tmp_path, **where, **OPTIONS)
        gate.set()
    # The one that was being done may come to its end; the others were not begun.
    time.sleep(0.3)
    for _ in range(300):
        if not client.futures:
            break
        time.sleep(0.1)
    assert not client.futures
    assert 1 <= len(computed) <= 2
    report = embed_slides(images, tmp_path, **where, **OPTIONS)
    assert report["status"].tolist().count("done") >= 3
    assert set(report["status"]) <= {"done", "kept"}
    assert set(computed.values()) == {1}


def test_tasks_that_are_lost(client, images, tmp_path, monkeypatch, gate):
    """As where the scheduler is started anew: the call ends, and says how to go on."""

    def cancel_all(receipts, *_):
        yield next(receipts)
        client.cancel([Future(key, client) for key in list(client.futures)], force=True)
        yield from receipts

    monkeypatch.setattr(_call, "track", cancel_all)
    with pytest.raises(ClusterError, match="the cluster was lost.*What is done is kept"):
        embed_slides(images, tmp_path, client=client, **OPTIONS)
    gate.set()


def test_a_client_that_is_closed(images, tmp_path, client):
    client.close()
    with pytest.raises(InputError, match="client= is closed: it is connected to no cluster"):
        embed_slides(images, tmp_path, client=client, **OPTIONS)
    assert not list(tmp_path.iterdir())


def other_version(model, monkeypatch):
    monkeypatch.setattr(_work, "__version__", "0.0.1")


def other_disk(model, monkeypatch):
    monkeypatch.setattr(_work, "FOLDER", "elsewhere")


def no_model(model, monkeypatch):
    model.rename(model.with_name("elsewhere"))


@pytest.mark.parametrize("through_dask", [False, True])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (other_version, "has st-gchb 0.0.1, the process that called .*: results would differ"),
        (other_disk, r"does not see \['.*elsewhere'\]. Put them on a disk that all share"),
        (no_model, r"does not see \['.*model'\]. Put them on a disk that all share"),
    ],
)
def test_an_unfit_worker_ends_the_call(
    model, images, tmp_path, client, monkeypatch, computed, gate, through_dask, changed, said
):
    """It joined after the door: it would be given slide after slide, and each would be a failed row."""
    copied = Path(shutil.copytree(model, tmp_path / "model"))

    def late(receipts, *_):
        yield next(receipts)
        changed(copied, monkeypatch)
        gate.set()
        yield from receipts

    monkeypatch.setattr(_call, "track", late)
    with pytest.raises(ClusterError, match=f"{said}.*What is done is kept: stop that worker, and call again"):
        predict_slides(copied, images, tmp_path / "out", client=client if through_dask else None, **READ)
    assert 1 <= len(computed) <= 3
