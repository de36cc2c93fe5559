"""Files are found locally, or downloaded once, whole, and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from st_gchb._errors import DownloadError, MissingFileError
from st_gchb.datasets import DataFile, cache_folder, fetch, local_folder

BODY = b"counts and pixels " * 5000
SHA = hashlib.sha256(BODY).hexdigest()


def _file(server, **kwargs) -> DataFile:
    server.files["some/C2.jpg"] = BODY
    return DataFile("C2.jpg", f"{server.address}/some/C2.jpg", **kwargs)


def test_download_once(server, tmp_path):
    file = _file(server, sha256=SHA)
    for _ in range(2):
        (path,) = fetch([file], "her2st", cache_dir=tmp_path)
        assert path.read_bytes() == BODY
        assert path.is_absolute()
    assert server.asked == ["/some/C2.jpg"]


def test_wrong_checksum(server, tmp_path):
    with pytest.raises(DownloadError, match="not the file that was published"):
        fetch([_file(server, sha256="0" * 64)], "her2st", cache_dir=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("sha256", [SHA, None])
def test_cut_off_download_leaves_nothing(server, tmp_path, sha256):
    file = _file(server, sha256=sha256)
    server.cut_off = True
    with pytest.raises(DownloadError, match=r"C2\.jpg"):
        fetch([file], "her2st", cache_dir=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    server.cut_off = False
    (path,) = fetch([file], "her2st", cache_dir=tmp_path)
    assert path.read_bytes() == BODY


def test_no_network_says_what_to_do(nobody, tmp_path):
    files = [DataFile(name, f"{nobody}/{name}", SHA) for name in ("C2.jpg", "C2.tsv.gz")]
    with pytest.raises(DownloadError) as caught:
        fetch(files, "her2st", cache_dir=tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "datasets" / "her2st"), "C2.jpg", f"{nobody}/C2.tsv.gz", "ST_GCHB_DATA", "path="):
        assert part in message


def test_files_put_into_the_cache_by_hand(nobody, tmp_path):
    folder = tmp_path / "datasets" / "her2st"
    folder.mkdir(parents=True)
    (folder / "C2.jpg").write_bytes(BODY)
    (path,) = fetch([DataFile("C2.jpg", f"{nobody}/C2.jpg", SHA)], "her2st", cache_dir=tmp_path)
    assert path == (folder / "C2.jpg").resolve()


def test_absent_on_the_server(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch([DataFile("x.h5", f"{server.address}/x.h5")], "dlpfc", cache_dir=tmp_path)


def test_unpublished_checksum_is_noted_and_kept(server, tmp_path):
    file = _file(server)
    (path,) = fetch([file], "dlpfc", cache_dir=tmp_path)
    assert path.with_name("C2.jpg.sha256").read_text().strip() == SHA
    path.write_bytes(BODY[:-1])
    (again,) = fetch([file], "dlpfc", cache_dir=tmp_path)
    assert again.read_bytes() == BODY
    assert len(server.asked) == 2
    # What the server gives later has to be the same.
    path.unlink()
    server.files["some/C2.jpg"] = b"something else"
    with pytest.raises(DownloadError, match="not the file"):
        fetch([file], "dlpfc", cache_dir=tmp_path)


def test_local_folder_and_its_subfolder(tmp_path, monkeypatch):
    (tmp_path / "her2st").mkdir()
    (tmp_path / "her2st" / "a.txt").write_text("a")
    file = DataFile("a.txt", None)
    assert fetch([file], "her2st", path=tmp_path) == fetch([file], "her2st", path=tmp_path / "her2st")
    monkeypatch.setenv("ST_GCHB_DATA", str(tmp_path))
    (path,) = fetch([file], "her2st")
    assert path == (tmp_path / "her2st" / "a.txt").resolve()
    # What the caller passes goes first.
    (tmp_path / "other").mkdir()
    assert local_folder("her2st", tmp_path / "other") == tmp_path / "other"


def test_local_files_that_are_missing_are_never_downloaded(server, tmp_path):
    file = _file(server, sha256=SHA)
    with pytest.raises(MissingFileError, match=r"lacks 1 of the 1 files[\s\S]*C2\.jpg  from  http"):
        fetch([file], "her2st", path=tmp_path)
    assert server.asked == []


def test_local_folder_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="path="):
        fetch([], "her2st", path=tmp_path / "nowhere")
    monkeypatch.setenv("ST_GCHB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MissingFileError, match="ST_GCHB_DATA"):
        fetch([], "her2st")


def test_cache_is_where_it_was_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path / "cache"))
    assert cache_folder("her2st", None) == tmp_path / "cache" / "datasets" / "her2st"
    assert cache_folder("her2st", tmp_path) == tmp_path / "datasets" / "her2st"
    monkeypatch.delenv("ST_GCHB_CACHE")
    assert "st_gchb" in cache_folder("her2st", None).parts


def test_relative_names_are_absolute_in_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("here/a.txt").write_text("a")
    (path,) = fetch([DataFile("a.txt", None)], "her2st", path="here")
    assert path.is_absolute()
