"""A hub on this machine: the few endpoints of huggingface.co that are used, and the ways in which they fail."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_letmein"


def commit_of(files: dict[str, bytes]) -> str:
    parts = (f"{name}:{hashlib.sha1(content).hexdigest()};" for name, content in sorted(files.items()))
    return hashlib.sha1("".join(parts).encode()).hexdigest()


class Hub:
    """Repositories by name, each with files by branch and by commit; what is asked, and what is refused.

    ``refusals`` are pairs of a pattern of requests ("GET /api/...") and an answer (status, code, message).
    ``cut`` are names of files of which half is sent.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refusals: list[tuple[str, tuple[int, str, str]]] = []
        self.cut: set[str] = set()
        self.url = ""

    def put(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch; returns the commit."""
        commit = commit_of(files)
        self.repositories.setdefault(repo_id, {}).update({branch: dict(files), commit: dict(files)})
        return commit

    def refuse(self, pattern: str, status: int, code: str = "", message: str = "") -> None:
        self.refusals.append((pattern, (status, code, message)))


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {path}")
        for pattern, (status, code, message) in self.hub.refusals:
            if re.search(pattern, f"{self.command} {path}"):
                return self._refuse(status, code, message)
        if self.command == "POST":
            return self._write(path, body)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
            return self._describe(found[1], found[3] or "main", tree=found[2] == "tree")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._deliver(found[1], found[2], found[3])
        return self._refuse(404, "", "no such endpoint")

    def _files(self, repo_id: str, revision: str) -> dict[str, bytes] | None:
        if repo_id not in self.hub.repositories:
            self._refuse(404 if self._knows() else 401, "RepoNotFound", "Repository not found")
            return None
        if self.hub.private.get(repo_id) and not self._knows():
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        if revision not in self.hub.repositories[repo_id]:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return self.hub.repositories[repo_id][revision]

    def _knows(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _describe(self, repo_id: str, revision: str, *, tree: bool) -> None:
        files = self._files(repo_id, revision)
        if files is None:
            return
        if tree:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self._json(rows)
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repo_id, "sha": commit_of(files), "siblings": siblings, "private": False, "tags": []})

    def _deliver(self, repo_id: str, revision: str, name: str) -> None:
        files = self._files(repo_id, revision)
        if files is None:
            return
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = files[name]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, "0"])[1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit_of(files))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            half = name in self.hub.cut
            self.wfile.write(content[start : start + (len(content) - start) // 2] if half else content[start:])
            self.close_connection = half

    def _write(self, path: str, body: bytes) -> None:
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self._knows():
            return self._refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}"
            if repo_id in self.hub.repositories:
                return self._refuse(409, "", "You already created this model repo")
            self.hub.put(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.hub.private[repo_id] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self._json({"url": f"{self.hub.url}/{repo_id}", "id": repo_id})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.hub.repositories[found[1]]
            if found[2] in branches:
                return self._refuse(409, "", "Reference already exists")
            branches[found[2]] = branches["main"]
            return self._json({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            names = [one["path"] for one in json.loads(body)["files"]]
            kinds = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            return self._json({"files": kinds})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(found[1], found[2], body)
        return self._refuse(404, "", "no such endpoint")

    def _commit(self, repo_id: str, branch: str, body: bytes) -> None:
        if repo_id not in self.hub.repositories:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        files = dict(self.hub.repositories[repo_id][branch])
        for line in filter(None, body.splitlines()):
            one = json.loads(line)
            if one["key"] == "file":
                files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            elif one["key"] == "deletedFile":
                del files[one["value"]["path"]]
        pull = "create_pr=1" in self.path
        commit = self.hub.put(repo_id, files, "refs/pr/1" if pull else branch)
        answer: dict[str, Any] = {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit}
        return self._json(answer | {"pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/1"} if pull else answer)

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Start a hub; its address is ``hub.url``."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        # A hub that is shut down looks for that this often; by default it lets its test wait for half a second.
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
        thread.join()
