"""``print_versions``: what a bug report needs, read without importing anything heavy."""

from __future__ import annotations

import importlib.metadata
import io
import re
import subprocess
import sys
import types

import pytest

import st_gchb


def printed() -> dict[str, str]:
    text = io.StringIO()
    st_gchb.print_versions(file=text)
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.getvalue().splitlines() if line)


def torch_that_has(n_gpus: int, *, mps: bool = False) -> types.SimpleNamespace:
    cuda = types.SimpleNamespace(
        is_available=lambda: n_gpus > 0, device_count=lambda: n_gpus, get_device_name=lambda index: f"Card {index}"
    )
    backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: mps))
    version = types.SimpleNamespace(cuda="13.0", hip=None)
    return types.SimpleNamespace(cuda=cuda, backends=backends, version=version, get_num_threads=lambda: 7)


@pytest.mark.parametrize("package", ["st-gchb", "anndata", "scvi-tools", "spatialdata", "squidpy", "torch", "numpy"])
def test_versions_are_those_of_the_installed_packages(package):
    assert printed()[package] == importlib.metadata.version(package)


def test_every_dependency_is_listed_once():
    text = io.StringIO()
    st_gchb.print_versions(file=text)
    names = [line.split()[0] for line in text.getvalue().splitlines() if line]
    required = [
        re.match(r"[\w.-]+", each)[0] for each in importlib.metadata.requires("st-gchb") if "extra ==" not in each
    ]
    assert len(required) > 20
    assert set(required) <= set(names)
    assert len(names) == len(set(names))


def test_extras_of_users_are_listed_and_those_of_developers_are_not():
    assert {"timm", "faiss-cpu", "spatialdata-plot"} <= printed().keys()
    assert not {"pytest", "sphinx", "ruff", "mypy"} & printed().keys()


def test_a_package_that_is_absent_is_said_to_be(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert printed()["timm"] == "not installed"
    assert printed()["torch"] == real("torch")


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = printed()
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["platform"]
    assert found["processor"]
    assert re.match(r"\d+ of \d+ cores usable", found["threads"])
    assert "OMP_NUM_THREADS=3" in found["threads"]


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        (torch_that_has(2), "Card 0, Card 1 (CUDA 13.0)"),
        (torch_that_has(0), "none that PyTorch can use"),
        (torch_that_has(0, mps=True), "Apple MPS"),
    ],
)
def test_gpus_are_those_that_torch_sees(monkeypatch, torch, expected):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert printed()["GPU"] == expected
    assert printed()["threads"].endswith("7 of PyTorch")


def test_nothing_heavy_is_imported():
    heavy = ["scvi", "scanpy", "anndata", "squidpy", "spatialdata", "lightning", "torch", "numpy", "pandas"]
    code = f"import sys, st_gchb\nst_gchb.print_versions()\nprint([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("st-gchb")
    assert "import torch first" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
    assert result.stderr == ""
