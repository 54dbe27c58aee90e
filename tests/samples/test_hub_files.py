"""Files and folders of a repository of the hub as data and images, downloaded by name; against a stub on loopback."""

import json

import pytest

from midsight.errors import MidsightError
from midsight.samples.images import decode_image
from midsight.samples.open import open_dataset
from midsight.samples.options import DatasetOptions
from midsight.samples.places import find_place, is_hub_file
from midsight.samples.streams import HubDataset
from midsight.samples.tables import Dataset
from support.hub_stub import HubStub, connected_hub
from support.made_tables import ENCODED


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with connected_hub(tmp_path, monkeypatch) as hub:
        files = {f"data/{n}.jsonl": json.dumps({"image": f"{n}.png", "question": "What?"}).encode() for n in range(3)}
        pictures = {f"images/{n}.png": png for n, png in enumerate(ENCODED)}
        hub.add("me/set", {**files, **pictures, "other/large.bin": b"x"}, "main")
        hub.add("me/set", {"data/0.jsonl": b'{"image": "0.png", "question": "Earlier?"}'}, "refs/convert/parquet", "v1")
        yield hub


def opened(data: str, **options) -> Dataset:
    dataset = open_dataset(data, DatasetOptions(**options))
    assert isinstance(dataset, Dataset)
    return dataset


def test_a_pattern_and_a_folder_of_images_are_downloaded_and_nothing_else(hub: HubStub):
    dataset = opened("hf://datasets/me/set/data/*.jsonl", images="hf://datasets/me/set/images/")
    assert [decode_image(sample.images[0]).width for sample in dataset.samples] == [12, 16, 20]
    assert {file.partition("/")[0] for file in hub.files("GET")} == {"data", "images"}
    downloaded = len(hub.files("GET"))
    assert opened("hf://datasets/me/set/data", images="hf://datasets/me/set/images").sha256 == dataset.sha256
    assert len(hub.files("GET")) == downloaded


@pytest.mark.parametrize("revision", ["v1", "refs/convert/parquet"])
def test_a_revision_is_that_of_the_name(hub: HubStub, revision):
    dataset = opened(f"hf://datasets/me/set@{revision}/data/0.jsonl")
    assert dataset.samples[0].question == "Earlier?"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("hf://datasets/me/set/none.jsonl", "none.jsonl does not exist; give a table file."),
        ("hf://datasets/me/none/a.jsonl", "hf://datasets/me/none/a.jsonl cannot be downloaded: .*; check the name, "),
        ("hf://datasets/me/set@v9/data/0.jsonl", "hf://datasets/me/set@v9/data/0.jsonl cannot be downloaded: "),
        ("hf://datasets/me/set/../x.jsonl", "is not an address on the hub; leave out empty parts and dots."),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(hub: HubStub, address, sentence):
    with pytest.raises(MidsightError, match=sentence):
        opened(address)


def test_a_name_without_a_file_is_a_stream_and_no_folder_of_images():
    assert not is_hub_file("hf://datasets/me/set")
    assert not is_hub_file("hf://me/set/config")
    assert HubDataset.parse("hf://datasets/me/set@v1") == HubDataset.parse("hf://me/set@v1")
    with pytest.raises(MidsightError, match="names no file or folder; write hf://datasets/OWNER/NAME"):
        find_place("hf://me/set")
