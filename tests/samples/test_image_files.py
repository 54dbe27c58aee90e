"""Image files as people have them: links, names, and contents that Pillow alone refuses."""

from __future__ import annotations

import json
import sys
import unicodedata
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from midsight.errors import SampleError
from midsight.samples.images import decode_image, resolve_image_path
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import read_table
from support.made_tables import ENCODED, PICTURES
from support.pictures import encoded, picture
from support.prompting import read_good


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(ENCODED[0])
    return tmp_path / "images"


class TestLinks:
    """Links out of the folder of the images."""

    def test_one_that_stays_inside_is_followed(self, root):
        (root / "real.png").write_bytes(ENCODED[0])
        (root / "link.png").symlink_to("real.png")
        assert resolve_image_path("link.png", root) == (root / "real.png").resolve()

    @pytest.mark.parametrize(("link", "target", "name"), [("a.png", "a.png", "a.png"), ("day", "", "day/a.png")])
    def test_one_that_leaves_is_named_and_followed_on_request(self, root, link, target, name):
        (root / link).symlink_to(root.parent / "elsewhere" / target)
        with pytest.raises(SampleError) as refusal:
            resolve_image_path(name, root)
        assert f"by the link {root.resolve() / link} to" in str(refusal.value)
        assert "follow links with the option follow_links" in str(refusal.value)
        path = resolve_image_path(name, root, follow_links=True)
        assert path == (root.parent / "elsewhere" / "a.png").resolve()

    @pytest.mark.parametrize("name", ["../elsewhere/a.png", "day/../../elsewhere/a.png", "/etc/hostname"])
    def test_a_path_that_leaves_is_never_followed(self, root, name):
        (root / "day").symlink_to(root.parent / "elsewhere")
        with pytest.raises(SampleError, match="lies outside the image folder"):
            resolve_image_path(name, root, follow_links=True)

    @pytest.mark.parametrize(("repository", "allowed"), [("datasets--o--n", True), ("datasets--o--other", False)])
    def test_blobs_of_the_same_download_are_allowed(self, tmp_path, repository, allowed):
        snapshot = tmp_path / "datasets--o--n" / "snapshots" / "abc" / "images"
        snapshot.mkdir(parents=True)
        blob = tmp_path / repository / "blobs" / "0a1b"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(ENCODED[0])
        (snapshot / "a.png").symlink_to(blob)
        if allowed:
            assert resolve_image_path("a.png", snapshot) == blob.resolve()
        else:
            with pytest.raises(SampleError, match="leads out of the image folder"):
                resolve_image_path("a.png", snapshot)

    def test_folders_of_images_follow_links_on_request(self, root):
        (root / "day").symlink_to(root.parent / "elsewhere")
        (root / "loop").symlink_to(root)
        (root / "b.png").write_bytes(ENCODED[1])
        (root / "notes.txt").write_text("x")
        plain = read_good(root, question="What?")
        assert [sample.image for sample in plain.samples] == ["b.png"]
        assert plain.notes == (
            f"{root} leaves out 3 of its files: 2 links to folders, 1 *.txt. follow_links follows links.",
        )
        followed = read_good(root, question="What?", follow_links=True)
        assert [sample.image for sample in followed.samples] == ["b.png", "day/a.png"]


class TestNames:
    """How a dataset spells the name of a file."""

    @pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
    def test_another_unicode_form_is_found(self, root, on_disk):
        name = "Größe/é.png"
        path = root / unicodedata.normalize(on_disk, name)
        path.parent.mkdir()
        path.write_bytes(ENCODED[2])
        for asked in ("NFC", "NFD"):
            found = resolve_image_path(unicodedata.normalize(asked, name), root)
            assert np.array_equal(np.asarray(decode_image(found)), np.asarray(PICTURES[2]))

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("day\\a.png", "write / and not \\ between folders"), ("my%20cat.png", "write %20 as a space")],
    )
    def test_a_missing_file_gets_a_hint(self, root, name, hint):
        (root / "a.csv").write_text(f"image,question\n{name},?\n")
        (sample,) = read_good(root / "a.csv").samples
        with pytest.raises(SampleError) as refusal:
            decode_image(sample.images[0])
        assert hint in str(refusal.value)

    @pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif"])
    def test_rarer_suffixes_are_images_of_a_folder(self, root, suffix):
        kind = "AVIF" if suffix == "avif" else "JPEG"
        (root / f"a.{suffix}").write_bytes(encoded(picture((40, 30), 1), kind))
        (sample,) = read_good(root, question="?").samples
        assert decode_image(sample.images[0]).size == (40, 30)


class TestContents:
    """Contents that say nothing about pixels, or little."""

    def with_chunk(self, kind, data, *, last):
        whole = ENCODED[0]
        chunk = len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        place = len(whole) - 12 if last else 33
        return whole[:place] + chunk + whole[place:]

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize(
        ("kind", "data"),
        [
            (b"zTXt", b"note\0\0" + zlib.compress(b" " * 3_000_000)),
            (b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b" " * 3_000_000)),
            (b"iCCP", b"icc\0\0" + zlib.compress(b" " * 3_000_000)),
        ],
    )
    def test_large_text_and_profiles_of_a_png_are_left_out(self, kind, data, last):
        image = decode_image(self.with_chunk(kind, data, last=last))
        assert np.array_equal(np.asarray(image), np.asarray(PICTURES[0]))

    def test_a_damaged_png_is_still_refused(self):
        with pytest.raises(SampleError, match="cannot be decoded"):
            decode_image(self.with_chunk(b"zTXt", b"note\0\0" + zlib.compress(b" " * 3_000_000), last=False)[:-60])

    @pytest.mark.parametrize(("brightest", "black"), [(4095, True), (8191, True), (8192, False), (65535, False)])
    def test_16_bit_grey_that_comes_out_nearly_black_is_said(self, tmp_path, brightest, black):
        grey = Image.fromarray(np.linspace(0, brightest, 64).reshape(8, 8).astype(np.uint16))
        (tmp_path / "depth.png").write_bytes(encoded(grey))
        notes = []
        image = decode_image(tmp_path / "depth.png", note=notes.append)
        assert np.asarray(image).max() == brightest >> 8
        assert len(notes) == black
        assert all(note.startswith(f"The image {tmp_path / 'depth.png'} stores 16-bit grey") for note in notes)

    def test_heic_says_which_package_reads_it(self, monkeypatch):
        for module in ("pillow_heif", "pillow_heif.as_plugin"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SampleError, match="is HEIC; install the package pillow-heif, or convert it to JPEG"):
            decode_image(b"\0\0\0\x18ftypheic" + bytes(100))

    def test_bytes_in_lists_and_larger_structs_are_images(self, tmp_path):
        cells = [list(ENCODED[0]), {"bytes": list(ENCODED[0]), "path": None}]
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"image": cell, "question": "?"}) for cell in cells))
        for sample in read_good(tmp_path / "a.jsonl").samples:
            assert np.array_equal(np.asarray(decode_image(sample.images[0])), np.asarray(PICTURES[0]))
        struct = {"bytes": ENCODED[3], "path": None, "height": 9, "width": 24}
        pq.write_table(pa.table({"image": [struct], "question": ["?"]}), tmp_path / "a.parquet")
        (sample,) = read_good(tmp_path / "a.parquet").samples
        assert np.array_equal(np.asarray(decode_image(sample.images[0])), np.asarray(PICTURES[3]))


def test_a_data_uri_that_is_not_base64_says_so(tmp_path):
    (tmp_path / "a.csv").write_text('image,question\n"data:image/svg+xml,%3Csvg%3E",?\n')
    (failure,) = read_table(tmp_path / "a.csv", DatasetOptions()).failures
    assert "is a data URI, but not of an image in base64" in failure.reason
