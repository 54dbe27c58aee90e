"""The usual benchmarks as their authors publish them: from the file to the rendered prompt, with one call each.

Files are made by support/benchmark_files.py, in the shapes of the published ones; docs/datasets.md has the same calls
as commands, which test_commands_of_datasets.py runs.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from midsight.samples.images import decode_image
from support import benchmark_files as benchmarks
from support.benchmark_files import PROMPTS
from support.made_tables import ENCODED, PICTURES
from support.prompting import prompts, read_good


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture."""
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "1.jpg").write_bytes(ENCODED[0])
    return tmp_path


def shown(dataset):
    """Number of the picture of each image of each sample."""
    arrays = [np.asarray(one) for one in PICTURES]
    decoded = [[np.asarray(decode_image(image)) for image in sample.images] for sample in dataset.samples]
    return [[next(i for i, a in enumerate(arrays) if np.array_equal(a, image)) for image in row] for row in decoded]


def facts(dataset):
    """Id and reference answers of each sample."""
    return [(sample.sample_id, sample.reference_answers) for sample in dataset.samples]


def test_pope(folder):
    benchmarks.pope(folder)
    dataset = read_good(folder / "coco_pope_random.json", images=folder / "val2014")
    assert prompts(dataset) == PROMPTS[benchmarks.pope]
    assert (facts(dataset), shown(dataset)) == ([("1", ("yes",)), ("2", ("yes",))], [[0], [0]])


def test_mme(folder):
    benchmarks.mme(folder)
    dataset = read_good(folder / "test-00000-of-00001.parquet")
    assert prompts(dataset) == PROMPTS[benchmarks.mme]
    assert shown(dataset) == [[1], [1]]
    assert [sample.extras["question_id"] for sample in dataset.samples] == ["color/1.png"] * 2


def test_amber(folder):
    benchmarks.amber(folder)
    dataset = read_good(
        folder / "query_all.json", images=folder / "image", answers_from=folder / "annotations.json", on="id"
    )
    assert prompts(dataset) == PROMPTS[benchmarks.amber]
    assert facts(dataset) == [("1", ("sky", "beach")), ("1005", ("yes",))]
    assert dataset.samples[1].extras["type"] == "discriminative-attribute-state"


def test_hallusionbench(folder):
    benchmarks.hallusionbench(folder)
    dataset = read_good(folder / "HallusionBench.json", images=folder / "hallusion_bench")
    assert prompts(dataset) == PROMPTS[benchmarks.hallusionbench]
    assert [sample.reference_answers for sample in dataset.samples] == [("1",)] * 2
    assert shown(dataset) == [[0], [0]]


def test_haloquest(folder):
    benchmarks.haloquest(folder)
    dataset = read_good(folder / "haloquest-eval.csv", images=folder / "images")
    assert prompts(dataset) == PROMPTS[benchmarks.haloquest]
    assert dataset.samples[0].reference_answers == ("Two",)


def test_mmmu(folder):
    benchmarks.mmmu(folder)
    dataset = read_good(folder / "validation-00000-of-00001.parquet")
    assert prompts(dataset, "mcq") == PROMPTS[benchmarks.mmmu]
    assert shown(dataset) == [[1], [1, 2]]
    assert facts(dataset) == [("validation_Art_1", ("A",)), ("validation_Art_2", ("B",))]


def test_mathvista(folder):
    benchmarks.mathvista(folder)
    dataset = read_good(
        folder / "testmini-00000-of-00001.parquet",
        image_column="decoded_image",
        question_column="query",
        id_column="pid",
    )
    assert prompts(dataset) == PROMPTS[benchmarks.mathvista]
    assert (facts(dataset), shown(dataset)) == ([("1", ("2",))], [[3]])


def test_scienceqa(folder):
    benchmarks.scienceqa(folder)
    dataset = read_good(folder / "test-00000-of-00001.parquet")
    assert prompts(dataset, "mcq") == PROMPTS[benchmarks.scienceqa]
    assert [sample.reference_answers for sample in dataset.samples] == [("0",), ("1",)]
    assert shown(dataset) == [[2], [1]]


def test_textvqa(folder):
    benchmarks.textvqa(folder)
    dataset = read_good(
        folder / "TextVQA_0.5.1_val.json",
        images=folder / "train_images", image_column="{image_id}.jpg", id_column="question_id",
    )  # fmt: skip
    assert prompts(dataset) == PROMPTS[benchmarks.textvqa]
    assert facts(dataset) == [("34602", ("nokia",) * 9 + ("toshiba",))]
    assert shown(dataset) == [[0]]


def test_vqav2(folder):
    benchmarks.vqav2(folder)
    dataset = read_good(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        images=folder / "val2014", image_column="COCO_val2014_{image_id:012}.jpg", id_column="question_id",
        answers_from=folder / "v2_mscoco_val2014_annotations.json", on="question_id",
    )  # fmt: skip
    assert prompts(dataset, "{question} Use one word.") == ["#What color? Use one word."]
    assert facts(dataset) == [("42000", ("red",) * 10)]
    assert dataset.samples[0].extras["answer_type"] == "other"
    assert shown(dataset) == [[0]]


def test_gqa(folder):
    benchmarks.gqa(folder)
    dataset = read_good(
        folder / "testdev_balanced_questions.json", images=folder / "images", image_column="{imageId}.jpg"
    )
    assert prompts(dataset) == PROMPTS[benchmarks.gqa]
    assert facts(dataset) == [("201307251", ("no",)), ("201640614", ("no",))]
    assert shown(dataset) == [[0], [0]]


def test_llava_mix(folder):
    benchmarks.llava_mix(folder)
    dataset = read_good(folder / "llava_v1_5_mix665k.json", images=folder / "data")
    assert prompts(dataset) == PROMPTS[benchmarks.llava_mix]
    assert [sample.reference_answers for sample in dataset.samples] == [("A dog.",), ("Two.",)]


@pytest.mark.parametrize("inline", [True, False])
def test_openai_messages(folder, inline):
    """Images inside the messages, or marked there and named in a column; system turns are not asked."""
    image = {"type": "image_url", "image_url": {"url": "1.jpg"}} if inline else {"type": "image"}
    content = [{"type": "text", "text": "Look: "}, image, {"type": "text", "text": " What is it?"}]
    row = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content},
                        {"role": "assistant", "content": "A dog."}]}  # fmt: skip
    (folder / "a.jsonl").write_text(json.dumps(row if inline else {**row, "images": ["1.jpg"]}))
    dataset = read_good(folder / "a.jsonl", images=folder / "img")
    assert prompts(dataset) == ["Look: # What is it?"]
    assert (dataset.samples[0].reference_answers, shown(dataset)) == (("A dog.",), [[0]])
    assert ("messages" in dataset.extras) is not inline
    note = "In 1 of the conversations, the system turn is left out; the option system gives all prompts the same one."
    assert note in dataset.notes


def test_messages_may_be_in_the_column_of_the_question(folder):
    """As in TRL's data for preferences."""
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    row = {"images": ["1.jpg"], "prompt": [{"role": "user", "content": content}], "chosen": "A dog."}
    (folder / "a.jsonl").write_text(json.dumps(row))
    assert prompts(read_good(folder / "a.jsonl", images=folder / "img")) == ["#What is it?"]


def test_sharegpt_in_other_spellings(folder):
    turns = [{"from": "System", "value": "Be brief."}, {"from": "Human", "value": "[IMG]\nWhat is it?"},
             {"from": "GPT", "value": "A dog."}]  # fmt: skip
    (folder / "a.json").write_text(json.dumps([{"image": "1.jpg", "conversation": turns}]))
    dataset = read_good(folder / "a.json", images=folder / "img")
    assert (prompts(dataset), dataset.samples[0].reference_answers) == (["#What is it?"], ("A dog.",))
