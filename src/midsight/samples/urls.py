"""Images on the web, bounded in bytes and time."""

from __future__ import annotations

import re
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from midsight import __version__
from midsight.errors import SampleError, first_line
from midsight.samples.places import ImageUrl

TIMEOUT_S = 30.0
"""Longest silence of a server."""

_WEB = re.compile(r"https?://", re.IGNORECASE)


def url_options(allow_urls: bool) -> dict[str, bool]:
    """--allow-urls as an option that decides the meaning of a row; one that is not given is not there."""
    return {"--allow-urls": True} if allow_urls else {}


def is_web_address(text: str) -> bool:
    """Whether it begins with http:// or https://."""
    return _WEB.match(text) is not None


def download(image: ImageUrl, max_bytes: int) -> bytes:
    """The bytes behind the address, at most one more than `max_bytes`; raises SampleError."""
    try:
        request = Request(image.url, headers={"User-Agent": f"midsight/{__version__}"})  # noqa: S310  (see _opener)
        answer = _opener().open(request, timeout=TIMEOUT_S)
        if answer is None:  # no handler for it
            raise ValueError("it is no http or https address")
        with answer:
            return answer.read(max_bytes + 1)
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = str(getattr(error, "reason", "")) or first_line(error)
        raise SampleError(f"The image {image} cannot be downloaded: {reason}.") from error


def _opener() -> OpenerDirector:
    """Opens http and https only, also behind a redirection: urllib's own would take file: and ftp: as well."""
    opener = OpenerDirector()
    handlers = (
        ProxyHandler, HTTPHandler, HTTPSHandler, HTTPRedirectHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor,
    )  # fmt: skip
    for handler in handlers:
        opener.add_handler(handler())
    return opener
