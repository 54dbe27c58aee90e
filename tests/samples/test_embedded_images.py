"""Images inside tables: bytes and base64, one or several, read when they are decoded and never before."""

from __future__ import annotations

import base64
import gc
import io
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midsight.errors import MidsightError, SampleError
from midsight.samples import columnar, embedded
from midsight.samples.embedded import embedded_bytes, image_values
from midsight.samples.images import decode_image
from midsight.samples.locations import EmbeddedImage
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import Dataset, read_table
from support.made_tables import ENCODED, PICTURES, STRUCT, as_struct, text, write_arrow, write_parquet, write_text
from support.pictures import encoded


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """Each test opens its own files, not those that the test before left open."""
    columnar.close_cached_files()
    yield
    columnar.close_cached_files()


def in_each_form(folder: Path, data: list[bytes]) -> dict[str, Path]:
    """The same images in every kind of table, and in every form a table can hold them."""
    binary = pa.array(data, pa.binary())
    return {
        "parquet, struct": write_parquet(folder / "struct.parquet", as_struct(data)),
        "parquet, bytes": write_parquet(folder / "bytes.parquet", binary),
        "parquet, large bytes": write_parquet(folder / "large.parquet", binary.cast(pa.large_binary())),
        "parquet, dictionary": write_parquet(folder / "dictionary.parquet", binary.dictionary_encode()),
        "parquet, base64": write_parquet(folder / "base64.parquet", pa.array([text(one) for one in data])),
        "arrow, struct": write_arrow(folder / "arrow", as_struct(data)),
        "arrow, bytes": write_arrow(folder / "arrow-bytes", binary),
        "jsonl": write_text(folder / "data.jsonl", [text(one) for one in data]),
        "jsonl, data URI": write_text(folder / "uri.jsonl", [f"data:image/png;base64,{text(one)}" for one in data]),
        "json": write_text(folder / "data.json", [text(one) for one in data]),
        "csv": write_text(folder / "data.csv", [text(one) for one in data]),
        "tsv, lines of 76": write_text(folder / "data.tsv", [base64.encodebytes(one).decode() for one in data]),
    }


def assert_same_pixels(dataset: Dataset, expected: list[list[int]]) -> None:
    assert [len(sample.images) for sample in dataset.samples] == [len(numbers) for numbers in expected]
    for sample, numbers in zip(dataset.samples, expected, strict=True):
        for image, number in zip(sample.images, numbers, strict=True):
            assert np.array_equal(np.asarray(decode_image(image)), np.asarray(PICTURES[number]))


FORMS = (
    "parquet, struct", "parquet, bytes", "parquet, large bytes", "parquet, dictionary", "parquet, base64",
    "arrow, struct", "arrow, bytes", "jsonl", "jsonl, data URI", "json", "csv", "tsv, lines of 76",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_embedded_images_decode_to_their_pixels_and_repeats_share_one_value(tmp_path, form):
    order = [0, 1, 0, 2, 1, 3, 0, 4]
    dataset = read_table(in_each_form(tmp_path, [ENCODED[i] for i in order])[form])
    assert dataset.failures == ()
    assert_same_pixels(dataset, [[i] for i in order])
    assert_same_pixels(Dataset(dataset.samples[::-1], (), {}, "", None, 8), [[i] for i in order[::-1]])
    distinct = {image for sample in dataset.samples for image in sample.images if isinstance(image, EmbeddedImage)}
    assert len(distinct) == len({sample.image for sample in dataset.samples}) == 5
    first, _, third, *_ = dataset.samples
    assert first.image == third.image
    assert first.images[0] is third.images[0]
    assert first.image.startswith("sha256:")
    assert len(first.image) == 23
    assert not {"image", "bytes"} & set(dataset.extras)


def test_the_reference_is_the_same_in_every_form(tmp_path):
    tables = in_each_form(tmp_path, ENCODED)
    assert tuple(tables) == FORMS
    references = [[sample.image for sample in read_table(path).samples] for path in tables.values()]
    assert all(one == references[0] for one in references)


def test_several_images_of_a_sample_in_each_form(tmp_path):
    expected = [[0, 1], [2], [1, 0, 3]]
    pairs = [[ENCODED[i] for i in numbers] for numbers in expected]
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, data in zip(paths, ENCODED, strict=True):
        path.write_bytes(data)
    structs = pa.array([[{"bytes": one, "path": None} for one in row] for row in pairs], pa.list_(STRUCT))
    mixed = [[text(ENCODED[0]), "1.png"], ["2.png"], ["1.png", text(ENCODED[0]), text(ENCODED[3])]]
    names = [[f"{i}.png" for i in numbers] for numbers in expected]
    tables = [
        write_parquet(tmp_path / "structs.parquet", structs),
        write_parquet(tmp_path / "bytes.parquet", pa.array(pairs, pa.list_(pa.binary()))),
        write_arrow(tmp_path / "arrow", structs),
        write_text(tmp_path / "data.jsonl", mixed),
        write_text(tmp_path / "data.json", mixed),
        write_text(tmp_path / "json.csv", [json.dumps(row) for row in mixed]),
        write_text(tmp_path / "python.tsv", [repr(row) for row in mixed]),
        write_text(tmp_path / "names.tsv", [repr(row) for row in names]),
        write_parquet(tmp_path / "names.parquet", pa.array(names)),
    ]
    for path in tables:
        dataset = read_table(path)
        assert dataset.failures == (), path
        assert_same_pixels(dataset, expected)
        assert len(json.loads(dataset.samples[0].image)) == 2
        assert not dataset.samples[1].image.startswith("[")


def test_only_the_chosen_column_of_images_is_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", as_struct(ENCODED), other=as_struct(ENCODED), raw=pa.array(ENCODED))
    dataset = read_table(path)
    assert dataset.extras == {}
    assert [dict(sample.extras) for sample in dataset.samples] == [{}] * 5
    other = read_table(path, DatasetOptions(image_column="other"))
    assert [sample.image for sample in other.samples] == [sample.image for sample in dataset.samples]
    assert other.samples[0].images[0] != dataset.samples[0].images[0]
    with pytest.raises(MidsightError, match="holds bytes in column 'raw'; choose another with question_column"):
        read_table(path, DatasetOptions(question_column="raw"))


def test_images_that_a_table_names_by_path_stay_in_their_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    cells = [
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
        None,
    ]
    dataset = read_table(write_parquet(tmp_path / "a.parquet", pa.array(cells, STRUCT)))
    assert_same_pixels(dataset, [[0]])
    assert dataset.samples[0].image == "a.png"
    outside, nothing, null = [failure.reason for failure in dataset.failures]
    assert "row 2: '/etc/passwd' lies outside the image folder" in outside
    assert 'row 3: the image is {"bytes": null, "path": null}, not text' in nothing
    assert "row 4: the image is null, not text" in null


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (text(ENCODED[0])[:-3], "the image is damaged base64"),
        (text(ENCODED[0])[:300] + "!" + text(ENCODED[0])[300:], "the image is damaged base64"),
        (f"data:image/png;base64,{text(ENCODED[0])[:200]}!", "the image is damaged base64"),
        ({"bytes": 5}, "not text"),
        ([text(ENCODED[0]), 7], "a list must hold one or more paths or images"),
        ([[text(ENCODED[0])]], "a list must hold one or more paths or images"),
        ("data:text/plain,AAAA" + "A" * 60, "is a data URI, but not of an image in base64"),
        (repr(ENCODED[0])[:90], "bytes as Python prints them, and cut off"),
        ("[137, 80, 78, 710" + ", 7" * 30 + "]", "a list that is not one of bytes"),
        ("a" * 250 + ".png", None),
        ("a/" * 150 + "a.png", None),
        ("iVBORw0KGgo" + "A" * 60 + ".png", None),
    ],
)
def test_text_that_is_not_base64_is_a_path_or_a_failure(tmp_path, value, reason):
    dataset = read_table(write_text(tmp_path / "data.jsonl", ["b.png", value]))
    if reason is None:
        assert dataset.samples[1].images == (tmp_path.resolve() / value,)
    else:
        assert reason in dataset.failures[0].reason


def test_embedded_bytes_that_are_not_an_image_fail_when_decoded(tmp_path):
    cells = [b"", b"GIF89a", b"<html>", bytes(300)]
    dataset = read_table(write_parquet(tmp_path / "a.parquet", as_struct(cells)))
    reasons = ["is empty", "cannot be decoded", "contains no PNG, JPEG", "contains no PNG, JPEG"]
    for sample, reason in zip(dataset.samples, reasons, strict=True):
        with pytest.raises(SampleError, match=reason) as refusal:
            decode_image(sample.images[0])
        assert f"{tmp_path / 'a.parquet'}, row {sample.input_index + 1}, column 'image'" in str(refusal.value)
    avif = text(b"\0\0\0\x20ftypjpx " + bytes(300))
    (sample,) = read_table(write_text(tmp_path / "a.jsonl", [avif])).samples
    with pytest.raises(SampleError, match="contains no PNG, JPEG"):
        decode_image(sample.images[0])


@pytest.mark.parametrize("form", ["parquet, struct", "arrow, struct", "jsonl", "json", "csv"])
def test_a_table_that_changed_gives_a_failure_and_never_another_image(tmp_path, form):
    dataset = read_table(in_each_form(tmp_path, ENCODED)[form])
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    in_each_form(tmp_path, ENCODED[::-1])
    for sample in (dataset.samples[0], dataset.samples[4]):
        with pytest.raises(SampleError, match=r"has changed since|cannot be read again") as refusal:
            decode_image(sample.images[0])
        assert "\n" not in str(refusal.value)
    shutil.rmtree(tmp_path)
    columnar.close_cached_files()
    with pytest.raises(SampleError, match="cannot be read again"):
        decode_image(dataset.samples[0].images[0])


def test_rows_of_a_large_row_group_that_left_memory_are_read_again(tmp_path, monkeypatch):
    order = [i % 5 for i in range(40)]
    salted = [ENCODED[i] + bytes([0, n]) for n, i in enumerate(order)]
    path = write_parquet(tmp_path / "a.parquet", as_struct(salted), row_group_size=20)
    monkeypatch.setattr(columnar, "_PIECE_BYTES", 3 * len(salted[0]))
    monkeypatch.setattr(columnar, "_KEPT_BYTES", 5 * len(salted[0]))
    samples = read_table(path).samples
    for positions in (range(40), range(39, -1, -1), [0, 19, 20, 0, 39, 5, 4, 3]):
        for position in positions:
            pixels = np.asarray(decode_image(samples[position].images[0]))
            assert np.array_equal(pixels, np.asarray(PICTURES[order[position]]))


def test_a_row_group_that_has_become_shorter_gives_a_failure(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", as_struct(ENCODED), row_group_size=5)
    samples = read_table(path).samples
    write_parquet(path, as_struct(ENCODED[:2]), row_group_size=5)
    assert np.array_equal(np.asarray(decode_image(samples[1].images[0])), np.asarray(PICTURES[1]))
    with pytest.raises(SampleError, match=r"cannot be read again: .* row group 0 has no row 4"):
        decode_image(samples[4].images[0])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "arrow", "tsv", "jsonl", "json"])
def test_images_are_never_in_memory_together(tmp_path, form, monkeypatch):
    """60 images of 500 kB each, 30 MB: reading the table and decoding all of it stays far below."""
    monkeypatch.setattr(columnar, "_PIECE_BYTES", 2_000_000)
    monkeypatch.setattr(columnar, "_KEPT_BYTES", 4_000_000)
    rng = np.random.default_rng(0)
    images = [ENCODED[i % 5] + rng.bytes(500_000) for i in range(60)]
    path = tmp_path / f"data.{form}"
    if form == "parquet":
        write_parquet(path, as_struct(images), row_group_size=10)
    elif form == "arrow":
        write_arrow(path, as_struct(images), rows_of_a_batch=10)
    else:
        write_text(path, [text(one) for one in images])
    del images
    gc.collect()
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    dataset = read_table(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    columnar.close_cached_files()
    arrow = pa.total_allocated_bytes() - before
    for sample in dataset.samples:
        decode_image(sample.images[0])
    _, decoding = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset.samples) == 60
    assert held < 500_000
    assert arrow < 500_000
    assert peak < 15_000_000
    assert decoding < 15_000_000


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="\\\"'")), min_size=1))
def test_a_list_that_python_or_json_wrote_is_read_as_written(texts):
    assert image_values(repr(texts)) == image_values(json.dumps(texts, ensure_ascii=False)) == texts


@pytest.mark.parametrize(
    "cell", ["[a].png", "[1]", "['a', b]", "[]", "['a'", "__import__('os')", "['a' + 'b']", '["a\\"]']
)
def test_text_that_only_looks_like_a_list_is_one_value(cell):
    assert image_values(cell) == [cell]


@given(st.text(max_size=80) | st.binary(max_size=80) | st.integers() | st.none())
def test_short_text_is_never_an_image_by_chance(value):
    if isinstance(value, bytes):
        assert embedded_bytes(value) == value
    elif isinstance(value, str) and "." in value[:60]:
        assert embedded_bytes(value) is None or value.startswith("data:")


def test_base64_of_every_format_is_recognised():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(PICTURES[0], kind)
        assert embedded_bytes(text(data)) == data
        assert embedded._BASE64_OF_IMAGE.match(text(data)), kind
    big_endian = io.BytesIO(b"MM\0*" + bytes(80)).getvalue()
    assert embedded_bytes(text(big_endian)) == big_endian
