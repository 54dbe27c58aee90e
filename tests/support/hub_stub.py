"""A fake hub on loopback: repositories with commits, branches and tags, and a list of all requests."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants


@dataclass(frozen=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    """Path of the URL, without query."""
    bytes_range: str | None
    """The Range header."""
    token: str | None
    """Token in the Authorization header."""

    @property
    def file(self) -> str | None:
        """File of the repository that is requested."""
        return self.path.partition("/resolve/")[2].partition("/")[2] or None


@dataclass
class Repository:
    """The content of one hub id."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit -> file name -> content."""
    refs: dict[str, str] = field(default_factory=dict)
    """Branch or tag -> commit."""
    token: str | None = None
    """Token that is needed to read; None if everybody may read."""
    gated: bool = False
    """Whether everybody sees the list of files, and only the owner of the token their content."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content of large files, whether a commit has them or not."""


class HubStub:
    """The server; call `close` at the end."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], int | None] = lambda request: None
        """Called before each answer; if it returns a status, that is the answer."""
        self.cuts: dict[str, int] = {}
        """File name -> number of bytes sent before the connection breaks."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, hub_id: str, files: Mapping[str, bytes], *refs: str) -> str:
        """Adds a commit to a repository, points `refs` to it, and returns it."""
        repository = self.repositories.setdefault(hub_id, Repository())
        commit = hashlib.sha1(repr((hub_id, sorted(files.items()))).encode(), usedforsecurity=False).hexdigest()
        repository.commits[commit] = dict(files)
        repository.refs |= dict.fromkeys(refs, commit)
        return commit

    def files(self, method: str) -> list[str]:
        """The files that were requested with this method, sorted, one entry per request."""
        return sorted(request.file for request in self.requests if request.method == method and request.file)


@contextmanager
def connected_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    """An empty hub that this process's client talks to, with an empty cache in `folder` and no token."""
    hub = HubStub()
    close_session()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    yield hub
    close_session()
    hub.close()


def read_files(folder: Path) -> dict[str, bytes]:
    """Path inside the folder -> content, for all files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that huggingface_hub makes."""

    hub: HubStub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        self.take()

    def do_PUT(self):
        self.take()

    def log_message(self, format, *args):
        pass

    def answer(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, "/" + "/".join(parts), self.headers.get("Range"), token)
        self.hub.requests.append(request)
        status = self.hub.on_request(request)
        if status is not None:
            return self.refuse(status)
        of_api = parts[0] == "api"
        owner, name, *rest = parts[2:] if of_api else parts[parts[0] == "datasets" :]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        allowed = repository is not None and repository.token in (None, token)
        if repository is None or not (allowed or repository.gated):
            return self.refuse(401, "RepoNotFound")
        if not allowed and not of_api:
            return self.refuse(403, "GatedRepo")
        kind, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if kind == "revision":
            return self.send_json(
                {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            )
        if kind == "tree":
            return self.send_json([in_tree(f, data, data in repository.uploaded.values()) for f, data in files.items()])
        file = "/".join(rest[2:])
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        return self.send_file(file, files[file], commit)

    def take(self):
        """Answers an upload: a new repository, a large file, or a commit."""
        body = self.body()
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, path, None, token)
        self.hub.requests.append(request)
        status = self.hub.on_request(request)
        if status is not None:
            return self.refuse(status)
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.hub.repositories else 200
            if status == 200:
                self.hub.add(name, {}, "main")
            return self.send_json({"url": f"{self.hub.endpoint}/datasets/{name}"}, status)
        name = "/".join(path.removeprefix("/api").removeprefix("/datasets").removeprefix("/").split("/")[:2])
        repository = self.hub.repositories[name.removesuffix(".git")]
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = [(file["path"], "lfs" if file["path"].endswith(".parquet") else "regular") for file in asked]
            return self.send_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        if path.endswith("/objects/batch"):
            asked = json.loads(body)["objects"]
            there = repository.uploaded
            where = f"{self.hub.endpoint}/datasets/{name.removesuffix('.git')}/upload"
            uploads = {one["oid"]: {"upload": {"href": f"{where}/{one['oid']}"}} for one in asked}
            objects = [{**one, **({} if one["oid"] in there else {"actions": uploads[one["oid"]]})} for one in asked]
            return self.send_json({"transfer": "basic", "objects": objects})
        if "/upload/" in path:
            repository.uploaded[path.rpartition("/")[2]] = body
            return self.send_json({})
        return self.commit(repository, name, [json.loads(line) for line in body.splitlines()])

    def body(self) -> bytes:
        """The content of the request, which may come in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]):
        files = dict(repository.commits[repository.refs["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = repository.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = self.hub.add(name, files, "main")
        self.send_json({"success": True, "commitOid": made, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{made}"})

    def refuse(self, status: int, code: str | None = None):
        self.send_body(b"", status, {"X-Error-Code": code} if code else {})

    def send_json(self, content, status: int = 200):
        self.send_body(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def send_file(self, file: str, data: bytes, commit: str):
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_body(data[start:], status, headers, cut=self.hub.cuts.get(file))

    def send_body(self, body: bytes, status: int, headers: Mapping[str, str], cut: int | None = None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None


def in_tree(name: str, data: bytes, is_large: bool) -> dict[str, Any]:
    """A file in the list of a repository's files."""
    of_git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    large = {"lfs": {"size": len(data), "oid": etag(data), "pointerSize": 130}} if is_large else {}
    return {"type": "file", "path": name, "size": len(data), "oid": of_git, **large}


def etag(data: bytes) -> str:
    """The ETag of a file, which names it in the cache of huggingface_hub."""
    return hashlib.sha256(data).hexdigest()
