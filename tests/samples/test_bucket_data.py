"""Tables and images in a bucket: read as from a folder, within the same bounds, against moto's S3 on loopback."""

import gzip
import io
import itertools
import json
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from midsight.buckets import connect
from midsight.buckets.path import BucketPath, to_place
from midsight.buckets.refusals import explained
from midsight.errors import MidsightError, RefusedError, SampleError, UnreachableError
from midsight.samples import columnar, missing, sources
from midsight.samples.images import decode_image, image_id, resolve_image_path, without_bucket
from midsight.samples.missing import find_missing
from midsight.samples.open import open_dataset
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import Dataset, read_table
from support.buckets import BUCKET, ENVIRONMENT, Door, serving_bucket
from support.forms import add_member, content
from support.made_tables import ENCODED, as_struct, text, write_arrow, write_parquet, write_text

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # moto warns of its own libraries
NUMBERS = itertools.count()
ROWS = "".join(
    json.dumps({"id": f"n{n}", "image": f"{n % 5}.png", "question": f"What is {n}?"}) + "\n" for n in range(9)
)


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Door]]:
    with serving_bucket() as (address, door):
        yield address, door


@pytest.fixture
def door(store: tuple[str, Door], monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    address, door = store
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(connect, "RETRIES", 1)
    connect.open_store.cache_clear()
    columnar.close_cached_files()
    door.fault = lambda _: None
    yield door
    door.fault = lambda _: None
    connect.open_store.cache_clear()
    columnar.close_cached_files()


@pytest.fixture
def bucket(door: Door) -> BucketPath:
    """A new folder in the bucket."""
    place = to_place(f"s3://{BUCKET}/data/{next(NUMBERS)}")
    assert isinstance(place, BucketPath)
    return place


def upload(folder: Path, bucket: BucketPath) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (bucket / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def tar_of(rows: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for n in rows:
            add_member(archive, f"{n:04}.png", ENCODED[n % 5])
            add_member(archive, f"{n:04}.json", json.dumps({"question": f"What is {n}?"}).encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every form that data have, with images beside them or inside."""
    folder = tmp_path_factory.mktemp("forms")
    for n, png in enumerate(ENCODED):
        (folder / f"{n}.png").write_bytes(png)
    (folder / "a.jsonl").write_text(ROWS)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(ROWS.encode()))
    (folder / "c.json").write_text(json.dumps({"info": 1, "data": [json.loads(row) for row in ROWS.splitlines()]}))
    write_text(folder / "d.csv", [f"{n}.png" for n in range(5)])
    write_text(folder / "e.tsv", [text(png) for png in ENCODED])
    write_text(folder / "f.jsonl", [text(png) for png in ENCODED])
    (folder / "g.jsonl.gz").write_bytes(gzip.compress((folder / "f.jsonl").read_bytes()))
    write_parquet(folder / "h.parquet", as_struct(list(ENCODED)))
    write_arrow(folder / "saved", as_struct(list(ENCODED)))
    table = pa.table({"image": pa.array(list(ENCODED)), "question": pa.array([f"What is {n}?" for n in range(5)])})
    pyarrow.feather.write_feather(table, str(folder / "i.feather"), compression="uncompressed")
    (folder / "j.tar").write_bytes(tar_of(range(12)))
    for split, number in itertools.product(("train", "test"), range(2)):
        (folder / "shards").mkdir(exist_ok=True)
        write_parquet(folder / "shards" / f"{split}-{number:05}-of-00002.parquet", as_struct(list(ENCODED)))
    (folder / "pictures" / "below").mkdir(parents=True)
    for name in ("a.png", ".hidden.png", "below/b.png", "note.txt"):
        (folder / "pictures" / name).write_bytes(ENCODED[0])
    return folder


FORMS = {
    "a.jsonl": {}, "b.jsonl.gz": {}, "c.json": {}, "d.csv": {}, "e.tsv": {}, "f.jsonl": {}, "g.jsonl.gz": {},
    "h.parquet": {}, "saved": {}, "i.feather": {}, "j.tar": {}, "shards": {"split": "test"},
    "shards/*-00000-of-*.parquet": {}, "**/train-*.parquet": {}, "[ab].json*": {}, "pictures": {"question": "What?"},
}  # fmt: skip


def opened(data: str, **options) -> Dataset:
    dataset = open_dataset(data, DatasetOptions(**options))
    assert isinstance(dataset, Dataset)
    return dataset


def test_every_form_gives_the_samples_and_pixels_of_the_same_files_in_a_folder(folder, bucket):
    upload(folder, bucket)
    for name, options in FORMS.items():
        here, there = opened(f"{folder}/{name}", **options), opened(f"{bucket}/{name}", **options)
        assert (there.rows, content(there), there.extras) == (here.rows, content(here), here.extras), name
        assert there.failures == here.failures == ()
        assert [note.replace(str(bucket), "") for note in there.notes] == [
            note.replace(str(folder), "") for note in here.notes
        ]
        for one, other in zip(here.samples, there.samples, strict=True):
            pixels = [[image_id(decode_image(image)) for image in sample.images] for sample in (one, other)]
            assert pixels[0] == pixels[1] != [], name
        assert there.sha256 == opened(f"{bucket}/{name}", **options).sha256, name
        assert str(there.path) == f"{bucket}/{name}"


def test_answers_of_another_address_are_joined(folder, bucket):
    (bucket / "answers.csv").write_bytes(b"key,answer\nn3,yes\n")
    options = {"images": folder, "answers_from": f"{bucket}/answers.csv", "on": "id=key"}
    dataset = opened(f"{folder}/a.jsonl", **options)
    assert [sample.sample_id for sample in dataset.samples if sample.reference_answers] == ["n3"]
    changed = opened(f"{folder}/a.jsonl", **options).sha256
    (bucket / "answers.csv").write_bytes(b"key,answer\nn4,yes\n")
    assert opened(f"{folder}/a.jsonl", **options).sha256 != changed


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.csv", "data.parquet", "data.tar"])
def test_a_large_table_comes_in_blocks_and_is_never_held_whole(bucket, door, name, monkeypatch):
    """With blocks of 64 kB in place of 8 MB; what is larger than 100 kB counts as large."""
    monkeypatch.setattr(sources, "LARGE_BYTES", 100_000)
    monkeypatch.setattr(sources, "ROWS_LOOKED_AT", 100)
    monkeypatch.setattr("midsight.buckets.blocks.FIRST_BLOCK", 4_096)
    monkeypatch.setattr("midsight.buckets.blocks.LARGEST_BLOCK", 65_536)
    monkeypatch.setattr(columnar, "LARGEST_BLOCK", 65_536)
    noise = Random(1).randbytes(400_000).hex()  # noqa: S311  (as noise)
    rows = [
        {"image": "0.png", "question": f"What is {n}?", "noise": noise[n * 200 : n * 200 + 200]} for n in range(4_000)
    ]
    buffer = io.BytesIO()
    if name == "data.parquet":
        pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=250)
    elif name == "data.tar":
        buffer.write(tar_of(range(200)))
    elif name == "data.csv":
        buffer.write(b"image,question,noise\n" + b"".join(",".join(r.values()).encode() + b"\n" for r in rows))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        buffer.write(gzip.compress(lines) if name.endswith("gz") else lines)
    (bucket / name).write_bytes(buffer.getvalue())
    size = len(buffer.getvalue())
    door.requests.clear()
    dataset = opened(f"{bucket}/{name}")
    assert dataset.rows in (200, 4_000)
    assert max(request.sent_bytes for request in door.requests) <= 65_536 < size
    assert door.sent_bytes() < {"data.tar": 5.0, "data.parquet": 1.5}.get(name, 2.0) * size + 2_200_000


def test_an_image_inside_a_table_is_one_request_of_its_row(bucket, door, folder):
    upload(folder, bucket)
    for name, most in (("f.jsonl", len(text(ENCODED[4])) + 200), ("j.tar", len(ENCODED[4]))):
        samples = opened(f"{bucket}/{name}").samples
        decode_image(samples[0].images[0])
        door.requests.clear()
        decode_image(samples[4].images[0])
        assert [request.method for request in door.requests] == ["GET"], name
        assert door.sent_bytes() <= most


def test_data_are_the_same_as_long_as_nobody_writes_them_again(bucket, door):
    table = bucket / "a.jsonl"
    table.write_bytes(ROWS.encode())
    first = opened(str(table)).sha256
    table.write_bytes(ROWS.encode().replace(b"What", b"When"))
    assert opened(str(table)).sha256 != first
    table.write_bytes(ROWS.encode())
    assert opened(str(table)).sha256 == first


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("a.png", "images/a.png"),
        ("./b/../a.png", "images/a.png"),
        ("../images/a.png", "images/a.png"),
        ("s3://shelf/images/a.png", "images/a.png"),
        ("what?#1 [x]*.png", "images/what?#1 [x]*.png"),
        ("..a.png", "images/..a.png"),
    ],
)
def test_a_name_below_the_root_is_an_object(reference, key):
    root = BucketPath("s3://shelf", "images")
    assert resolve_image_path(reference, root) == BucketPath("s3://shelf", key)


@pytest.mark.parametrize("reference", ["a.png", "b/../a.png", "s3://shelf/a.png"])
def test_a_whole_bucket_may_be_the_root(reference):
    assert resolve_image_path(reference, BucketPath("s3://shelf", "")) == BucketPath("s3://shelf", "a.png")


@pytest.mark.parametrize(
    "reference",
    [
        "../a.png", "b/../../a.png", "/a.png", "/images/a.png", "s3://shelf/other/a.png", "s3://shelf/images-2/a.png",
        "s3://shelf/images/../a.png", "s3://other/images/a.png", "gs://shelf/images/a.png", "..", ".", "a\nb.png",
        "a\0.png", "http://example.org/a.png", "file:///etc/passwd", " ", "x" * 1_100,
    ],
)  # fmt: skip
def test_any_other_name_is_refused_without_asking_the_store(reference):
    with pytest.raises(SampleError) as caught:
        resolve_image_path(reference, BucketPath("s3://shelf", "images"))
    assert reference.strip()[:20] in str(caught.value) or "\\" in str(caught.value) or "blank" in str(caught.value)


def test_an_address_in_a_local_table_needs_images_in_that_bucket(tmp_path):
    table = tmp_path / "a.jsonl"
    table.write_text('{"image": "s3://shelf/images/a.png", "question": "What?"}\n')
    for options in ({}, {"allow_urls": True}):
        failure = opened(str(table), **options).failures[0]
        assert "is in a bucket; name the folder there that holds all images with images" in failure.reason


def test_images_are_found_in_any_unicode_form_and_what_is_missing_is_said(bucket, folder):
    named = {form: unicodedata.normalize(form, "grün.png") for form in ("NFC", "NFD")}
    for form, name in named.items():
        (bucket / form / name).write_bytes(ENCODED[0])
        for other in named.values():
            assert decode_image(resolve_image_path(other, bucket / form)).size == (12, 9)
        assert find_missing([bucket / form / other for other in named.values()], bucket) is None
    with pytest.raises(SampleError, match=r"a%20b.png does not exist; its name has signs .* write %20 as a space\."):
        decode_image(bucket / "a%20b.png")
    absent = find_missing([bucket / "NFC" / named["NFC"], bucket / "x.png"], bucket)
    assert absent is not None
    assert "".join(map(str, absent.describe())) == f"1 of 2 image files is missing: {bucket}/x.png."


def test_of_many_objects_a_thousand_are_looked_for(bucket, door, monkeypatch):
    monkeypatch.setattr(missing, "MOST_OBJECTS", 10)
    door.requests.clear()
    absent = find_missing([bucket / f"{n}.png" for n in range(95)], bucket)
    assert absent is not None
    assert (absent.files, absent.checked <= 10, absent.missing == absent.checked) == (95, True, True)
    assert len(door.requests) == absent.checked


def test_a_large_object_is_refused(bucket, door):
    (bucket / "a.png").write_bytes(ENCODED[0])
    assert decode_image(bucket / "a.png", max_bytes=len(ENCODED[0])).size == (12, 9)
    with pytest.raises(SampleError, match="has more than 10 bytes; make it smaller"):
        decode_image(bucket / "a.png", max_bytes=10)
    (bucket / "empty.png").write_bytes(b"")
    with pytest.raises(SampleError, match=r"is empty \(0 bytes\)"):
        decode_image(bucket / "empty.png")


def test_a_network_that_fails_is_no_fault_of_the_sample(bucket, door):
    (bucket / "a.png").write_bytes(ENCODED[0])
    (bucket / "f.jsonl").write_bytes(json.dumps({"image": text(ENCODED[0]), "question": "What?"}).encode())
    inside = opened(f"{bucket}/f.jsonl").samples[0].images[0]
    for fault in ("500", "reset", "half"):
        door.fault = lambda _, fault=fault: fault
        for source in (bucket / "a.png", inside):
            with pytest.raises(UnreachableError, match=r"cannot be reached: .*run the same command again\.") as caught:
                decode_image(source)
            assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    door.fault = lambda _: None
    assert decode_image(inside).size == (12, 9)


def test_an_object_in_memory_needs_no_store(bucket, door):
    (bucket / "a.png").write_bytes(ENCODED[0])
    source = without_bucket(bucket / "a.png")
    door.fault = lambda _: "500"
    assert decode_image(source).size == (12, 9)
    assert source == bucket / "a.png"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("s3://shelf/none.jsonl", "s3://shelf/none.jsonl does not exist; give a table file."),
        ("s3://shelf/none/*.jsonl", "s3://shelf/none/*.jsonl matches no table file"),
        (
            "s3://elsewhere/a.jsonl",
            "s3://elsewhere/a.jsonl cannot be reached: NoSuchBucket: The specified bucket does ",
        ),
        ("s3://shelf/a//b.jsonl", "s3://shelf/a//b.jsonl is not an address in a bucket; write s3://BUCKET/FOLDER."),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(door, data, sentence):
    with pytest.raises(MidsightError) as caught:
        opened(data)
    assert str(caught.value).startswith(sentence)


def test_who_may_read_objects_need_not_be_allowed_to_list_them(bucket, door, folder):
    upload(folder, bucket)
    door.fault = lambda asked: "403" if asked.key == "?list" else None
    dataset = opened(f"{bucket}/a.jsonl", images=str(bucket))
    assert decode_image(dataset.samples[1].images[0]).size == (16, 9)
    with pytest.raises(RefusedError, match="denies access to it; see to what your credentials may do there"):
        opened(f"{bucket}/shards", split="test")


def test_a_bucket_in_another_region_is_said_with_the_variable_that_helps():
    malformed = "<Code>AuthorizationHeaderMalformed</Code><Message>the region us-east-1 is wrong</Message>"
    for said in (
        malformed,
        "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
    ):
        sentence = str(explained(RuntimeError(said), "s3://shelf/a.png"))
        assert "and your credentials, set AWS_REGION to the region of the bucket, and run the same" in sentence


def test_images_must_be_a_folder_of_the_bucket(bucket, folder):
    upload(folder, bucket)
    dataset = opened(f"{folder}/a.jsonl", images=f"{bucket}/")
    assert dataset.options["images"] == str(bucket)
    assert decode_image(dataset.samples[1].images[0]).size == (16, 9)
    assert opened(f"{bucket}/a.jsonl", images=str(bucket)).options["images"] is None
    with pytest.raises(MidsightError, match=r"a\.jsonl is not a folder; name the folder of the images with images"):
        opened(f"{bucket}/a.jsonl", images=f"{bucket}/a.jsonl")


def test_the_beginning_of_a_large_table_decides_in_a_bucket_too(bucket, door, monkeypatch):
    monkeypatch.setattr(sources, "LARGE_BYTES", 1)
    (bucket / "a.csv").write_bytes(b"picture,text\n0.png,What?\n")
    with pytest.raises(MidsightError, match="has no column 'question'"):
        read_table(f"{bucket}/a.csv", DatasetOptions(image_column="picture", question_column="question"))
