"""Writing into a store: all of it or nothing, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata
import zarr
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, get_transformation

import st_gchb
from st_gchb._compat import store_format
from st_gchb._errors import InputError, MissingFileError, MissingKeyError, STGCHBError, StoreError
from st_gchb.io import _write_elements as _beside, write_elements

N = 12
TURNED = Affine([[0, -2, 7], [2, 0, 1], [0, 0, 1]], ("x", "y"), ("x", "y"))


def table_of(value: float, n_genes: int = 3) -> AnnData:
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * N), "id": np.arange(N)}, index=[f"s{i}" for i in range(N)])
    table = AnnData(np.full((N, n_genes), value, np.float32), obs=obs)
    table.layers["st_gchb"] = table.X + 1
    table.uns["st_gchb"] = {"k": 50}
    return TableModel.parse(table, region="spots", region_key="region", instance_key="id")


def circles() -> object:
    centers = np.random.default_rng(0).random((N, 2)) * 50
    return ShapesModel.parse(centers, geometry=0, radius=2.0, transformations={"global": TURNED})


def image_element(value: int = 9) -> object:
    return Image2DModel.parse(np.full((3, 20, 30), value, np.uint8), dims=("c", "y", "x"))


@pytest.fixture(scope="module")
def _store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    SpatialData(images={"he": image_element()}, shapes={"spots": circles()}, tables={"st_gchb": table_of(1)}).write(
        path
    )
    return path


@pytest.fixture
def store(_store, tmp_path):
    """A store with an image and shapes, and an earlier result."""
    return shutil.copytree(_store, tmp_path / "s.zarr")


def content(path: Path) -> dict[str, bytes]:
    """Every file but what zarr's threads may still have written into a hidden folder that was being removed."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith(".st_gchb-")}


def leftovers(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.name.startswith(".")]


def value_of(path: Path) -> float:
    return float(spatialdata.read_zarr(path)["st_gchb"].X[0, 0])


def test_elements_go_into_the_store(tmp_path):
    path = tmp_path / "s.zarr"
    SpatialData(images={"he": image_element()}).write(path)
    sdata = spatialdata.read_zarr(path)
    sdata.shapes["spots"], sdata.tables["st_gchb"] = circles(), table_of(1)
    sdata.images["map"] = image_element(3)
    write_elements(sdata, ["spots", "st_gchb", "map"])
    read = spatialdata.read_zarr(path)
    assert {name for _, name, _ in read.gen_elements()} == {"he", "map", "spots", "st_gchb"}
    np.testing.assert_array_equal(read["st_gchb"].layers["st_gchb"], sdata["st_gchb"].layers["st_gchb"])
    np.testing.assert_array_equal(read["map"].values, sdata["map"].values)
    assert get_transformation(read["spots"]) == TURNED
    assert read["spots"].geometry.tolist() == sdata["spots"].geometry.tolist()
    assert leftovers(path) == []
    # What spatialdata itself writes is laid out the same.
    sdata.write(tmp_path / "plain.zarr")
    assert content(path).keys() == content(tmp_path / "plain.zarr").keys()
    assert sdata.has_consolidated_metadata()
    assert "st_gchb" in zarr.open_group(path, mode="r", use_consolidated=True)["tables"]


def test_an_earlier_result_is_replaced_and_others_are_kept(store):
    sdata = spatialdata.read_zarr(store)
    sdata.tables["st_gchb"] = table_of(2, n_genes=5)
    before = content(store)
    write_elements(sdata, "st_gchb")
    after = content(store)
    assert spatialdata.read_zarr(store)["st_gchb"].shape == (N, 5)
    kept = {name for name in before if not name.startswith("tables/") and name != "zarr.json"}
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}


@pytest.mark.parametrize("consolidated", [True, False])
def test_older_formats_and_stores_without_consolidated_metadata(tmp_path, consolidated):
    path = tmp_path / "old.zarr"
    SpatialData(images={"he": image_element()}).write(path, consolidate_metadata=consolidated)
    version = store_format(path)
    old = tmp_path / "older.zarr"
    (old_format,) = [one for one in type(version).__mro__ if one.__name__ == "SpatialDataContainerFormatV02"]
    assert isinstance(version, old_format)
    from spatialdata._io.format import SpatialDataContainerFormatV01

    SpatialData(images={"he": image_element()}).write(
        old, consolidate_metadata=consolidated, sdata_formats=SpatialDataContainerFormatV01()
    )
    for store in (path, old):
        sdata = SpatialData(
            shapes={"spots": circles()}, tables={"st_gchb": table_of(1)}, images={"map": image_element(3)}
        )
        sdata.path = store
        write_elements(sdata, ["spots", "st_gchb", "map"])
        read = spatialdata.read_zarr(store)
        assert {name for _, name, _ in read.gen_elements()} == {"he", "map", "spots", "st_gchb"}
        assert read.has_consolidated_metadata() is consolidated
    assert not (old / "zarr.json").exists()


@pytest.mark.parametrize(
    ("name", "code", "advice"),
    [("st_gchb", errno.ENOSPC, "Free space"), ("new", errno.EROFS, "Make the folder writable")],
)
def test_a_failure_at_any_write_leaves_the_store_as_it_was(store, monkeypatch, name, code, advice):
    """The n-th file that zarr writes fails, from the first to the consolidated metadata, the last."""
    sdata = spatialdata.read_zarr(store)
    sdata.tables[name] = table_of(2)
    before = content(store)
    put, calls, fails_at = zarr.storage.LocalStore.set, itertools.count(), -1

    async def failing(self, key, value, *rest):
        if next(calls) == fails_at:
            raise OSError(code, os.strerror(code))
        await put(self, key, value, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", failing)
        patch.setattr(spatialdata.SpatialData, "write_consolidated_metadata", lambda self: None)
        sdata.path = shutil.copytree(store, store.with_name("copy.zarr"))
        write_elements(sdata, name)
    n_writes = next(calls)
    assert n_writes > 20
    sdata.path = store
    monkeypatch.setattr(zarr.storage.LocalStore, "set", failing)
    for nth in [*range(0, n_writes, 9), n_writes]:
        fails_at, calls = nth, itertools.count()
        with pytest.raises(StoreError) as caught:
            write_elements(sdata, name)
        message = str(caught.value)
        assert f"tables/{name} could not be written into {store}: {os.strerror(code)}. The store is as it" in message
        assert advice in message
        assert ("with its earlier st_gchb" in message) is (name == "st_gchb")
        assert content(store) == before
        assert name in sdata.tables
    fails_at, calls = n_writes + 1, itertools.count()
    write_elements(sdata, name)
    assert leftovers(store) == []
    assert float(spatialdata.read_zarr(store)[name].X[0, 0]) == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failure_to_rename_is_undone(store, monkeypatch, at_once):
    sdata = spatialdata.read_zarr(store)
    sdata.tables["st_gchb"], sdata.shapes["new"] = table_of(2), circles()
    before = content(store)
    if not at_once:
        monkeypatch.setattr(_beside, "_exchanged_at_once", lambda first, second: False)
    rename, calls, fails_at = os.rename, itertools.count(), -1

    def failing(source, target):
        if next(calls) == fails_at:
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    names = ["st_gchb", "new"]
    for nth in range(1 if at_once else 4):
        fails_at, calls = nth, itertools.count()
        with pytest.raises(StoreError):
            write_elements(sdata, names)
        assert content(store) == before
    fails_at, calls = -1, itertools.count()
    write_elements(sdata, names)
    assert value_of(store) == 2


KILLED = """
    import itertools, os, signal, sys, numpy as np, spatialdata, zarr
    sys.path.insert(0, {tests!r})
    from test_store import table_of
    from st_gchb.io import _write_elements, write_elements

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_way():
        put, calls = zarr.storage.LocalStore.set, itertools.count()
        async def failing(self, *args):
            die() if next(calls) == 15 else await put(self, *args)
        zarr.storage.LocalStore.set = failing

    def before_metadata():
        spatialdata.SpatialData.write_consolidated_metadata = die

    def between_renames():
        rename, calls = os.rename, itertools.count()
        _write_elements._exchanged_at_once = lambda *args: False
        os.rename = lambda *args: die() if next(calls) == 1 else rename(*args)

    # No thread runs yet that a fork would lose.
    for path, when in zip({stores!r}, (half_way, before_metadata, between_renames)):
        child = os.fork()
        if child == 0:
            when()
            sdata = spatialdata.read_zarr(path)
            sdata.tables["st_gchb"] = table_of(2)
            write_elements(sdata, "st_gchb")
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def script(code: str, **fields) -> str:
    return textwrap.dedent(code).format(tests=str(Path(__file__).parent), **fields)


def test_a_killed_process_leaves_a_readable_store(store, programs, tmp_path):
    """Killed half-way, before the metadata, and, where the system cannot exchange names, between two renames."""
    stores = [shutil.copytree(store, tmp_path / f"{i}.zarr") for i in range(3)]
    killing = programs.run(script(KILLED, stores=[*map(str, stores)]), cwd=tmp_path)
    assert killing.returncode == 0, killing.stderr
    assert killing.stdout.split() == ["-9"] * 3
    assert [len(leftovers(path)) for path in stores] == [1, 1, 1]
    assert [value_of(path) for path in stores[:2]] == [1, 2]
    assert not (stores[2] / "tables" / "st_gchb").exists()
    for path, value in zip(stores, (1, 2, 1), strict=True):
        sdata = spatialdata.read_zarr(path, selection=("images", "shapes"))
        assert set(sdata.images) == {"he"}
        sdata.images["map"] = image_element()
        write_elements(sdata, "map")
        assert leftovers(path) == []
        # What was moved aside is put back.
        assert value_of(path) == value


def test_the_work_of_another_process_is_left_alone(store):
    with _beside.work_folder(store) as busy:
        (busy / "part").write_text("half a table")
        sdata = spatialdata.read_zarr(store)
        write_elements(sdata, "st_gchb")
        assert (busy / "part").exists()
    assert leftovers(store) == []


def too_large(store: Path) -> SpatialData:
    sdata = spatialdata.read_zarr(store)
    sdata.tables["st_gchb"] = table_of(2)
    # Noise, which does not compress.
    sdata["st_gchb"].obsm["large"] = np.random.default_rng(0).random((N, 40_000))
    return sdata


ON_A_TINY_DISK = """
    import ctypes, os, shutil, subprocess, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_store import too_large, value_of, write_elements
    from st_gchb._errors import StoreError
    new_user, new_mounts, user, group = 0x10000000, 0x00020000, os.getuid(), os.getgid()
    assert ctypes.CDLL(None).unshare(new_user | new_mounts) == 0
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {{user}} 1"), ("gid_map", f"0 {{group}} 1")):
        Path("/proc/self", name).write_text(content)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", {disk!r}], check=True)
    store = Path(shutil.copytree({store!r}, {disk!r} + "/s.zarr"))
    sdata = too_large(store)
    for _ in range(2):
        try:
            write_elements(sdata, "st_gchb")
        except StoreError as error:
            print(error)
        assert value_of(store) == 1
        subprocess.run(["mount", "-o", "remount,ro", store.parent], check=True)
"""


def test_a_disk_that_is_full_and_then_read_only(store, programs, tmp_path):
    """On a disk of 2 MB that only the script sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=2m",
        "tmpfs",
        disk,
    ]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this system lets no one mount a tiny disk")
    writing = programs.run(script(ON_A_TINY_DISK, store=str(store), disk=str(disk)), cwd=tmp_path)
    assert writing.returncode == 0, writing.stderr
    assert not any(disk.iterdir())
    full, read_only = writing.stdout.splitlines()
    assert "No space left on device. The store is as it was, with its earlier st_gchb. Free space" in full
    assert "Read-only file system. The store is as it was" in read_only
    assert "Make the folder writable" in read_only


def test_files_that_may_not_grow(store):
    resource = pytest.importorskip("resource")
    sdata, before = too_large(store), content(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"File too large. The store is as it was"):
            write_elements(sdata, "st_gchb")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(store) == before


def foreign(sdata, store):
    sdata.tables["st_gchb"].uns.pop("st_gchb")
    sdata.tables["st_gchb"].write_zarr(store / "tables" / "st_gchb")
    sdata.tables["st_gchb"] = table_of(2)


def as_shapes(sdata, store):
    del sdata.tables["st_gchb"]
    sdata.shapes["st_gchb"] = circles()


def moved(sdata, store):
    store.rename(store.with_name("elsewhere.zarr"))


def in_memory(sdata, store):
    sdata.path = None


def dots(sdata, store):
    sdata.points["dots"] = PointsModel.parse(np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("spoil", "names", "error", "message"),
    [
        (None, "no", MissingKeyError, r"no element 'no'; expected one of \['he', 'spots', 'st_gchb'\]"),
        (None, "he", InputError, r"has an element images/he already.*overwrite=True"),
        (None, ["st_gchb", "he"], InputError, "images/he"),
        (foreign, "st_gchb", InputError, r"tables/st_gchb already. Choose another name\.$"),
        (as_shapes, "st_gchb", InputError, r"tables/st_gchb already. Choose another name\.$"),
        (moved, "st_gchb", MissingFileError, r"s\.zarr.*spatialdata.read_zarr"),
        (in_memory, "st_gchb", InputError, r"not backed.*sdata.write"),
        (dots, "dots", InputError, r"'dots' is one of points.*sdata.write_element"),
    ],
)
def test_what_is_refused(store, spoil, names, error, message):
    sdata = spatialdata.read_zarr(store)
    if spoil:
        spoil(sdata, store)
    before = content(store.parent)
    with pytest.raises(error, match=message) as caught:
        write_elements(sdata, names)
    assert isinstance(caught.value, STGCHBError)
    assert content(store.parent) == before


def test_an_image_is_replaced_where_that_is_wanted(store):
    sdata = spatialdata.read_zarr(store)
    # Read from the very files that are replaced.
    sdata.images["he"] = Image2DModel.parse(sdata["he"].data + 1, dims=("c", "y", "x"))
    write_elements(sdata, "he", overwrite=True)
    assert (spatialdata.read_zarr(store)["he"].values == 10).all()
    assert st_gchb.io.write_elements is write_elements


def test_a_store_whose_other_elements_are_damaged(tmp_path):
    sdata = spatialdata.SpatialData()
    sdata.images["he"] = Image2DModel.parse(np.zeros((3, 40, 50), np.uint8), dims=("c", "y", "x"))
    sdata.write(tmp_path / "s.zarr")
    sdata.images["other"] = sdata.images["he"]
    damaged = tmp_path / "s.zarr/images/he/zarr.json"
    damaged.write_text(damaged.read_text() + "odd")
    with pytest.raises(InputError, match=r"nothing was written.*sdata\.write"):
        write_elements(sdata, "other")
    assert not (tmp_path / "s.zarr/images/other").exists()
