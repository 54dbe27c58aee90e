"""A store in memory that speaks as much of S3 as runs need, and at once: moto takes seconds to list 20,000 objects."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape, unescape

LAST_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"
PAGE = 1000
"""Objects in one answer to a listing, as in S3."""


@dataclass
class StubStore:
    """A WSGI application with one bucket."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """Its objects by key."""
    _lock: Any = field(default_factory=Lock)

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Answers a request."""
        status, headers, body = self._answer(environ)
        sent = () if environ["REQUEST_METHOD"] == "HEAD" else (body,)
        start_response(status, [*headers.items(), ("Content-Length", str(len(body)))])
        return sent

    def _answer(self, environ: Any) -> tuple[str, dict[str, str], bytes]:
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/").partition("/")[2]
        if "list-type" in environ["QUERY_STRING"]:
            return (
                "200 OK",
                {},
                self._page({name: found[0] for name, found in parse_qs(environ["QUERY_STRING"]).items()}),
            )
        if method == "PUT":
            return self._put(environ, key)
        if method == "POST":
            return self._delete_all(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())
        if (content := self.objects.get(key)) is None:
            return "404 Not Found", {}, b""
        headers = {"ETag": tag(content), "Last-Modified": LAST_MODIFIED}
        if asked := environ.get("HTTP_RANGE", "").removeprefix("bytes="):
            start, stop = (int(number) for number in asked.split("-"))
            part = content[start : stop + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            return "206 Partial Content", headers, part
        return "200 OK", headers, content

    def _put(self, environ: Any, key: str) -> tuple[str, dict[str, str], bytes]:
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self._lock:
            there = self.objects.get(key)
            is_refused = "HTTP_IF_NONE_MATCH" in environ and there is not None
            wanted = environ.get("HTTP_IF_MATCH")
            if is_refused or (wanted is not None and (there is None or tag(there) != wanted)):
                return "412 Precondition Failed", {}, b""
            self.objects[key] = content
        return "200 OK", {"ETag": tag(content)}, b""

    def _delete_all(self, asked: str) -> tuple[str, dict[str, str], bytes]:
        keys = re.findall("<Key>(.*?)</Key>", asked)
        with self._lock:
            for key in keys:
                self.objects.pop(unescape(key), None)
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return "200 OK", {}, f"<DeleteResult>{deleted}</DeleteResult>".encode()

    def _page(self, asked: dict[str, str]) -> bytes:
        with self._lock:
            objects = dict(self.objects)
        names = sorted(objects)
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        after = asked.get("continuation-token") or asked.get("start-after", "")
        first = max(bisect_right(names, after), bisect_right(names, prefix) if prefix else 0)
        keys: list[str] = []
        folders: dict[str, None] = {}
        more = False
        for key in names[first:]:
            if not key.startswith(prefix):
                break
            if len(keys) == PAGE:
                more = True
                break
            if delimiter and delimiter in key[len(prefix) :]:
                folders[prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter] = None
            else:
                keys.append(key)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(tag(objects[key]))}</ETag><Size>{len(objects[key])}</Size></Contents>"
            for key in keys
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}{common}"
            "</ListBucketResult>"
        ).encode()


def tag(content: bytes) -> str:
    """The ETag of an object."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
