"""A small server of files, and small data sets in the layouts that are published."""

from __future__ import annotations

import gzip
import importlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _sections_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, how sections are drawn is what is tested."""
    render = importlib.import_module("st_gchb.datasets.synthetic._render").render
    monkeypatch.setattr("st_gchb.datasets.synthetic._synthetic_tissue.render", render)


@dataclass
class Server:
    """Files by their path, and what was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut_off: bool = False

    def __call__(self, *args: object) -> BaseHTTPRequestHandler:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                body = server.files.get(self.path.lstrip("/"))
                self.send_response(404 if body is None else 200)
                body = body or b"nothing here"
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if server.cut_off else body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler(*args)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    listener = ThreadingHTTPServer(("127.0.0.1", 0), served)
    served.address = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.fixture
def nobody() -> str:
    """Address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _no_local_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ST_GCHB_DATA", raising=False)


@pytest.fixture
def her2st_folder(tmp_path: Path) -> Path:
    """Two sections of four spots; one spot of C3 is selected and has no counts, one has counts and no place."""
    folder = tmp_path / "data" / "her2st"
    folder.mkdir(parents=True)
    genes = {"C2": ["ERBB2", "ACTB", "GAPDH"], "C3": ["ACTB", "FASN", "ERBB2"]}
    for number, (name, columns) in enumerate(genes.items()):
        spots = pd.DataFrame({"x": [10, 11, 10, 12], "y": [20, 20, 21, 22]})
        spots["new_x"], spots["new_y"] = spots["x"] + 0.01, spots["y"] - 0.02
        spots["pixel_x"], spots["pixel_y"] = spots["x"] * 30.5, spots["y"] * 15.25
        spots["selected"] = 1
        spots.to_csv(folder / f"{name}_selection.tsv", sep="\t", index=False)
        rows = ["12x22", "10x20", "11x20", "10x21"] if name == "C2" else ["11x20", "9x9", "10x20", "12x22"]
        counts = np.arange(12).reshape(4, 3) + 100 * number
        write_counts(folder / f"{name}.tsv.gz", rows, columns, counts)
        pixels = np.random.default_rng(number).integers(0, 255, (400, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((480, 640)).save(folder / f"{name}.jpg")
    return folder


def write_counts(path: Path, rows: list[str], columns: list[str], counts: np.ndarray) -> None:
    lines = ["\t".join(["", *columns])]
    lines += ["\t".join([row, *map(str, values)]) for row, values in zip(rows, counts.tolist(), strict=True)]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
