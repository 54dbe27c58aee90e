"""Downloads of images, with limits on bytes and time."""

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

from midsight.errors import SampleError, first_line
from midsight.samples.locations import ImageUrl
from midsight.version import __version__

TIMEOUT_S = 30.0
"""Longest wait for the server to send something."""

_WEB = re.compile(r"https?://", re.IGNORECASE)


def is_web_address(text: str) -> bool:
    """Whether the text begins with http:// or https://."""
    return _WEB.match(text) is not None


def download(image: ImageUrl, max_bytes: int) -> bytes:
    """The bytes at the address, cut off after `max_bytes` + 1; raises SampleError if they cannot be read."""
    try:
        http_request = Request(image.url, headers={"User-Agent": f"midsight/{__version__}"})  # noqa: S310  (see _opener)
        answer = _opener().open(http_request, timeout=TIMEOUT_S)
        if answer is None:  # no handler for this scheme
            raise ValueError("it is not an http or https address")
        with answer:
            return answer.read(max_bytes + 1)
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = str(getattr(error, "reason", "")) or first_line(error)
        raise SampleError(f"The image {image} cannot be downloaded: {reason}.") from error


def _opener() -> OpenerDirector:
    """Opens http and https only, also after a redirect; urllib's default opener also accepts file: and ftp:."""
    opener = OpenerDirector()
    handlers = (
        ProxyHandler, HTTPHandler, HTTPSHandler, HTTPRedirectHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor,
    )  # fmt: skip
    for handler in handlers:
        opener.add_handler(handler())
    return opener
