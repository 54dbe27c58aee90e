"""The usual benchmarks as their authors publish them: from the file to the rendered prompt, with one call each.

Files are made here, in the shapes of the published ones; docs/datasets.md has the same calls as commands.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from midsight.samples.images import decode_image
from support.made_tables import ENCODED, PICTURES, STRUCT
from support.prompting import prompts, read_good

ENDING = "Please select the correct answer from the options above. \n"


@pytest.fixture
def folder(tmp_path):
    """A folder with the pictures under the names that benchmarks give to theirs."""
    for name in ("COCO_val2014_000000000042.jpg", "AMBER_1.jpg", "1.jpg", "2405722.jpg", "0a1b.jpg", "0_1.png"):
        (tmp_path / "img").mkdir(exist_ok=True)
        (tmp_path / "img" / name).write_bytes(ENCODED[0])
    return tmp_path


def shown(dataset):
    """Number of the picture of each image of each sample."""
    arrays = [np.asarray(one) for one in PICTURES]
    decoded = [[np.asarray(decode_image(image)) for image in sample.images] for sample in dataset.samples]
    return [[next(i for i, a in enumerate(arrays) if np.array_equal(a, image)) for image in row] for row in decoded]


def facts(dataset):
    """Id and reference answers of each sample."""
    return [(sample.sample_id, sample.reference_answers) for sample in dataset.samples]


def as_images(*numbers):
    return pa.array([None if n is None else {"bytes": ENCODED[n], "path": None} for n in numbers], STRUCT)


def test_pope(folder):
    rows = [{"question_id": i, "image": "COCO_val2014_000000000042.jpg", "text": f"Is there {i}?", "label": "yes"}
            for i in (1, 2)]  # fmt: skip
    (folder / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    dataset = read_good(folder / "coco_pope_random.json", images=folder / "img")
    assert prompts(dataset) == ["#Is there 1?", "#Is there 2?"]
    assert (facts(dataset), shown(dataset)) == ([("1", ("yes",)), ("2", ("yes",))], [[0], [0]])


def test_mme(folder):
    question = "Is it red? Please answer yes or no."
    table = {"question_id": ["color/1.png"] * 2, "image": as_images(1, 1), "question": [question] * 2,
             "answer": ["Yes", "No"], "category": ["color"] * 2}  # fmt: skip
    pq.write_table(pa.table(table), folder / "test-00000-of-00001.parquet")
    dataset = read_good(folder / "test-00000-of-00001.parquet")
    assert prompts(dataset) == [f"#{question}"] * 2
    assert shown(dataset) == [[1], [1]]
    assert [sample.extras["question_id"] for sample in dataset.samples] == ["color/1.png"] * 2


def test_amber(folder):
    asked = [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
             {"id": 1005, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"}]  # fmt: skip
    truths = [{"id": 1, "type": "generative", "truth": ["sky", "beach"], "hallu": ["sun"]},
              {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"}]  # fmt: skip
    (folder / "query_all.json").write_text(json.dumps(asked, indent=4))
    (folder / "annotations.json").write_text(json.dumps(truths, indent=4))
    dataset = read_good(
        folder / "query_all.json", images=folder / "img", answers_from=folder / "annotations.json", on="id"
    )
    assert prompts(dataset) == ["#Describe this image.", "#Is the sky sunny in this image?"]
    assert facts(dataset) == [("1", ("sky", "beach")), ("1005", ("yes",))]
    assert dataset.samples[1].extras["type"] == "discriminative-attribute-state"


def test_hallusionbench(folder):
    row = {
        "category": "VS",
        "subcategory": "chart",
        "visual_input": "1",
        "set_id": "0",
        "figure_id": "1",
        "question_id": "0",
        "question": "Is China's value the highest?",
        "gt_answer": "1",
        "filename": "./0_1.png",
    }
    (folder / "HallusionBench.json").write_text(json.dumps([row, {**row, "figure_id": "2"}]))
    dataset = read_good(folder / "HallusionBench.json", images=folder / "img")
    assert prompts(dataset) == ["#Is China's value the highest?"] * 2
    assert [sample.reference_answers for sample in dataset.samples] == [("1",)] * 2
    assert shown(dataset) == [[0], [0]]


def test_haloquest(folder):
    header = ",image_name,url,image type,hallucination type,question,groundtruth responses,split"
    (folder / "eval.csv").write_text(f'{header}\n0,1.jpg,https://x.invalid/1,real,vqa,"How many, say?",Two,eval\n')
    dataset = read_good(folder / "eval.csv", images=folder / "img")
    assert prompts(dataset) == ["#How many, say?"]
    assert dataset.samples[0].reference_answers == ("Two",)


def test_mmmu(folder):
    table = {"id": ["validation_Art_1", "validation_Art_2"], "question": ["<image 1> Who?", "Which of <image 1>?"],
             "options": ["['A. Dürer', 'B. Goya']", "['<image 2>', 'none']"], "answer": ["A", "B"],
             **{f"image_{n}": as_images(n, n if n < 3 else None) for n in (1, 2)},
             **{f"image_{n}": pa.nulls(2) for n in range(3, 8)}}  # fmt: skip
    table["image_2"] = as_images(None, 2)
    pq.write_table(pa.table(table), folder / "validation-00000-of-00001.parquet")
    dataset = read_good(folder / "validation-00000-of-00001.parquet")
    assert prompts(dataset, "mcq") == [
        f"Question: # Who?\nOptions:\nA. A. Dürer\nB. B. Goya\n{ENDING}",
        f"Question: Which of #?\nOptions:\nA. #\nB. none\n{ENDING}",
    ]
    assert shown(dataset) == [[1], [1, 2]]
    assert facts(dataset) == [("validation_Art_1", ("A",)), ("validation_Art_2", ("B",))]


def test_mathvista(folder):
    table = {"pid": ["1"], "question": ["How long?"], "image": ["images/1.jpg"], "decoded_image": as_images(3),
             "choices": pa.array([["2", "3"]], pa.list_(pa.string())), "precision": [1.0], "answer": ["2"],
             "metadata": [{"split": "testmini", "grade": 1}],
             "query": ["Hint: Give a number.\nQuestion: How long?\nChoices:\n(A) 2\n(B) 3"]}  # fmt: skip
    pq.write_table(pa.table(table), folder / "testmini-00000-of-00001.parquet")
    dataset = read_good(
        folder / "testmini-00000-of-00001.parquet",
        image_column="decoded_image",
        question_column="query",
        id_column="pid",
    )
    assert prompts(dataset) == ["#Hint: Give a number.\nQuestion: How long?\nChoices:\n(A) 2\n(B) 3"]
    assert (facts(dataset), shown(dataset)) == ([("1", ("2",))], [[3]])


def test_scienceqa(folder):
    table = {"image": as_images(2, 1), "question": ["Which is it?", "And this?"],
             "choices": pa.array([["wood", "glass"], ["yes", "no"]]), "answer": [0, 1], "hint": ["Look.", ""],
             "lecture": ["", ""]}  # fmt: skip
    pq.write_table(pa.table(table), folder / "test-00000-of-00001.parquet")
    dataset = read_good(folder / "test-00000-of-00001.parquet")
    assert prompts(dataset, "mcq") == [
        f"#Hint: Look.\nQuestion: Which is it?\nOptions:\nA. wood\nB. glass\n{ENDING}",
        f"#Question: And this?\nOptions:\nA. yes\nB. no\n{ENDING}",
    ]
    assert [sample.reference_answers for sample in dataset.samples] == [("0",), ("1",)]
    assert shown(dataset) == [[2], [1]]


def test_textvqa(folder):
    row = {"question": "what is the brand?", "image_id": "0a1b", "answers": ["nokia"] * 9 + ["toshiba"],
           "question_id": 34602, "set_name": "val", "image_classes": ["Phone"]}  # fmt: skip
    (folder / "TextVQA_0.5.1_val.json").write_text(
        json.dumps({"dataset_type": "val", "dataset_name": "textvqa", "data": [row], "dataset_version": "0.5.1"})
    )
    dataset = read_good(
        folder / "TextVQA_0.5.1_val.json",
        images=folder / "img", image_column="{image_id}.jpg", id_column="question_id",
    )  # fmt: skip
    assert prompts(dataset) == ["#what is the brand?"]
    assert facts(dataset) == [("34602", ("nokia",) * 9 + ("toshiba",))]
    assert shown(dataset) == [[0]]


def test_vqav2(folder):
    questions = {
        "info": {"year": 2017},
        "task_type": "Open-Ended",
        "license": {"name": "CC"},
        "data_subtype": "val2014",
        "questions": [{"image_id": 42, "question": "What color?", "question_id": 42000}],
    }
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    annotation = {"question_type": "what color", "multiple_choice_answer": "red", "answers": answers, "image_id": 42,
                  "answer_type": "other", "question_id": 42000}  # fmt: skip
    (folder / "questions.json").write_text(json.dumps(questions))
    (folder / "annotations.json").write_text(json.dumps({"info": {}, "annotations": [annotation], "license": {}}))
    dataset = read_good(
        folder / "questions.json",
        images=folder / "img", image_column="COCO_val2014_{image_id:012}.jpg", id_column="question_id",
        answers_from=folder / "annotations.json", on="question_id",
    )  # fmt: skip
    assert prompts(dataset, "{question} Use one word.") == ["#What color? Use one word."]
    assert facts(dataset) == [("42000", ("red",) * 10)]
    assert dataset.samples[0].extras["answer_type"] == "other"
    assert shown(dataset) == [[0]]


def test_gqa(folder):
    row = {"semantic": [{"operation": "select", "argument": "sky"}], "question": "Is it overcast?",
           "imageId": "2405722", "answer": "no", "fullAnswer": "No, it is clear.", "isBalanced": True}  # fmt: skip
    (folder / "testdev_balanced_questions.json").write_text(json.dumps({"201307251": row, "201640614": row}))
    dataset = read_good(folder / "testdev_balanced_questions.json", images=folder / "img", image_column="{imageId}.jpg")
    assert prompts(dataset) == ["#Is it overcast?"] * 2
    assert facts(dataset) == [("201307251", ("no",)), ("201640614", ("no",))]
    assert shown(dataset) == [[0], [0]]


def test_llava_mix(folder):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."},
             {"from": "human", "value": "How old?"}, {"from": "gpt", "value": "Two."}]  # fmt: skip
    rows = [{"id": "000000033471", "image": "1.jpg", "conversations": turns},
            {"id": "000000033471", "image": "1.jpg", "conversations": turns[2:]}]  # fmt: skip
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))
    dataset = read_good(folder / "llava_v1_5_mix665k.json", images=folder / "img")
    assert prompts(dataset) == ["#What is it?", "#How old?"]
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


def test_sharegpt_in_other_spellings(folder):
    turns = [{"from": "System", "value": "Be brief."}, {"from": "Human", "value": "[IMG]\nWhat is it?"},
             {"from": "GPT", "value": "A dog."}]  # fmt: skip
    (folder / "a.json").write_text(json.dumps([{"image": "1.jpg", "conversation": turns}]))
    dataset = read_good(folder / "a.json", images=folder / "img")
    assert (prompts(dataset), dataset.samples[0].reference_answers) == (["#What is it?"], ("A dog.",))
