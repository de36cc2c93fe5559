"""Two processes train one model: the same result as one, within rounding."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import torch

from st_gchb._errors import ArgumentError, DeviceError
from st_gchb.model import STGCHB, strategy_for

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}

# ``python train.py``, and the second process, which Lightning starts with the same words. That one is forked before
# anything else is done, so that it finds the libraries imported, and waits until Lightning asks for it.
START = """
    import json, os, runpy, sys, types
    from lightning.pytorch.strategies.launchers import subprocess_script

    asked, asks = os.pipe()
    second = os.fork()

    def status(flags=0):
        ended = os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT | flags)
        return ended and ended.si_status

    class Forked:
        returncode, pid = None, second

        def __init__(self, command, env, cwd):
            assert cwd is None
            with open(asks, "w") as words:
                json.dump([command, env], words)

        def poll(self):
            self.returncode = status(os.WNOHANG)
            return self.returncode

    if second:
        del sys.argv[0]
        subprocess_script.subprocess = types.SimpleNamespace(Popen=Forked)
    else:
        os.close(asks)
        with open(asked) as words:
            (_, *sys.argv), env = json.load(words)
        os.environ.clear()
        os.environ.update(env)
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert not second or status() == 0
"""
# A user's own script.
SCRIPT = """
    import sys
    import anndata, numpy as np, torch
    from st_gchb.model import STGCHB

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05)

    for name, settings in SETTINGS.items():
        adata = anndata.read_h5ad(sys.argv[1])
        STGCHB.setup_anndata(adata, slice_key="slice")
        model = STGCHB(adata, n_top_genes=20, k=30, batch_size=24, **settings)
        model.train(
            devices=2, strategy="ddp", accelerator="cpu", enable_progress_bar=False,
            calibrate=False, block_size=30, checkpoint_dir=f"{sys.argv[2]}/{name}",
            plan_kwargs={"optimizer": "Custom", "optimizer_creator": sgd} if name == "graph" else None,
        )
        rank = model.trainer.global_rank
        assert model.trainer.world_size == 2
        losses = {key: frame[key].to_numpy(float) for key, frame in model.history.items()}
        state = {key: value.numpy() for key, value in model.module.state_dict().items()}
        np.savez(f"{sys.argv[2]}/{name}_{rank}.npz", keys=model.bank_.keys, **losses, **state)
"""
SETTINGS = {
    "default": {"max_epochs": 3},
    "graph": {
        "image_graph": "sage",
        "expression_graph": "gcn",
        "dgi_image": 0.1,
        "dgi_expression": 0.1,
        "pretrain_epochs": 1,
        "max_epochs": 2,
        "sampler": "slices",
    },
}


def sgd(parameters):
    """Adam forgives gradients that are wrong by a factor; this does not."""
    return torch.optim.SGD(parameters, lr=0.05)


@pytest.fixture(scope="module")
def two(request, programs, tmp_path_factory):
    """What each of two processes ends with."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo, which lets processes on CPUs talk to each other")
    folder = tmp_path_factory.mktemp("two")
    request.getfixturevalue("tissue")[:90].copy().write_h5ad(folder / "ref.h5ad")
    script = folder / "train.py"
    script.write_text(f"SETTINGS = {SETTINGS!r}\n" + textwrap.dedent(SCRIPT))
    run = programs.run(textwrap.dedent(START), str(script), str(folder / "ref.h5ad"), str(folder), cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_end_as_one(tissue, two, name):
    """With dropout: its masks are those that one process would draw."""
    adata = tissue[:90].copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    one = STGCHB(adata, n_top_genes=20, k=30, batch_size=24, **SETTINGS[name])
    assert one.settings.dropout > 0
    plan = {"optimizer": "Custom", "optimizer_creator": sgd} if name == "graph" else None
    one.train(calibrate=False, block_size=30, plan_kwargs=plan, **QUIET)
    ranks = [np.load(two / f"{name}_{rank}.npz") for rank in (0, 1)]
    for found in ranks:
        for key, value in one.module.state_dict().items():
            # Single numbers whose gradient is nearly zero are moved by Adam as far as all others.
            weights = value.double().numpy()
            assert np.linalg.norm(found[key] - weights) <= 1e-5 * (1 + np.linalg.norm(weights)), key
        np.testing.assert_allclose(found["keys"], one.bank_.keys, atol=1e-5)
    for key, frame in one.history.items():
        np.testing.assert_allclose(ranks[0][key], frame[key].to_numpy(float), atol=1e-5, rtol=1e-4, err_msg=key)


@pytest.mark.slow
def test_nothing_is_left_beside_the_script(two):
    """scvi-tools' trainer would pickle the history into the working directory."""
    assert {path.suffix for path in two.rglob("*") if path.is_file()} == {".h5ad", ".npz", ".py"}


def test_strategies():
    for given, devices in (("ddp", 2), ("auto", 2), ("auto", [0, 1]), ("ddp", "auto")):
        assert strategy_for(given, devices) == "ddp_find_unused_parameters_true"
    for devices in (1, "1", "auto", [0]):
        assert strategy_for("auto", devices) == "auto"
    for given in ("ddp_spawn", "fsdp", "ddp_notebook"):
        with pytest.raises(DeviceError, match=f"strategy='{given}'.*expected strategy='ddp', in a script"):
            strategy_for(given, 2)


def test_an_accelerator_whose_package_is_not_installed(model, tmp_path):
    other = STGCHB(model.adata, n_top_genes=20, k=30)
    with pytest.raises(ArgumentError, match="Lightning's Trainer cannot be made so"):
        other.train(max_epochs=1, calibrate=False, enable_checkpointing=False, accelerator="tpu")
    model.save(tmp_path / "model")
    with pytest.raises(DeviceError, match="no such accelerator or device"):
        STGCHB.load(tmp_path / "model", accelerator="tpu")
