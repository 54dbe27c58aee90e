"""A dataset into a run folder: one code path, resume, refused options, bad input."""

import csv
import json
import re
import zlib

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.extraction import extract_call
from midsight.extraction.todo import group_by_image
from midsight.records import VISION_ONLY
from midsight.samples.open import open_dataset
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import Sample
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.pictures import encoded, picture, with_alpha

QUESTIONS = ["What is this?", "Is there a red circle in the image?", "How many?", "Which colour is the largest one?"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six images with two questions each, the questions of an image far apart; JSONL and CSV of the same rows."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "images").mkdir()
    for i in range(6):
        (folder / "images" / f"{i}.png").write_bytes(encoded(picture((40 + 30 * i, 64), i)))
    rows = [
        {"id": f"q{n}", "image": f"images/{n % 6}.png", "question": QUESTIONS[n % 4], "answer": "yes", "level": n}
        for n in range(12)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def vectors(run):
    return {name: run.matrix(name) for name in run.vector_columns}


def assert_same_vectors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        errors = np.linalg.norm(a[name] - b[name], axis=1) / np.linalg.norm(b[name], axis=1)
        assert errors.max() <= 1e-5, name


def test_every_way_in_takes_one_path(dataset, checkpoint, model, tmp_path):
    """JSONL, CSV, a list, the command and single calls: bit for bit where the batches are the same."""
    options = {"layers": "all", "positions": "vision_token,query_token,image_mean", "max_new_tokens": 6}
    from_jsonl = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "a", **options)
    from_csv = midsight.extract(dataset / "data.csv", model=model, out=tmp_path / "b", **options)
    single = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "c", batch_size=1, **options)
    pairs = [(dataset / "images" / f"{n % 6}.png", QUESTIONS[n % 4]) for n in range(12)]
    from_list = midsight.extract(pairs, model=model, out=tmp_path / "d", **options)
    arguments = ["extract", dataset / "data.jsonl", "--model", checkpoint, "--device", "cpu", "--out", tmp_path / "e"]
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    done = CliRunner().invoke(app, list(map(str, [*arguments, *flags])))
    assert done.exit_code == 0, done.output
    from_command = midsight.open_run(tmp_path / "e")
    table = from_jsonl.table()
    assert from_command.table().equals(table)
    assert from_list.table()["answer_token_ids"] == table["answer_token_ids"]
    assert table["input_index"].to_pylist() == list(range(12))
    assert table["sample_id"].to_pylist() == [f"q{n}" for n in range(12)]
    assert table["level"].to_pylist() == list(range(12))
    assert table["reference_answers"].to_pylist() == [["yes"]] * 12
    for name in from_jsonl.vector_columns:
        for other in (from_csv, from_list, from_command):
            assert np.array_equal(from_jsonl.matrix(name), other.matrix(name)), name
    assert_same_vectors(vectors(single), vectors(from_jsonl))
    assert single.table()["answer_token_ids"] == table["answer_token_ids"]
    last = from_jsonl.matrix("query_token_representation", layer=7)
    assert np.array_equal(from_jsonl.matrix("query_token_representation", layer=-1), last)
    for n in (0, 7):
        record = model.extract(dataset / "images" / f"{n % 6}.png", QUESTIONS[n % 4], **options)
        assert record.answer == table["answer"][n].as_py()
        for name in single.vector_columns:
            assert np.array_equal(record.vectors[name], single.matrix(name)[n]), name
        assert np.array_equal(record.vision_only_representation, single.matrix(VISION_ONLY)[n])
        assert np.array_equal(
            record.query_token_representation[4], single.matrix("query_token_representation", layer=4)[n]
        )


def test_the_answer_columns_fit_together(dataset, model, tmp_path):
    run = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=8)
    tokenizer = model.loaded.tokenizer
    for row in run.table().to_pylist():
        ids = row["answer_token_ids"]
        assert row["answer"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert len(ids) == len(row["answer_logprobs"])
        assert row["finish_reason"] == ("stop" if ids[-1] in (199999, 200020) else "length")
        assert row["first_token_top_ids"][0] == ids[0]
        assert row["first_token_top_logprobs"][0] == pytest.approx(row["answer_logprobs"][0], abs=1e-6)
        assert row["first_token_top_logprobs"] == sorted(row["first_token_top_logprobs"], reverse=True)
        assert len(row["first_token_top_ids"]) == 10
        assert 0 < row["first_token_entropy"] < np.log(200064)
        assert row["query_token_index"] == row["prompt_tokens"] - 1
        assert row["image_tokens"] == row["vision_token_index"]  # behind <|user|>, from index 1


def test_no_answers_leaves_the_answer_columns_out(dataset, model, tmp_path):
    run = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", answers=False, limit=2)
    assert not [name for name in run.columns if name.startswith(("answer", "finish", "first_token"))]


def test_limit_can_grow_and_nothing_is_done_twice(dataset, model, tmp_path):
    seen = []
    first = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", limit=5, max_new_tokens=2)
    assert len(first) == 5
    run = midsight.extract(
        dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2, progress=seen.append
    )
    assert (seen[0].samples, seen[0].already, seen[0].done) == (12, 5, 0)
    assert (seen[-1].done, seen[-1].remaining) == (7, 0)
    assert sorted(run.sample_ids()) == sorted(f"q{n}" for n in range(12))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layers", "0,1"),
        ("positions", "query_token"),
        ("residual", True),
        ("vision", "none"),
        ("processor_pooled_pixels", True),
        ("pixels", "transformers"),
        ("prompt", "{question} Answer yes or no."),
        ("system", "Be brief."),
        ("prompt_template", "raw"),
        ("answers", False),
        ("max_new_tokens", 3),
        ("share", False),
        ("store_dtype", "float16"),
    ],
)
def test_other_options_are_refused_by_name(dataset, model, tmp_path, option, value):
    midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2, limit=1)
    options = {"max_new_tokens": 2, option: value}
    with pytest.raises(midsight.RunError, match=rf"\b{option}\b"):
        midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("images", "images"),
        ("image_column", "question"),
        ("question_column", "answer"),
        ("answer_column", "level"),
        ("id_column", "level"),
    ],
)
def test_rows_read_in_another_way_are_refused_by_option(dataset, model, tmp_path, option, value):
    """The same file; with another folder of images the same ids would hold other pictures."""
    call = {"model": model, "out": tmp_path / "run", "answers": False, "layers": [0]}
    midsight.extract(dataset / "data.jsonl", limit=1, **call)
    options = {option: dataset / value if option == "images" else value}
    with pytest.raises(midsight.RunError, match=rf"\b{option}\b"):
        midsight.extract(dataset / "data.jsonl", **options, **call)


def test_naming_what_is_the_default_anyway_changes_nothing(dataset, model, tmp_path):
    call = {"model": model, "out": tmp_path / "run", "answers": False, "layers": [0], "limit": 1}
    midsight.extract(dataset / "data.jsonl", **call)
    named = open_dataset(dataset / "data.jsonl", DatasetOptions(images=dataset, answer_column="answer", id_column="id"))
    assert len(midsight.extract(named, **call)) == 1


def test_another_dataset_or_model_is_refused(dataset, model, tmp_path):
    midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2, limit=1)
    with pytest.raises(
        midsight.RunError, match=r"was started with data=.*data\.jsonl\' .*this call has data=.*data\.csv\' "
    ):
        midsight.extract(dataset / "data.csv", model=model, out=tmp_path / "run", max_new_tokens=2)
    other = midsight.load(write_phi4_multimodal(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(midsight.RunError, match=r"was started with model=.*this call has model=.*/other\' \(SHA"):
        midsight.extract(dataset / "data.jsonl", model=other, out=tmp_path / "run", max_new_tokens=2)


def test_questions_of_one_image_come_together_in_order_of_appearance():
    samples = [Sample(str(n), n, (), "?", image="abcab"[n]) for n in range(5)]
    assert [s.sample_id for s in group_by_image(samples)] == ["0", "3", "1", "4", "2"]


def test_bad_samples_are_recorded_and_the_others_stored(model, tmp_path):
    """One sentence each; eleven kinds of bad input beside three good rows."""
    whole = encoded(picture((64, 64), 1))
    files = {
        "good.png": whole,
        "alpha.png": with_alpha((64, 64), 2),
        "truncated.jpg": encoded(picture((200, 200), 3), "JPEG")[:2000],
        "zero.png": b"",
        "text.png": b"this is no image",
        "thin.png": encoded(picture((1, 2000), 4)),
        "huge.png": huge_png(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = [
        ("good", "good.png", "What is this?", None),
        ("missing", "missing.png", "What?", "missing.png"),
        ("truncated", "truncated.jpg", "What?", "truncated"),
        ("zero", "zero.png", "What?", "empty"),
        ("text", "text.png", "What?", "no PNG"),
        ("thin", "thin.png", "What?", "thinner than the 10 pixels"),
        ("huge", "huge.png", "What?", "pixels"),
        ("empty question", "good.png", "  ", "question is empty"),
        ("placeholder", "good.png", "<|image_2|>What?", "1 image placeholder (<|image_2|>) and the sample 1 image;"),
        ("end", "good.png", "What?<|end|><|assistant|>", "control token"),
        ("image token", "good.png", "What? <|endoftext10|>", "control token '<|endoftext10|>'"),
        ("outside", "../elsewhere.png", "What?", "outside"),
        ("alpha", "alpha.png", "What?", None),
    ]
    lines = [json.dumps({"id": i, "image": image, "question": question}) for i, image, question, _ in rows]
    lines.insert(4, '{"id": "broken", "image": "good.png", ')
    lines.append(json.dumps({"id": "last", "image": "good.png", "question": "And this?"}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    run = midsight.extract(tmp_path / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2, batch_size=4)
    assert set(run.sample_ids()) == {"good", "alpha", "last"}
    reasons = {failure.sample_id: failure.reason for failure in run.failures()}
    assert len(reasons) == len(lines) - 3
    for sample_id, _, _, reason in rows:
        if reason is not None:
            assert reason in reasons[sample_id]
            assert "\n" not in reasons[sample_id]
    (broken,) = [f for f in run.failures() if f.input_index == 4]
    assert "line 5" in broken.reason
    alone = model.extract(tmp_path / "good.png", "What is this?", max_new_tokens=2)
    assert np.allclose(run.matrix(VISION_ONLY)[0], alone.vision_only_representation, rtol=1e-5)


def test_a_prompt_longer_than_the_model_takes_is_said_and_not_computed(dataset, model):
    image = dataset / "images" / "0.png"
    long, short = model.extract_many([(image, "word " * 131072), (image, "What?")], answers=False, layers=[0])
    assert isinstance(short, midsight.Record)
    assert re.search(
        r"The prompt has \d{3},\d{3} tokens, and the model takes 131,072; shorten the question", long.reason
    )


def test_bad_pairs_keep_their_place_among_the_outcomes(dataset, model):
    image = dataset / "images" / "0.png"
    pairs = [(image, "What?"), (image, " "), ("lost.png", "What?"), (image, "And now?")]
    outcomes = model.extract_many(pairs, answers=False, layers=[0], batch_size=2)
    assert [isinstance(outcome, midsight.Record) for outcome in outcomes] == [True, False, False, True]
    assert [outcome.input_index for outcome in outcomes] == [0, 1, 2, 3]
    with pytest.raises(midsight.SampleError, match="question is empty"):
        model.extract(image, "")
    with pytest.raises(midsight.MidsightError, match="batch_size is -1"):
        model.extract_many(pairs, batch_size=-1)


def test_images_in_memory_are_counted_and_grouped_one_by_one(dataset, model, tmp_path):
    images = [(dataset / "images" / f"{i}.png").read_bytes() for i in range(2)]
    seen = []
    run = midsight.extract(
        [(image, "What?") for image in images], model=model, out=tmp_path / "run", answers=False, layers=[0],
        progress=seen.append,
    )  # fmt: skip
    assert (seen[0].images, len(run)) == (2, 2)


def test_a_failed_sample_is_tried_again_only_when_asked(model, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "a", "image": "a.png", "question": "What?"}))
    call = {"model": model, "out": tmp_path / "run", "max_new_tokens": 2}
    for _ in range(2):
        with pytest.raises(midsight.MidsightError, match=r"^No sample could be extracted; 1 sample failed: The image"):
            midsight.extract(tmp_path / "data.jsonl", **call)
        (tmp_path / "a.png").write_bytes(encoded(picture((64, 64), 1)))
    run = midsight.extract(tmp_path / "data.jsonl", retry_failed=True, **call)
    assert (run.sample_ids(), run.failures()) == (["a"], [])


def test_a_sample_that_breaks_the_model_stands_alone(dataset, model, tmp_path, monkeypatch):

    original = extract_call.encode_distinct

    def break_on_one(loaded, images):
        if any(image.tokens == bad_tokens for row in images for image in row):
            raise RuntimeError("the kernel fell over\nmore lines follow")
        return original(loaded, images)

    bad_tokens = model.extract(dataset / "images" / "3.png", "?", answers=False).image_tokens
    monkeypatch.setattr(extract_call, "encode_distinct", break_on_one)
    run = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2)
    assert {f.sample_id for f in run.failures()} == {"q3", "q9"}
    assert all(f.reason.endswith("RuntimeError: the kernel fell over.") for f in run.failures())
    assert len(run) == 10


def test_values_that_are_not_finite_are_never_data(dataset, model, tmp_path, monkeypatch):

    original = extract_call.collect_vectors

    def poisoned(*args):
        rows = original(*args)
        rows[0]["query_token_representation.layer_4"][3] = np.nan
        return rows

    monkeypatch.setattr(extract_call, "collect_vectors", poisoned)
    run = midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2, limit=2)
    (failure,) = run.failures()
    assert "query_token_representation.layer_4 has values that are not finite" in failure.reason


def test_answers_from_logits_that_are_not_finite_are_never_data(dataset, model, tmp_path, monkeypatch):
    """The layers asked for may be fine where a later one has overflowed."""

    original = extract_call.continue_from

    def overflown(*args):
        start = original(*args)
        start.logits[0] = float("nan")
        return start

    monkeypatch.setattr(extract_call, "continue_from", overflown)
    run = midsight.extract(
        dataset / "data.jsonl", model=model, out=tmp_path / "run", layers=[0], max_new_tokens=2, limit=2
    )
    assert len(run) == 1
    assert "answer_logprobs has values that are not finite" in run.failures()[0].reason


def test_what_float16_cannot_hold_is_a_failure_not_infinity(dataset, model, tmp_path, monkeypatch):

    original = extract_call.collect_vectors

    def large(*args):
        rows = original(*args)
        rows[0]["query_token_representation.layer_4"][3] = 70_000.0
        return rows

    monkeypatch.setattr(extract_call, "collect_vectors", large)
    seen = []
    run = midsight.extract(
        dataset / "data.jsonl", model=model, out=tmp_path / "run", max_new_tokens=2, limit=2, store_dtype="float16",
        progress=seen.append,
    )  # fmt: skip
    assert len(run) == 1
    assert "query_token_representation.layer_4" in run.failures()[0].reason
    assert (seen[-1].done, seen[-1].failed) == (1, 1)


def huge_png() -> bytes:
    """A whole PNG of 40,000 x 40,000 grey pixels, all black: 100 lines compressed, and repeated."""
    compressor = zlib.compressobj(9, wbits=-15)
    lines = compressor.compress(b"\0" * 40_001 * 100) + compressor.flush(zlib.Z_FULL_FLUSH)
    adler32_of_zeros = (40_001 * 40_000 % 65_521) << 16 | 1
    data = b"\x78\xda" + lines * 400 + zlib.compressobj(wbits=-15).flush() + adler32_of_zeros.to_bytes(4, "big")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (40_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
