"""A bucket on loopback: moto's S3 in this process, behind a door that counts, delays and breaks requests."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from threading import Lock, Thread
from typing import Any, NoReturn

from support.stub_store import StubStore

Fault = str
"""`500`, `503`, `403` or `skewed` (such an answer), `reset` (not done, cut off), `lost` (done, cut off), `half` (done,
half of the answer), `timeout` (no answer)."""
REFUSALS = {
    "500": ("500 Internal Server Error", b""),
    "403": ("403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
    "503": ("503 Slow Down", b"<Error><Code>SlowDown</Code></Error>"),
    "skewed": (
        "403 Forbidden",
        b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request time and the current "
        b"time is too large.</Message></Error>",
    ),
}
"""What S3 answers; the last one if the clock of a machine is off by more than 15 minutes."""


@dataclass(frozen=True)
class Request:
    """A request, as the store got it."""

    method: str
    key: str
    """The path below the bucket, or `?list` for a listing."""
    sent_bytes: int = 0
    """Size of the answer's body."""
    signed: str = ""
    """Who signed it: access key, day, region and service."""


@dataclass
class Door:
    """What is between clients and the store."""

    requests: list[Request] = field(default_factory=list)
    latency_s: float = 0.0
    fault: Callable[[Request], Fault | None] = lambda _: None
    """What goes wrong with a request; called before it is done."""
    ignores_conditions: bool = False
    """Whether the store overwrites although it is told not to."""
    most_at_once: int = 0
    """The most requests that were in work at the same time."""
    in_work: int = 0
    lock: Any = field(default_factory=Lock)

    def wrap(self, app: Any) -> Any:
        def door(environ: Any, start_response: Any) -> Iterable[bytes]:
            with self.lock:
                self.in_work += 1
                self.most_at_once = max(self.most_at_once, self.in_work)
            try:
                return answer(environ, start_response)
            finally:
                with self.lock:
                    self.in_work -= 1

        def answer(environ: Any, start_response: Any) -> Iterable[bytes]:
            _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
            listing = "list-type" in environ["QUERY_STRING"]
            _, _, signed = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")
            method, signed = environ["REQUEST_METHOD"], signed.partition(",")[0]
            asked = Request(method, "?list" if listing else key, signed=signed)
            with self.lock:
                fault = self.fault(asked)
            time.sleep(self.latency_s)
            if self.ignores_conditions:
                environ.pop("HTTP_IF_NONE_MATCH", None)
                environ.pop("HTTP_IF_MATCH", None)
            if fault in REFUSALS:
                status, reason = REFUSALS[fault]
                start_response(status, [("Content-Length", str(len(reason)))])
                return [reason]
            if fault == "timeout":
                raise ConnectionResetError  # the server stays silent, and the connection open
            if fault == "reset":
                _cut(environ)
            said: list[Any] = []
            body = b"".join(app(environ, lambda *given, **_: said.append(given)))
            with self.lock:
                self.requests.append(Request(asked.method, asked.key, len(body), asked.signed))
            if fault == "lost":
                _cut(environ)
            start_response(*said[0][:2])
            return _half(body, environ) if fault == "half" else [body]

        return door

    def counted(self, method: str = "", prefix: str = "") -> int:
        """How many requests there were."""
        return sum(r.method.startswith(method) and r.key.startswith(prefix) for r in self.requests)

    def sent_bytes(self) -> int:
        """Bytes of all answers."""
        return sum(request.sent_bytes for request in self.requests)


def _half(body: bytes, environ: Any) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _cut(environ)


def _cut(environ: Any) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-to-be-shown",
    "AWS_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
}
BUCKET = "shelf"


@contextmanager
def serving_bucket() -> Iterator[tuple[str, Door]]:
    """The store's address, with an empty bucket, and its door."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    with serving(DomainDispatcherApplication(create_backend_app)) as (address, door):
        made = HTTPConnection(address.removeprefix("http://"))
        made.request("PUT", f"/{BUCKET}")
        assert made.getresponse().status == 200
        made.close()
        yield address, door


@contextmanager
def serving_stub() -> Iterator[tuple[str, Door, StubStore]]:
    """The address of a store that answers at once, its door, and what it holds."""
    store = StubStore()
    with serving(store) as (address, door):
        yield address, door, store


@contextmanager
def serving(app: Any) -> Iterator[tuple[str, Door]]:
    """The address of an application behind a door, on loopback."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    door = Door()
    server = make_server("127.0.0.1", 0, door.wrap(app), threaded=True, request_handler=Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", door
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
