"""Streams of Hugging Face datasets, and their look-ahead; the rows are local, without any network."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from midsight.errors import MidsightError
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import Failure, Sample
from midsight.samples.streams import HubDataset, SampleStream, grouped, open_hub, stream_rows
from support.hub_rows import ENCODED, image_rows, iterable, stand_in


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="the extra `datasets` is not installed")


def samples_of(stream: SampleStream) -> list[Sample]:
    """The rows of a stream, all of which must be samples."""
    rows = list(stream.rows())
    samples = [row for row in rows if isinstance(row, Sample)]
    assert samples == rows
    return samples


def test_the_rows_of_a_stream_become_samples_with_their_encoded_images(datasets):
    order = [0, 1, 0, 2]
    stream = stream_rows(iterable(datasets, image_rows(order)), "hf://a/b", "digest")
    for _ in range(2):
        samples = samples_of(stream)
        assert [sample.images for sample in samples] == [(ENCODED[i],) for i in order]
        assert [sample.question for sample in samples] == [f"What is {n}?" for n in range(4)]
        assert samples[0].image == samples[2].image != samples[1].image
        assert [dict(sample.extras) for sample in samples] == [{"n": n} for n in range(4)]
    assert (stream.extras, stream.sha256) == ({"n": "int64"}, "digest")


def test_columns_of_a_stream_are_chosen_by_options_and_other_images_are_not_read(datasets):
    rows = [{**row, "q": "Why?", "key": f"k/{n}\n"} for n, row in enumerate(image_rows([0, 1]))]
    source = iterable(datasets, rows).cast_column("image", datasets.Image())
    stream = stream_rows(source, "hf://a/b", "", DatasetOptions(question_column="q", id_column="key"))
    samples = samples_of(stream)
    assert [(s.sample_id, s.question) for s in samples] == [("k/0\n", "Why?"), ("k/1\n", "Why?")]
    with pytest.raises(MidsightError, match="hf://a/b has no column 'frage'; it has 'image'"):
        stream_rows(source, "hf://a/b", "", DatasetOptions(question_column="frage"))


def test_an_image_that_a_stream_only_names_is_read_from_the_images_folder_alone(datasets, tmp_path):
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    rows = [{"image": {"bytes": None, "path": path}, "question": "?"} for path in ("a.png", "/etc/passwd")]
    source = iterable(datasets, rows)
    for row in stream_rows(source, "hf://a/b", "").rows():
        assert isinstance(row, Failure)
        assert "is not in the stream; name its folder with the option images, or stream" in row.reason
        assert row.reason.startswith("hf://a/b, row ")
    found, outside = stream_rows(source, "hf://a/b", "", DatasetOptions(images=tmp_path)).rows()
    assert isinstance(found, Sample)
    assert found.images == ((tmp_path / "a.png").resolve(),)
    assert isinstance(outside, Failure)


def test_a_stream_is_read_no_further_than_it_is_asked(datasets):
    taken: list[int] = []

    def rows() -> Iterator[dict]:
        for n in range(1_000_000):
            taken.append(n)
            yield {"image": {"bytes": ENCODED[n % 3], "path": None}, "question": "?"}

    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    source = datasets.IterableDataset.from_generator(rows, features=features)
    arriving = stream_rows(source, "hf://a/b", "").rows()
    samples = grouped((item for item in arriving if isinstance(item, Sample)), look_ahead=30)
    first = [sample for sample in itertools.islice(samples, 5) if isinstance(sample, Sample)]
    assert len(first) == 5
    assert {id(sample.images[0]) for sample in first} == {id(first[0].images[0])}
    assert np.asarray(Image.open(io.BytesIO(first[0].images[0]))).shape == (9, 12, 3)  # pyright: ignore
    assert len(taken) <= 40


def test_a_bad_row_of_a_stream_fails_alone_and_an_id_that_repeats_stops_it(datasets):
    rows = image_rows([0, 1, 2])
    rows[1]["question"] = " "
    good, bad, also = stream_rows(iterable(datasets, rows), "hf://a/b", "").rows()
    assert isinstance(bad, Failure)
    assert "row 2: the question is empty" in bad.reason
    assert isinstance(good, Sample)
    assert isinstance(also, Sample)
    repeated = stream_rows(iterable(datasets, image_rows([0, 1])), "hf://a/b", "", DatasetOptions(id_column="question"))
    assert len(list(repeated.rows())) == 2
    same = [{**row, "id": "x"} for row in image_rows([0, 1])]
    with pytest.raises(MidsightError, match="has the id 'x' twice, the second time in row 2"):
        list(stream_rows(iterable(datasets, same), "hf://a/b", "", DatasetOptions(id_column="id")).rows())


@pytest.fixture
def hub(datasets, monkeypatch):
    return stand_in(datasets, iterable(datasets, image_rows([0, 1])), monkeypatch)


def test_a_name_is_streamed_at_the_commit_that_its_revision_names(hub):
    stream = open_hub("hf://owner/name/config@refs/convert/parquet", DatasetOptions(split="test"))
    assert len(list(stream.rows())) == 2
    options = {"split": "test", "revision": "c0ffee", "streaming": True}
    assert hub.asked == [("owner/name", "refs/convert/parquet"), ("owner/name", "config", options)]
    assert (
        stream.sha256 != open_hub("hf://owner/name/config@refs/convert/parquet", DatasetOptions(split="train")).sha256
    )


def test_a_single_split_is_used_and_several_are_refused(hub):
    one = hub.source
    hub.source = {"test": one}
    assert len(list(open_hub("hf://owner/name").rows())) == 2
    hub.source = {"test": one, "train": one}
    with pytest.raises(MidsightError, match="has the splits test, train; choose one with split"):
        open_hub("hf://owner/name")


def test_an_error_of_the_hub_is_one_sentence(hub, monkeypatch):
    monkeypatch.setattr(hub, "dataset_info", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("gone\nfishing.")))
    with pytest.raises(MidsightError, match=r"^hf://owner/name cannot be opened: gone fishing\.$"):
        open_hub("hf://owner/name")


def test_failures_pass_the_look_ahead_at_once_unless_samples_came_before_them():
    """So a run that begins with failures stops early, and one that begins with a good sample does not stop."""
    taken: list[str] = []

    def source() -> Iterator[Sample | Failure]:
        for n, kind in enumerate(["bad", "a", "bad", "a", "b"]):
            taken.append(f"{kind}{n}")
            yield Failure(taken[-1], n, "because") if kind == "bad" else Sample(taken[-1], n, (b"",), "?", image=kind)

    rows = grouped(source())
    assert (next(rows).sample_id, taken) == ("bad0", ["bad0"])
    assert [row.sample_id for row in rows] == ["a1", "a3", "bad2", "b4"]
    assert [row.sample_id for row in grouped(source(), look_ahead=2)] == ["bad0", "a1", "bad2", "a3", "b4"]


def test_extra_columns_of_a_stream_have_the_types_of_its_schema(datasets):
    rows = [{**row, "text": "a", "share": 0.5, "sure": True, "box": [1, 2], "huge": 1} for row in image_rows([0])]
    source = iterable(datasets, rows).cast_column("huge", datasets.Value("uint64"))
    assert dict(stream_rows(source, "hf://a/b", "").extras) == {
        "n": "int64", "text": "string", "share": "float64", "sure": "bool", "box": "json", "huge": "json",
    }  # fmt: skip


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MidsightError, match=r"^hf:// needs the package datasets; .*'midsight\[datasets\]'\.$"):
        open_hub("hf://owner/name")


def test_the_names_of_hub_datasets():
    assert HubDataset.parse("hf://o/n") == HubDataset("o/n", None, None)
    assert HubDataset.parse("hf://o/n.x/c-1@v1") == HubDataset("o/n.x", "c-1", "v1")
    assert HubDataset.parse("hf://o/n@refs/pr/1") == HubDataset("o/n", None, "refs/pr/1")
    for name in ("hf://n", "hf://", "hf:/o/n", "hf://o/n/c/d", "hf://o/n@", "hf://o/n c", "https://o/n"):
        with pytest.raises(MidsightError, match=r"write hf://owner/name\[/config\]\[@revision\]"):
            HubDataset.parse(name)


@example(images=[0, 0, 0, 1, 2, 1], look_ahead=3, max_images=None)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 12) | st.just(70), st.none() | st.integers(1, 30))
def test_grouping_keeps_all_samples_within_its_look_ahead(images, look_ahead, max_images):
    samples = [Sample(str(n), n, (b"%010d" % image,), "?", image=f"i{image}") for n, image in enumerate(images)]
    taken = 0

    def source() -> Iterator[Sample]:
        nonlocal taken
        for sample in samples:
            taken += 1
            yield sample

    max_bytes = 10_000 if max_images is None else 10 * max_images
    out: list[Sample] = []
    for sample in grouped(source(), look_ahead, max_bytes):
        assert isinstance(sample, Sample)
        out.append(sample)
        assert taken - len(out) < look_ahead, "more is held than the look-ahead"
    assert sorted(int(sample.sample_id) for sample in out) == list(range(len(samples)))
    if max_images is not None:
        return
    for _, group in itertools.groupby(out, key=lambda sample: sample.images[0]):
        together = [sample.input_index for sample in group]
        near = range(together[0], min(together[0] + look_ahead, len(images)))
        assert {n for n in near if images[n] == images[together[0]]} <= set(together)
    if look_ahead > len(images):
        order = sorted(range(len(images)), key=lambda n: (images.index(images[n]), n))
        assert [int(sample.sample_id) for sample in out] == order


def test_the_look_ahead_is_bounded_in_bytes():
    samples = [Sample(str(n), n, (bytes(100),), "?", image=str(n)) for n in range(10)]
    taken = iter(samples)
    groups = grouped(taken, 1000, 350)
    assert next(groups).sample_id == "0"
    assert next(taken).sample_id == "4"
    with pytest.raises(MidsightError, match="The look-ahead is 0"):
        next(grouped([], 0))


def test_a_dataset_saved_by_datasets_is_read_without_that_package(datasets, tmp_path, monkeypatch):
    """The files that the tests write by hand are like those that `datasets` writes."""
    from midsight.samples.tables import read_table

    built = datasets.Dataset.from_list(image_rows([0, 1, 0])).cast_column("image", datasets.Image())
    built.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(test=built, train=built.select([1])).save_to_disk(str(tmp_path / "both"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    one = read_table(tmp_path / "one")
    test = read_table(tmp_path / "both", DatasetOptions(split="test"))
    assert [s.image for s in one.samples] == [s.image for s in test.samples]
    assert one.samples[0].images == one.samples[2].images
    assert read_table(tmp_path / "both", DatasetOptions(split="train")).rows == 1
    assert one.extras == {"n": "int64"}
    assert Path(str(one.path)) == tmp_path / "one"
