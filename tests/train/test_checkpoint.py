"""Checkpoint files: what they hold comes back, and what was damaged is refused."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import SafetensorError

from st_gchb._errors import CheckpointError
from st_gchb.train import CheckpointFolder, read_checkpoint, write_checkpoint

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.integers() | st.text(max_size=5)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(tree=trees)
def test_a_state_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree.checkpoint"
    write_checkpoint(path, {"tree": tree})
    assert read_checkpoint(path) == {"tree": tree}


def test_an_optimizer_comes_back_to_the_bit(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    write_checkpoint(tmp_path / "a", {"optimizer": optimizer.state_dict(), "best": float("inf"), "n": np.int64(3)})
    found = read_checkpoint(tmp_path / "a")
    other = torch.optim.AdamW(layer.parameters(), lr=1.0)
    other.load_state_dict(found["optimizer"])
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(other.state_dict()["state"][key][name], value)
    assert (found["best"], found["n"]) == (float("inf"), 3)


def test_tensors_that_share_memory_and_empty_ones(tmp_path):
    one = torch.arange(6.0).reshape(2, 3)
    state = {"one": one, "view": one.T, "none": torch.zeros(0, 4), "byte": torch.get_rng_state()}
    write_checkpoint(tmp_path / "a", state)
    for name, value in read_checkpoint(tmp_path / "a").items():
        assert torch.equal(value, state[name])


def test_what_cannot_be_held_leaves_no_file(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a object"):
        write_checkpoint(tmp_path / "a", {"x": object()})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_file_cut_short_is_refused(tmp_path_factory, share):
    path = tmp_path_factory.getbasetemp() / "cut.checkpoint"
    write_checkpoint(path, {"x": torch.randn(40), "epoch": 3})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cut\.checkpoint is damaged.*Delete it"):
        read_checkpoint(path)


@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path_factory, where, bit):
    path = tmp_path_factory.getbasetemp() / "bit.checkpoint"
    state = {"x": torch.arange(40.0), "epoch": 3}
    write_checkpoint(path, state)
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except CheckpointError:
        return
    assert found["epoch"] == 3
    assert torch.equal(found["x"], state["x"])


# ---- The folder ----


def test_of_another_training_it_says_what_differs(tmp_path, monkeypatch):
    monkeypatch.setattr("st_gchb.train._checkpoints.SECONDS_BETWEEN_WRITES", 0.0)
    CheckpointFolder(tmp_path, {"seed": "0", "genes": "abc"}, resume=False).put("network", {"epoch": 1})
    with pytest.raises(CheckpointError, match="of another training .*seed: 0 there, 1 here"):
        CheckpointFolder(tmp_path, {"seed": "1", "genes": "abc"}, resume=True)
    assert CheckpointFolder(tmp_path, {"seed": "0", "genes": "abc"}, resume=True).found("network")["epoch"] == 1


def test_a_checkpoint_that_an_earlier_version_described_is_taken_and_described_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("st_gchb.train._checkpoints.SECONDS_BETWEEN_WRITES", 0.0)
    before, today, other = {"logarithms": "abc"}, {"counts": "def"}, {"logarithms": "xyz"}
    CheckpointFolder(tmp_path, before, resume=False).put("network", {"epoch": 1})
    with pytest.raises(CheckpointError, match="of another training .*logarithms: abc there, xyz here"):
        CheckpointFolder(tmp_path, today, resume=True, earlier=[other])
    with pytest.raises(CheckpointError, match="of another training"):
        CheckpointFolder(tmp_path, today, resume=True)
    folder = CheckpointFolder(tmp_path, today, resume=True, earlier=[other, before])
    assert folder.found("network")["epoch"] == 1
    folder.put("network", {"epoch": 2})
    assert CheckpointFolder(tmp_path, today, resume=True).found("network")["epoch"] == 2


def test_without_resume_it_is_replaced_and_that_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("st_gchb.train._checkpoints.SECONDS_BETWEEN_WRITES", 0.0)
    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        first = CheckpointFolder(tmp_path, {}, resume=True)
    assert "no checkpoint" in caplog.text
    first.put("network", {"epoch": 1})
    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        assert CheckpointFolder(tmp_path, {}, resume=False).found("network") is None
    assert "it is replaced" in caplog.text


def test_a_full_disk_stops_nothing_and_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("st_gchb.train._checkpoints.SECONDS_BETWEEN_WRITES", 0.0)

    def full(*_, **__):
        # What safetensors says of a full disk.
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("st_gchb._artifacts.save_file", full)
    folder = CheckpointFolder(tmp_path, {}, resume=False)
    with caplog.at_level(logging.WARNING, logger="st_gchb"), folder.kept_on_error():
        folder.put("network", {"epoch": 1})
        folder.put("network", {"epoch": 2})
    assert caplog.text.count("No space left") == 1
    assert list(tmp_path.iterdir()) == []


def test_of_a_training_that_went_through_no_epoch_nothing_is_kept_or_said(tmp_path, caplog):
    folder = CheckpointFolder(tmp_path, {}, resume=False)
    folder.put("network", {"epoch": 0})

    def train():
        with folder.kept_on_error():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []
