"""Google Cloud Storage and Azure Blob Storage on loopback, as far as obstore speaks with them: kept in memory.

Written from the two services' pages on their XML APIs; what a real one does beyond that is not here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CONTAINER = "shelf"
TOKEN = "a-token-not-to-be-shown"
ACCOUNT = "devstoreaccount1"
"""Azurite's account, whose key everybody knows."""
PAGE = 3
"""Most names in one answer of a listing, so that tests see several."""


@dataclass
class Shelf:
    """The objects of one bucket or container."""

    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """Name -> content and generation."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and name of each request; the name is `?list` for a listing."""
    generation: int = 1_000
    """The last one that was given."""
    ignores_conditions: bool = False
    """Whether the store overwrites although it is told not to."""
    refuses: Callable[[str, str], int | None] = lambda method, name: None
    """The status with which a request is refused; None to do it."""
    lock: Any = field(default_factory=threading.RLock)

    def put(self, name: str, content: bytes) -> int:
        with self.lock:
            self.generation += 1
            self.objects[name] = content, self.generation
            return self.generation


class _Handler(BaseHTTPRequestHandler):
    """What both services do alike."""

    shelf: Shelf
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # so that an answer is one packet
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.do()

    def do_HEAD(self) -> None:
        self.do()

    def do_PUT(self) -> None:
        self.do()

    def do_DELETE(self) -> None:
        self.do()

    def do_POST(self) -> None:
        self.do()

    def do(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        name = unquote(address.path).strip("/").removeprefix(f"{ACCOUNT}/").partition("/")[2]
        lists = not name
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.shelf.lock:
            self.shelf.requests.append((self.command, "?list" if lists else name))
            status = 403 if not self.is_allowed() else self.shelf.refuses(self.command, name)
            if status is not None:
                self.answer(status, b"<Error><Code>AccessDenied</Code></Error>" if status == 403 else b"")
            elif self.command == "POST":
                self.batch(content)
            elif lists:
                self.answer(200, self.listing(query).encode(), {"Content-Type": "application/xml"})
            elif self.command == "PUT":
                self.put(name, content)
            elif name not in self.shelf.objects:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.command == "DELETE":
                del self.shelf.objects[name]
                self.answer(self.deleted)
            else:
                self.get(name)

    def put(self, name: str, content: bytes) -> None:
        there = self.shelf.objects.get(name, (b"", 0))[1]
        refused = None if self.shelf.ignores_conditions else self.refused(there)
        if refused is not None:
            return self.answer(refused, b"<Error><Code>ConditionNotMet</Code></Error>")
        return self.answer(self.created, b"", self.version(self.shelf.put(name, content)))

    def get(self, name: str) -> None:
        content, generation = self.shelf.objects[name]
        headers = {**self.version(generation), "Last-Modified": formatdate(0, usegmt=True), "Accept-Ranges": "bytes"}
        span = self.headers.get("x-ms-range") or self.headers.get("Range")
        if span is None:
            return self.answer(200, content, headers)
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        if start >= len(content):
            return self.answer(416)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.answer(206, content[start:stop], headers)

    def names(self, query: Mapping[str, str], after: str) -> tuple[list[str], list[str], str]:
        """The objects and folders of one page of a listing, and the last name if more follow."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found: dict[str, bool] = {}
        for name in sorted(self.shelf.objects):
            if name.startswith(prefix):
                inside = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
                found[prefix + inside[0] + delimiter if inside[1] else name] = bool(inside[1])
        page = [name for name in found if name > after][:PAGE]
        more = page[-1] if page and page[-1] != [*found][-1] else ""
        return [n for n in page if not found[n]], [n for n in page if found[n]], more

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    created: int
    deleted: int

    def is_allowed(self) -> bool:
        raise NotImplementedError

    def refused(self, there: int) -> int | None:
        raise NotImplementedError

    def version(self, generation: int) -> dict[str, str]:
        raise NotImplementedError

    def listing(self, query: Mapping[str, str]) -> str:
        raise NotImplementedError

    def batch(self, content: bytes) -> None:
        raise NotImplementedError


class _Google(_Handler):
    """The XML API of Google Cloud Storage: conditions are on generations."""

    created, deleted = 200, 204

    def is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def refused(self, there: int) -> int | None:
        wanted = self.headers.get("x-goog-if-generation-match")
        return None if wanted is None or int(wanted) == there else 412

    def version(self, generation: int) -> dict[str, str]:
        return {"ETag": f'"tag-{generation}"', "x-goog-generation": str(generation)}

    def listing(self, query: Mapping[str, str]) -> str:
        objects, folders, more = self.names(query, query.get("continuation-token", ""))
        listed = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self.shelf.objects[name][0])}</Size>"
            f'<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"tag-{self.shelf.objects[name][1]}"</ETag>'
            f"<Generation>{self.shelf.objects[name][1]}</Generation></Contents>"
            for name in objects
        )
        listed += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
        return f"<ListBucketResult>{listed}{token}</ListBucketResult>"


class _Azure(_Handler):
    """The Blob service's REST API: conditions are on ETags. Signatures are not checked."""

    created, deleted = 201, 202

    def is_allowed(self) -> bool:
        return self.headers.get("Authorization", "").startswith(f"SharedKey {ACCOUNT}:")

    def refused(self, there: int) -> int | None:
        if self.headers.get("If-None-Match") == "*" and there:
            return 409
        wanted = self.headers.get("If-Match")
        return None if wanted is None or wanted == self.version(there)["ETag"] else 412

    def version(self, generation: int) -> dict[str, str]:
        return {"ETag": f'"0x{generation:X}"'}

    def listing(self, query: Mapping[str, str]) -> str:
        objects, folders, more = self.names(query, query.get("marker", ""))
        listed = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{formatdate(0, usegmt=True)}</Last-Modified>"
            f"<Etag>0x{self.shelf.objects[name][1]:X}</Etag>"
            f"<Content-Length>{len(self.shelf.objects[name][0])}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for name in objects
        )
        listed += "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in folders)
        return (
            f"<EnumerationResults><Blobs>{listed}</Blobs><NextMarker>{escape(more)}</NextMarker></EnumerationResults>"
        )

    def batch(self, content: bytes) -> None:
        """Deletes, which come many in one request."""
        parts = []
        for number, asked in enumerate(re.findall(rb"DELETE (/\S+) HTTP/1.1", content)):
            name = unquote(asked.decode()).removeprefix(f"/{ACCOUNT}/").partition("/")[2]
            self.shelf.requests.append(("DELETE", name))
            there = self.shelf.objects.pop(name, None) is not None
            status = "202 Accepted" if there else "404 The specified blob does not exist."
            parts.append(
                f"--answers\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n\r\n"
            )
        body = "".join([*parts, "--answers--"]).encode()
        self.answer(202, body, {"Content-Type": "multipart/mixed; boundary=answers"})


@contextmanager
def serving_store(scheme: Literal["gs", "az"]) -> Iterator[tuple[Shelf, dict[str, str]]]:
    """An empty bucket or container named CONTAINER, and the environment with which clients find it."""
    shelf = Shelf()
    handler: Any = type("Bound", (_Google if scheme == "gs" else _Azure,), {"shelf": shelf})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    found_by = (
        {"GOOGLE_BASE_URL": address, "GOOGLE_BEARER_TOKEN": TOKEN}
        if scheme == "gs"
        else {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": address}
    )
    try:
        yield shelf, {**found_by, "NO_PROXY": "127.0.0.1"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
