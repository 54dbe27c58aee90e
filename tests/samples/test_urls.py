"""Web addresses as images: refused, or downloaded with allow_urls, within limits."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from midsight.errors import SampleError
from midsight.samples import urls
from midsight.samples.images import decode_image
from midsight.samples.locations import ImageUrl
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import Failure, Sample
from midsight.samples.tables import read_table
from support.pictures import encoded, picture

PNG = encoded(picture((32, 24), 1))


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)  # pyright: ignore[reportAttributeAccessIssue]
        if self.path == "/away.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
        elif self.path == "/file.png":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
        elif self.path in ("/a.png", "/silent.png"):
            self.send_response(200)
        else:
            self.send_response(404)
        self.end_headers()
        if self.path == "/silent.png":
            self.server.released.wait(10)  # pyright: ignore[reportAttributeAccessIssue]
        elif self.path == "/a.png":
            self.wfile.write(PNG)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.released = [], threading.Event()  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.released.set()  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(site):
    return f"http://127.0.0.1:{site.server_address[1]}"


def read_one(tmp_path, image, **options):
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": image, "question": "?"}))
    dataset = read_table(tmp_path / "data.jsonl", DatasetOptions(**options))
    return (*dataset.samples, *dataset.failures)[0]


def test_an_address_is_refused_without_a_request(site, address, tmp_path):
    refused = read_one(tmp_path, f"{address}/a.png")
    assert isinstance(refused, Failure)
    assert "is a URL; allow web addresses with the option allow_urls, or" in refused.reason
    assert site.asked == []


def test_an_allowed_address_is_downloaded_when_it_is_decoded(site, address, tmp_path):
    sample = read_one(tmp_path, f"{address}/a.png", allow_urls=True)
    assert isinstance(sample, Sample)
    assert (sample.image, site.asked) == (f"{address}/a.png", [])
    assert decode_image(sample.images[0]).tobytes() == picture((32, 24), 1).tobytes()
    assert decode_image(ImageUrl(f"{address}/away.png")).size == (32, 24)


@pytest.mark.parametrize("image", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "data:,a", "gopher://x/"])
def test_other_schemes_are_refused_even_if_urls_are_allowed(tmp_path, image):
    assert isinstance(read_one(tmp_path, image, allow_urls=True), Failure)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/lost.png", "cannot be downloaded: Not Found"),
        ("/file.png", "cannot be downloaded"),
    ],
)
def test_an_error_of_the_server_is_one_sentence(address, url, reason):
    with pytest.raises(SampleError, match=reason) as caught:
        decode_image(ImageUrl(f"{address}{url}"))
    assert "\n" not in str(caught.value)


def test_a_download_is_limited_in_bytes_and_time(address, monkeypatch):
    with pytest.raises(SampleError, match="has more than 100 bytes"):
        decode_image(ImageUrl(f"{address}/a.png"), max_bytes=100)
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.2)
    with pytest.raises(SampleError, match="cannot be downloaded: timed out"):
        decode_image(ImageUrl(f"{address}/silent.png"))


def test_only_http_and_https_are_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    for url in ((tmp_path / "a.png").as_uri(), "ftp://127.0.0.1:1/a.png", "data:image/png;base64,iVBORw0KGgo="):
        with pytest.raises(SampleError, match="cannot be downloaded"):
            urls.download(ImageUrl(url), 10**6)


def test_an_impossible_address_is_one_sentence():
    for url in ("http://", "http://[::1", "https://127.0.0.1:1/a.png", "http://a b/"):
        with pytest.raises(SampleError, match="cannot be downloaded"):
            decode_image(ImageUrl(url))


def test_whether_urls_are_allowed_is_among_the_options(address, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": f"{address}/a.png", "question": "?"}))
    assert read_table(tmp_path / "data.jsonl", DatasetOptions(allow_urls=True)).options["allow_urls"] is True
    assert read_table(tmp_path / "data.jsonl").options["allow_urls"] is False
