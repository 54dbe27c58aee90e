"""Files that people really have, and that were refused or read wrongly before: the right value of each."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from midsight.samples.images import decode_image
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import make_sample_id
from midsight.samples.tables import read_table
from support.prompting import prompts, read_good

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
IMAGES = CASES / "img"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the shared inputs are not beside this checkout")


def assert_shows(image, name):
    assert np.array_equal(np.asarray(decode_image(image)), np.asarray(Image.open(IMAGES / name).convert("RGB")))


def test_popes_own_file_is_json_lines():
    dataset = read_good(CASES / "pope_official_jsonlines.json", images=IMAGES)
    assert [sample.sample_id for sample in dataset.samples] == ["1", "2", "3", "4"]
    assert [sample.reference_answers for sample in dataset.samples] == [("yes",), ("no",)] * 2
    assert prompts(dataset) == [f"#Is there a dog {n} in the image?" for n in range(4)]
    assert_shows(dataset.samples[3].images[0], "COCO_val2014_000000000042.jpg")


def test_placeholders_in_plain_questions_become_images():
    dataset = read_good(CASES / "plain_question_with_image_placeholder.jsonl", images=IMAGES)
    assert prompts(dataset) == ["#What is it?"] * 3 + ["# and #: which is red?"]
    assert [sample.sample_id for sample in dataset.samples] == ["with", "without", "phi", "numbered"]
    assert [len(sample.images) for sample in dataset.samples] == [1, 1, 1, 2]
    assert_shows(dataset.samples[3].images[0], "a.png")
    assert_shows(dataset.samples[3].images[1], "b.png")


def test_vlmevalkits_choices_are_rendered_as_it_renders_them():
    """`None` is a choice, and an empty cell is none."""
    dataset = read_good(CASES / "vlmevalkit_mcq.tsv")
    assert [sample.sample_id for sample in dataset.samples] == ["10", "1000010"]
    assert dataset.samples[0].images == dataset.samples[1].images
    cell = (CASES / "vlmevalkit_mcq.tsv").read_text().splitlines()[1].split("\t")[1]
    own = Image.open(io.BytesIO(base64.b64decode(cell))).convert("RGB")
    assert np.array_equal(np.asarray(decode_image(dataset.samples[0].images[0])), np.asarray(own))
    ending = "Please select the correct answer from the options above. \n"
    assert prompts(dataset, "mcq") == [
        f"#Question: Which one?\nOptions:\nA. dog\nB. None\n{ending}",
        f"#Hint: look\nQuestion: Which one?\nSecond line\nOptions:\nA. cat\nB. None\nC. x\n{ending}",
    ]


def test_mmmus_image_columns_are_the_images_in_order():
    dataset = read_good(CASES / "mmmu.parquet")
    (sample,) = dataset.samples
    assert (sample.sample_id, sample.reference_answers) == ("validation_Math_1", ("A",))
    assert len(sample.images) == 2
    for image in sample.images:
        assert_shows(image, "a.png")
    assert prompts(dataset, "mcq") == [
        "Question: # and #?\nOptions:\nA. a\nB. b\nPlease select the correct answer from the options above. \n"
    ]


def test_an_id_that_pandas_made_a_float_is_the_number():
    dataset = read_good(CASES / "pandas_id_became_float.parquet")
    own = make_sample_id(2, "img/a.png", "s")
    assert [sample.sample_id for sample in dataset.samples] == ["1", "2", own]
    assert prompts(dataset) == ["#q", "#r", "#s"]
    assert_shows(dataset.samples[0].images[0], "a.png")


def test_a_guessed_id_that_repeats_is_an_extra():
    dataset = read_good(CASES / "llava_mme_question_id_is_image.jsonl", images=IMAGES)
    assert len({sample.sample_id for sample in dataset.samples}) == 2
    assert {sample.extras["question_id"] for sample in dataset.samples} == {"a.jpg"}
    assert "'a.jpg' twice, in line 1 and line 2" in dataset.notes[0]
    asked = [f"#Is it {colour}? Please answer yes or no." for colour in ("red", "blue")]
    assert prompts(dataset) == asked
    assert_shows(dataset.samples[1].images[0], "a.jpg")


def test_haloquests_columns_are_found_and_said():
    dataset = read_good(CASES / "haloquest_eval.csv", images=IMAGES)
    assert prompts(dataset) == ["#What colour is the hat, the one on the left?", "#How many?"]
    assert_shows(dataset.samples[1].images[0], "b.png")
    assert [sample.reference_answers for sample in dataset.samples] == [("There is no hat; No hat",), ("Two",)]
    assert dataset.samples[0].extras["hallucination type"] == "false premises"
    assert dataset.notes[0] == "The column 'image_name' is taken as the image."


def test_every_kind_of_base64_is_its_image():
    dataset = read_table(CASES / "base64_kinds.jsonl", DatasetOptions(images=IMAGES))
    decoded = {sample.sample_id: decode_image(sample.images[0]) for sample in dataset.samples}
    pixels = {name: np.asarray(image) for name, image in decoded.items()}
    same = ("data_uri", "wrapped76", "urlsafe", "octet", "data_no_mime", "charset", "b_prefixed")
    assert all(np.array_equal(pixels[name], pixels["plain"]) for name in same)
    assert {name: image.size for name, image in decoded.items() if name not in (*same, "plain")} == {
        "data_uri_jpg": (64, 48), "no_padding": (64, 48), "avif": (120, 80),
    }  # fmt: skip
    (failure,) = dataset.failures
    assert failure.sample_id != ""
    assert failure.reason.endswith(
        "line 10: the image is bytes as Python prints them, and cut off; write the bytes themselves, or base64."
    )


def test_a_name_with_a_quote_is_a_name(tmp_path):
    (tmp_path / "a.csv").write_text("image,question\nit's.png,What?\n")
    (sample,) = read_good(tmp_path / "a.csv", images=IMAGES).samples
    assert isinstance(sample.images[0], Path)
    assert decode_image(sample.images[0]).size == Image.open(io.BytesIO((IMAGES / "it's.png").read_bytes())).size
