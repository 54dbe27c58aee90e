"""Small files in the shapes in which the usual benchmarks are published: each function writes them into a folder.

The names are those that the commands of docs/datasets.md use.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from support.made_tables import ENCODED, STRUCT, text

HUMAN, GPT = "human", "gpt"


def as_images(*numbers: int | None) -> pa.Array:
    return pa.array([None if n is None else {"bytes": ENCODED[n], "path": None} for n in numbers], STRUCT)


def image(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(ENCODED[0])


def dump(path: Path, value: Any, **options: Any) -> None:
    path.write_text(json.dumps(value, **options))


def pope(folder: Path) -> None:
    name = "COCO_val2014_000000000042.jpg"
    rows = [{"question_id": i, "image": name, "text": f"Is there {i}?", "label": "yes"} for i in (1, 2)]
    (folder / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    image(folder / "val2014" / name)


def mme(folder: Path) -> None:
    question = "Is it red? Please answer yes or no."
    table = {"question_id": ["color/1.png"] * 2, "image": as_images(1, 1), "question": [question] * 2,
             "answer": ["Yes", "No"], "category": ["color"] * 2}  # fmt: skip
    pq.write_table(pa.table(table), folder / "test-00000-of-00001.parquet")


def amber(folder: Path) -> None:
    asked = [{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
             {"id": 1005, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"}]  # fmt: skip
    truths = [{"id": 1, "type": "generative", "truth": ["sky", "beach"], "hallu": ["sun"]},
              {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"}]  # fmt: skip
    dump(folder / "query_all.json", asked, indent=4)
    dump(folder / "annotations.json", truths, indent=4)
    image(folder / "image" / "AMBER_1.jpg")


def hallusionbench(folder: Path) -> None:
    row = {"category": "VS", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1",
           "question_id": "0", "question": "Is China's value the highest?", "gt_answer": "1",
           "filename": "./0_1.png"}  # fmt: skip
    dump(folder / "HallusionBench.json", [row, {**row, "figure_id": "2"}])
    image(folder / "hallusion_bench" / "0_1.png")


def haloquest(folder: Path) -> None:
    header = ",image_name,url,image type,hallucination type,question,groundtruth responses,split"
    row = '0,1.jpg,https://x.invalid/1,real,vqa,"How many, say?",Two,eval'
    (folder / "haloquest-eval.csv").write_text(f"{header}\n{row}\n")
    image(folder / "images" / "1.jpg")


def mmmu(folder: Path) -> None:
    table = {"id": ["validation_Art_1", "validation_Art_2"], "question": ["<image 1> Who?", "Which of <image 1>?"],
             "options": ["['A. Dürer', 'B. Goya']", "['<image 2>', 'none']"], "answer": ["A", "B"],
             "image_1": as_images(1, 1), "image_2": as_images(None, 2),
             **{f"image_{n}": pa.nulls(2) for n in range(3, 8)}}  # fmt: skip
    pq.write_table(pa.table(table), folder / "validation-00000-of-00001.parquet")


def mathvista(folder: Path) -> None:
    table = {"pid": ["1"], "question": ["How long?"], "image": ["images/1.jpg"], "decoded_image": as_images(3),
             "choices": pa.array([["2", "3"]], pa.list_(pa.string())), "precision": [1.0], "answer": ["2"],
             "metadata": [{"split": "testmini", "grade": 1}],
             "query": ["Hint: Give a number.\nQuestion: How long?\nChoices:\n(A) 2\n(B) 3"]}  # fmt: skip
    pq.write_table(pa.table(table), folder / "testmini-00000-of-00001.parquet")


def scienceqa(folder: Path) -> None:
    table = {"image": as_images(2, 1), "question": ["Which is it?", "And this?"],
             "choices": pa.array([["wood", "glass"], ["yes", "no"]]), "answer": [0, 1], "hint": ["Look.", ""],
             "lecture": ["", ""]}  # fmt: skip
    pq.write_table(pa.table(table), folder / "test-00000-of-00001.parquet")


def textvqa(folder: Path) -> None:
    row = {"question": "what is the brand?", "image_id": "0a1b", "answers": ["nokia"] * 9 + ["toshiba"],
           "question_id": 34602, "set_name": "val", "image_classes": ["Phone"]}  # fmt: skip
    whole = {"dataset_type": "val", "dataset_name": "textvqa", "data": [row], "dataset_version": "0.5.1"}
    dump(folder / "TextVQA_0.5.1_val.json", whole)
    image(folder / "train_images" / "0a1b.jpg")


def vqav2(folder: Path) -> None:
    questions = {"info": {"year": 2017}, "task_type": "Open-Ended", "license": {"name": "CC"},
                 "data_subtype": "val2014",
                 "questions": [{"image_id": 42, "question": "What color?", "question_id": 42000}]}  # fmt: skip
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    annotation = {"question_type": "what color", "multiple_choice_answer": "red", "answers": answers, "image_id": 42,
                  "answer_type": "other", "question_id": 42000}  # fmt: skip
    dump(folder / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    dump(folder / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": [annotation], "license": {}})
    image(folder / "val2014" / "COCO_val2014_000000000042.jpg")


def gqa(folder: Path) -> None:
    row = {"semantic": [{"operation": "select", "argument": "sky"}], "question": "Is it overcast?",
           "imageId": "2405722", "answer": "no", "fullAnswer": "No, it is clear.", "isBalanced": True}  # fmt: skip
    dump(folder / "testdev_balanced_questions.json", {"201307251": row, "201640614": row})
    image(folder / "images" / "2405722.jpg")


def llava_mix(folder: Path) -> None:
    turns = [{"from": HUMAN, "value": "<image>\nWhat is it?"}, {"from": GPT, "value": "A dog."},
             {"from": HUMAN, "value": "How old?"}, {"from": GPT, "value": "Two."}]  # fmt: skip
    rows = [{"id": "000000033471", "image": "1.jpg", "conversations": turns},
            {"id": "000000033471", "image": "1.jpg", "conversations": turns[2:]}]  # fmt: skip
    dump(folder / "llava_v1_5_mix665k.json", rows)
    image(folder / "data" / "1.jpg")


def vlmevalkit(folder: Path) -> None:
    rows = [{"index": 1, "image": text(ENCODED[0]), "question": "Which one?", "hint": "", "A": "dog", "B": "None",
             "answer": "A"},
            {"index": 1000001, "image": "1", "question": "And this?", "hint": "Look.", "A": "x", "B": "y",
             "answer": "B"}]  # fmt: skip
    with (folder / "MMBench_DEV_EN.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def chartqa(folder: Path) -> None:
    rows = [{"imgname": "41699051005347.png", "query": "How many food items are shown?", "label": "14"}]
    dump(folder / "test_human.json", rows)
    image(folder / "png" / "41699051005347.png")


def docvqa(folder: Path) -> None:
    row = {"questionId": 338, "question": "What is the date?", "question_types": ["handwritten"], "docId": 287,
           "image": "documents/xnbl0037_1.png", "answers": ["1/8/93"], "data_split": "val"}  # fmt: skip
    dump(folder / "val_v1.0.json", {"dataset_name": "SP-DocVQA", "dataset_split": "val", "data": [row]})
    image(folder / "documents" / "xnbl0037_1.png")


def a_okvqa(folder: Path) -> None:
    row = {"split": "val", "image_id": 42, "question_id": "22jbM6gDxdaMaunuzgrsBB", "question": "What is it?",
           "choices": ["a cat", "a dog"], "correct_choice_idx": 1, "direct_answers": ["dog", "dog", "pet"],
           "difficult_direct_answer": False, "rationales": ["It barks."]}  # fmt: skip
    dump(folder / "aokvqa_v1p0_val.json", [row])
    image(folder / "val2017" / "000000000042.jpg")


def vizwiz(folder: Path) -> None:
    answers = [{"answer_confidence": "yes", "answer": "basil"}, {"answer_confidence": "maybe", "answer": "basil leaf"}]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "Ok. What is it?", "answers": answers,
           "answer_type": "other", "answerable": 1}  # fmt: skip
    dump(folder / "val.json", [row])
    image(folder / "val" / "VizWiz_val_00000000.jpg")


def mm_vet(folder: Path) -> None:
    row = {"imagename": "v1_0.png", "question": "What is x in the equation?", "answer": "-1<AND>-5",
           "imagesource": "math", "capability": ["ocr", "math"]}  # fmt: skip
    dump(folder / "mm-vet.json", {"v1_0": row, "v1_1": row})
    image(folder / "images" / "v1_0.png")


def seed_bench(folder: Path) -> None:
    table = {"question_id": ["101669"], "image": pa.array([[{"bytes": ENCODED[2], "path": None}]], pa.list_(STRUCT)),
             "question": ["How many towels are there?"], "choice_a": ["One"], "choice_b": ["Two"],
             "choice_c": ["Three"], "choice_d": ["Four"], "answer": ["A"], "data_type": ["image"]}  # fmt: skip
    pq.write_table(pa.table(table), folder / "test-00000-of-00001.parquet")


ENDING = "Please select the correct answer from the options above. \n"
PROMPTS = {
    pope: ["#Is there 1?", "#Is there 2?"],
    mme: ["#Is it red? Please answer yes or no."] * 2,
    amber: ["#Describe this image.", "#Is the sky sunny in this image?"],
    hallusionbench: ["#Is China's value the highest?"] * 2,
    haloquest: ["#How many, say?"],
    mmmu: [
        f"Question: # Who?\nOptions:\nA. A. Dürer\nB. B. Goya\n{ENDING}",
        f"Question: Which of #?\nOptions:\nA. #\nB. none\n{ENDING}",
    ],
    mathvista: ["#Hint: Give a number.\nQuestion: How long?\nChoices:\n(A) 2\n(B) 3"],
    scienceqa: [
        f"#Hint: Look.\nQuestion: Which is it?\nOptions:\nA. wood\nB. glass\n{ENDING}",
        f"#Question: And this?\nOptions:\nA. yes\nB. no\n{ENDING}",
    ],
    textvqa: ["#what is the brand?"],
    vqav2: ["#What color?"],
    gqa: ["#Is it overcast?"] * 2,
    llava_mix: ["#What is it?", "#How old?"],
    vlmevalkit: [
        f"#Question: Which one?\nOptions:\nA. dog\nB. None\n{ENDING}",
        f"#Hint: Look.\nQuestion: And this?\nOptions:\nA. x\nB. y\n{ENDING}",
    ],
    chartqa: ["#How many food items are shown?"],
    docvqa: ["#What is the date?"],
    a_okvqa: [f"#Question: What is it?\nOptions:\nA. a cat\nB. a dog\n{ENDING}"],
    vizwiz: ["#Ok. What is it?"],
    mm_vet: ["#What is x in the equation?"] * 2,
    seed_bench: [f"#Question: How many towels are there?\nOptions:\nA. One\nB. Two\nC. Three\nD. Four\n{ENDING}"],
}
"""What writes a benchmark's files -> the prompts that its command in docs/datasets.md makes, `#` for an image."""
