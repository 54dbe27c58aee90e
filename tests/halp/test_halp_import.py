"""`midsight import-halp`: what the eight scripts stored becomes a run in which each column is named for what it is."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import MidsightError, RunError
from midsight.halp import export
from midsight.halp.export import export_halp
from midsight.halp.importing import import_halp
from midsight.halp.scripts import SCRIPTS
from midsight.store import open_run
from midsight.store.verify import verify_run
from support.halp_files import QUERY_TOKEN, VISION_TOKEN, WIDTH, Stored, attributes_of, make_sample, write_part
from support.made_up import content_of, make_record, make_spec, write_run

LAYERS_32, LAYERS_28, LAYERS_24 = (0, 8, 16, 24, 31), (0, 7, 14, 21, 27), (0, 6, 12, 18, 23)
OURS = ("vision_only_representation", VISION_TOKEN, QUERY_TOKEN)


def of(position, *layers):
    return [f"{position}.{layer if isinstance(layer, str) else f'layer_{layer}'}" for layer in layers]


GUESSED, FIRST = "guessed_index_representation", "first_image_token_representation"
EXPECTED = {
    "phi4": (LAYERS_32, ["processor_pooled_pixels", *of(VISION_TOKEN, *LAYERS_32), *of(QUERY_TOKEN, *LAYERS_32)]),
    "llama": (LAYERS_32, ["all_tiles_representation", *of(VISION_TOKEN, *LAYERS_32), *of(QUERY_TOKEN, *LAYERS_32)]),
    "gemma": (LAYERS_28, [OURS[0], *of(GUESSED, 0, 7, 14, 21, "layer_27_residual"),
                          *of(QUERY_TOKEN, 0, 7, 14, 21, "layer_27_residual")]),
    "qwen": (LAYERS_28, [OURS[0], *of(GUESSED, 0, 7, 14, 21, "layer_27_residual"),
                         *of(QUERY_TOKEN, 0, 7, 14, 21, "layer_27_residual")]),
    "smolvlm": (LAYERS_24, ["all_crops_representation", *of(GUESSED, "embed", 5, 11, 17, 22),
                            *of(QUERY_TOKEN, "embed", 5, 11, 17, 22)]),
    "llava": (LAYERS_32, [*of(GUESSED, "embed", 7, 15, 23, 30), *of(QUERY_TOKEN, "embed", 7, 15, 23, 30)]),
    "fastvlm": (LAYERS_28, ["tower_mean_representation", *of(FIRST, "embed", 6, 13, 20, 26),
                            *of("unexpanded_end_representation", "embed", 6, 13, 20, 26)]),
    "molmo": (LAYERS_32, ["projected_mean_representation",
                          *of("after_image_representation", 0, 8, 16, 24, "layer_31_residual"),
                          *of(QUERY_TOKEN, 0, 8, 16, 24, "layer_31_residual")]),
}  # fmt: skip
"""Layers of each script's files, and the columns that they become."""
FILE_NAMES = {"llava": "llava_next", "fastvlm": "fastvlm"}


def write_script_parts(folder, name, count=4):
    """Two parts as the script of that name writes them."""
    layers = EXPECTED[name][0]
    for number in (1, 2):
        samples = {f"q{i}": make_sample(i, layers) for i in range((number - 1) * count, number * count)}
        attributes = None if name in FILE_NAMES else attributes_of(SCRIPTS[name].model_type, count)
        if name == "molmo":
            attributes = {**attributes_of(None, count), "model_name": "allenai/Molmo-7B-D-0924"}
        stem = FILE_NAMES.get(name, "model")
        tag = "ascii" if name in FILE_NAMES else "utf-8"
        write_part(folder / f"{stem}_embeddings_part_{number:03}.h5", samples, attributes, tag=tag)
    return folder


@pytest.mark.parametrize("name", EXPECTED)
def test_the_columns_of_each_script_are_named_for_what_they_hold(tmp_path, name):
    layers, columns = EXPECTED[name]
    report = import_halp(write_script_parts(tmp_path / "parts", name), tmp_path / "run")
    assert (report.script, report.files, report.samples, report.failed, report.problems) == (name, 2, 8, 0, ())
    run = open_run(tmp_path / "run")
    assert list(run.vector_columns) == columns
    assert run.sample_ids() == [f"q{i}" for i in range(8)]
    first = make_sample(3, layers)
    stored = [*([] if name == "llava" else [first.vision_only]), *first.layers[VISION_TOKEN].values(),
              *first.layers[QUERY_TOKEN].values()]  # fmt: skip
    for column, vector in zip(columns, stored, strict=True):
        assert run.matrix(column)[3].tobytes() == vector.tobytes(), column
    assert (run.spec.model.family, run.spec.model.layers) == (SCRIPTS[name].model, layers[-1] + 1)


def test_every_column_is_explained_and_what_is_unknown_is_null(tmp_path):
    import_halp(write_script_parts(tmp_path / "parts", "llava"), tmp_path / "run")
    spec = open_run(tmp_path / "run").spec
    imported = spec.imported
    assert imported is not None
    assert imported.source == "HALP HDF5 parts, written by the script llava (LLaVA-NeXT)"
    assert imported.note.startswith("Its numbers were not computed or tested by midsight")
    assert {*imported.columns} == {*spec.vectors}
    assert imported.columns[f"{QUERY_TOKEN}.embed"] == (
        "query_token_representation/layer_0 of the files: what enters layer 0, the embedding, at the last prompt token"
    )
    assert imported.columns[f"{GUESSED}.layer_7"] == (
        "vision_token_representation/layer_8 of the files: output of layer 7, at the index min(max(400, length // 3), "
        "1500), which moves with the question's length"
    )
    assert imported.left_out == (
        "vision_only_representation is left out: it is one mean per image token over the hidden axis, so its length "
        "varies.",
    )
    unknown = {f"{part}.{name}" for part in ("request", "model", "prompt") for name, value in
               dataclasses.asdict(getattr(spec, part)).items() if value is None}  # fmt: skip
    assert unknown >= {"request.pixels", "model.fingerprint", "model.lora", "model.dtype", "prompt.rendered"}
    row = open_run(tmp_path / "run").table().to_pylist()[0]
    assert row["image_id"] == "name:0.jpg"
    assert row["question"] == "Is there a café in row 0?", "tagged ASCII, and UTF-8 in fact"
    for name in ("prompt_tokens", "vision_token_index", "answer_token_ids", "finish_reason", "first_token_entropy"):
        assert row[name] is None


def zeros(width):
    return np.zeros(width, np.float32)


def test_errors_and_zeros_become_nulls_and_never_data(tmp_path):
    def sample(index, answer=None, **changes):
        made = make_sample(index, LAYERS_28, vision_width=5, **changes)
        made.texts |= {} if answer is None else {"answer": answer}
        return made

    samples = {
        "q0": sample(0),
        "q1": sample(1, "[Generation failed: CUDA out of memory]"),
        "q2": sample(2, "Error generating response: shape mismatch"),
        "q3": sample(3, vision_only=zeros((1, 1024))),
        "q4": sample(4, vision_only=zeros(5)),
        "q5": sample(5, vision_only=None),
        "q6": sample(6, vision_only=np.full(5, np.inf, np.float32)),
    }
    for name, truth in zip(samples, ("nan", "", "N/A"), strict=False):
        samples[name].texts["ground_truth_answer"] = truth
    write_part(tmp_path / "parts" / "fastvlm_part_001.h5", samples, tag="ascii")
    report = import_halp(tmp_path / "parts", tmp_path / "run")
    assert (report.samples, report.failed) == (7, 0)
    assert sorted(report.notes) == [
        "In 1 sample (q3), vision_only_representation is missing in the run: it has 1024 elements, and the others have "
        "5.",
        "In 1 sample (q4), vision_only_representation is missing in the run: all of it is zero, which stands for a "
        "failure.",
        "In 1 sample (q5), there is no vision_only_representation.",
        "In 1 sample (q6), vision_only_representation is missing in the run: it holds values that are not finite.",
        "In 2 samples (q1, ...), the answer is null: the script stored an error message.",
    ]
    run = open_run(tmp_path / "run")
    table = run.table().to_pylist()
    assert [row["answer"] for row in table[:3]] == ["Yes, a café.", None, None]
    assert [row["reference_answers"] for row in table[:4]] == [[], [], [], ["no"]]
    assert np.isnan(run.matrix("tower_mean_representation")).all(axis=1).tolist() == [False] * 3 + [True] * 4
    assert verify_run(run.path).sound


def test_smolvlms_answers_lose_the_prompt_in_front(tmp_path):
    samples = {f"q{i}": make_sample(i, LAYERS_24) for i in range(3)}
    samples["q0"].texts["answer"] = "User:\n\n\n\nIs there a café in row 0?\nAssistant: Yes."
    samples["q1"].texts["answer"] = "User: Is there a café in row 1? No end"
    samples["q2"].texts["answer"] = "Just an answer."
    write_part(tmp_path / "parts" / "a.h5", samples, attributes_of("smolvlm2-2.2b-multimodal", 3))
    report = import_halp(tmp_path / "parts", tmp_path / "run")
    assert open_run(tmp_path / "run").table()["answer"].to_pylist() == ["Yes.", None, "Just an answer."]
    assert report.notes == ("In 1 sample (q1), the answer is null: the end of the prompt in front of it is not found.",)


@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
def test_a_run_comes_back_bit_for_bit(tmp_path, monkeypatch, store_dtype):
    monkeypatch.setattr(export, "SAMPLES_PER_PART", 5)
    columns = {"vision_only_representation": 6, **dict.fromkeys(
        [*of(VISION_TOKEN, 0, 1), *of(QUERY_TOKEN, 0, 1)], 8)}  # fmt: skip
    spec = make_spec(vectors=columns, extras={}, store_dtype=store_dtype)
    ids = [f"b/{i}" if i % 2 else f"a{i}" for i in range(12)]
    references = [(), ("a",), ("a", "b"), ("nan",), ('["x"]',), ("",)]
    records = [make_record(i, spec, extras={}, sample_id=one, reference_answers=references[i % 6], answer=f"A\n{i} é ")
               for i, one in enumerate(ids)]  # fmt: skip
    write_run(tmp_path / "run", records[6:] + records[:6], spec)
    export_halp(open_run(tmp_path / "run"), tmp_path / "parts")
    report = import_halp(tmp_path / "parts", tmp_path / "back")
    assert (report.script, report.samples, report.problems, report.notes) == ("midsight", 12, (), ())
    (before, _), (after, failures) = content_of(tmp_path / "run"), content_of(tmp_path / "back")
    assert failures == []
    assert open_run(tmp_path / "back").spec.vectors == columns
    assert open_run(tmp_path / "back").spec.request.store_dtype == store_dtype
    for name in ("sample_id", "image", "question", "reference_answers", "answer", *columns):
        assert [row[name] for row in before] == [row[name] for row in after], name
    export_halp(open_run(tmp_path / "back"), tmp_path / "again")
    assert import_halp(tmp_path / "again", tmp_path / "last").samples == 12
    assert [row["vision_only_representation"] for row in content_of(tmp_path / "last")[0]] == [
        row["vision_only_representation"] for row in before
    ]


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("phi4", []),
        ("llava", [*of(GUESSED, "embed", 7, 15, 23, 30), *of(QUERY_TOKEN, "embed")]),
    ],
)
def test_an_imported_run_is_exported_and_imported_again(tmp_path, name, lost):
    import_halp(write_script_parts(tmp_path / "parts", name), tmp_path / "run")
    run = open_run(tmp_path / "run")
    done = export_halp(run, tmp_path / "again")
    assert [one for one in lost if not any(one in note for note in done.notes)] == []
    import_halp(tmp_path / "again", tmp_path / "back")
    back = open_run(tmp_path / "back")
    assert [*back.vector_columns] == [one for one in run.vector_columns if one not in lost]
    for column in back.vector_columns:
        assert back.matrix(column).tobytes() == run.matrix(column).tobytes(), column
    before, after = run.spec.model, back.spec.model
    assert (after.dtype, after.device_type, after.layers) == (before.dtype, before.device_type, before.layers)


@pytest.fixture
def many(tmp_path):
    """Eighty samples of Gemma's script, of which the right answers can be told by a query layer."""
    samples = {}
    for i in range(80):
        made = make_sample(i, LAYERS_28)
        made.texts |= {"answer": "Yes." if i % 3 else "No.", "ground_truth_answer": "yes"}
        made.layers[QUERY_TOKEN][14] += 3 * (i % 3 > 0)
        if i < 5:
            made.vision_only = None
        samples[f"q{i:03}"] = made
    write_part(tmp_path / "parts" / "a.h5", samples, attributes_of("gemma-3-12b-multimodal", 80))
    labels = "".join(f"q{i:03},{int(i % 3 == 0)},Is it?,{i // 2}.jpg\n" for i in range(80))
    (tmp_path / "labels.csv").write_text("question_id,is_hallucinating_manual,question,image_id\n" + labels)
    return tmp_path


@pytest.mark.slow
def test_the_commands_work_on_an_imported_run(many):
    def call(*words):
        ended = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "110"})
        assert ended.exit_code == 0, ended.output
        return " ".join(ended.output.split())

    run = many / "run"
    said = call("import-halp", many / "parts", "--out", run)
    assert said.endswith(f"{run}: 80 samples of 1 file by gemma, 0 failed.")
    said = call("show", run)
    assert "80 texts, without their tokens" in said
    assert "5 rows missing" in said
    assert "Imported: HALP HDF5 parts, written by the script gemma (Gemma 3)." in said
    assert "sound" in call("verify", run)
    call("label", run, "--judge", "yes_no")
    said = call("label", run, "--from", many / "labels.csv", "--id", "question_id",
                "--column", "is_hallucinating_manual", "--name", "hallucinating")  # fmt: skip
    assert "80 ids of" in said
    said = call("probe", run, "--label", "hallucinating", "--permutations", "19")
    assert "5 samples of" in said
    assert "chosen" in said
    call("probe", run, "--label", "correct", "--permutations", "0", "--columns", "query_token", "--name", "states")
    opened = midsight.open_run(run)
    assert opened.matrix(QUERY_TOKEN, layer=-1, residual=True).shape == (80, WIDTH)
    assert opened.matrices("query_token").shape == (80, 4, WIDTH)
    data = opened.training_data("vision_only_representation", "hallucinating")
    assert data.ids == [f"q{i:03}" for i in range(5, 80)]
    assert np.isfinite(data.X).all()
    assert data.y.tolist() == [i % 3 == 0 for i in range(5, 80)]
    call("export", run, "--format", "csv", "--out", many / "a.csv")
    call("export", run, "--format", "npy", "--out", many / "npy")
    call("export", run, "--format", "halp", "--out", many / "again")
    call("compact", run)
    assert "sound" in call("verify", run)


def test_an_import_is_resumed_and_never_mixed_with_another_run(many, tmp_path):
    import_halp(many / "parts", tmp_path / "run")
    again = import_halp(many / "parts", tmp_path / "run")
    assert (again.samples, len(open_run(tmp_path / "run"))) == (80, 80)
    write_part(many / "parts" / "b.h5", {"q900": make_sample(1, LAYERS_28)}, attributes_of("gemma-3-12b-multimodal", 1))
    with pytest.raises(RunError, match="its content is now another"):
        import_halp(many / "parts", tmp_path / "run")
    write_run(tmp_path / "extracted", [make_record(0)])
    with pytest.raises(RunError, match="was extracted, and this call would import other rows into it; use another out"):
        import_halp(many / "parts", tmp_path / "extracted")


@pytest.fixture
def parts(tmp_path):
    """A good part, beside which the damaged ones go."""
    write_part(tmp_path / "parts" / "p_part_001.h5", {f"q{i}": make_sample(i, LAYERS_32) for i in range(3)},
               attributes_of("phi-4-multimodal", 3))  # fmt: skip
    return tmp_path / "parts"


def imported(parts):
    """Report, ids and failures of an import of a folder with something wrong in it."""
    report = import_halp(parts, parts.parent / "run")
    run = open_run(parts.parent / "run")
    assert verify_run(run.path).sound
    return report, run.sample_ids(), [f"{one.sample_id}: {one.reason}" for one in run.failures()]


def add(parts, samples, number=2, **more):
    return write_part(
        parts / f"p_part_{number:03}.h5", samples, attributes_of("phi-4-multimodal", len(samples), **more)
    )


def test_a_truncated_file_is_left_out(parts):
    path = add(parts, {"q7": make_sample(7, LAYERS_32)})
    path.write_bytes(path.read_bytes()[:3000])
    (parts / "p_part_003.h5").write_text("not HDF5")
    report, ids, failures = imported(parts)
    assert ids == ["q0", "q1", "q2"]
    assert failures == []
    first, second = report.problems
    assert first.startswith(f"The file {path} is left out: it is truncated, damaged or not HDF5 (")
    assert second.startswith(f"The file {parts / 'p_part_003.h5'} is left out: it is truncated, damaged or not HDF5 (")
    recorded = open_run(parts.parent / "run").spec.imported
    assert recorded is not None
    assert recorded.left_out == report.problems


def test_a_group_without_vectors_fails_alone(parts):
    bare = Stored(make_sample(7, ()).texts)
    path = add(parts, {"q7": bare, "q8": make_sample(8, LAYERS_32)})
    _, ids, failures = imported(parts)
    assert ids == ["q0", "q1", "q2", "q8"]
    assert failures == [f"q7: {path}, group q7: it holds no vectors."]


def test_names_that_are_no_layers_are_left_out(parts):
    path = add(parts, {"q7": make_sample(7, LAYERS_32)})
    with h5py.File(path, "r+") as file:
        for name in ("layer_x", "layer_007"):
            file.create_dataset(f"q7/{QUERY_TOKEN}/{name}", data=np.ones(WIDTH))
    report, ids, _ = imported(parts)
    assert ids == ["q0", "q1", "q2", "q7"]
    assert report.notes == tuple(
        f"In 1 sample (q7), {QUERY_TOKEN}/{name} is left out: its name is not that of a layer."
        for name in ("layer_007", "layer_x")
    )
    assert len(open_run(parts.parent / "run").spec.vectors) == 11


def test_of_two_parts_with_the_same_id_the_first_counts(parts):
    add(parts, {"q1": make_sample(50, LAYERS_32), "q7": make_sample(7, LAYERS_32)})
    report, ids, failures = imported(parts)
    assert ids == ["q0", "q1", "q2", "q7"]
    assert failures == []
    assert report.problems == (
        "In 1 sample (q1), the id is in p_part_001.h5 and again in p_part_002.h5, and the first one is kept.",
    )
    kept = open_run(parts.parent / "run").matrix("processor_pooled_pixels")[1]
    assert np.array_equal(kept, np.asarray(make_sample(1, LAYERS_32).vision_only))


def test_files_without_samples_and_with_a_wrong_count(parts):
    empty, short = add(parts, {}), add(parts, {"q7": make_sample(7, LAYERS_32)}, 3, num_samples=9)
    report, ids, _ = imported(parts)
    assert ids == ["q0", "q1", "q2", "q7"]
    assert report.problems == (
        f"The file {empty} holds no samples.",
        f"The file {short} says that it has 9 samples, and it has 1.",
    )


def test_a_damaged_sample_fails_alone_and_the_command_ends_with_1(parts):
    path = add(parts, {"q7": make_sample(7, LAYERS_32), "q8": make_sample(8, LAYERS_32)})
    with h5py.File(path, "r+") as file:
        del file["q7"]
        file["q7"] = np.ones(3)
    ended = CliRunner().invoke(app, ["import-halp", str(parts), "--out", str(parts.parent / "run")])
    assert ended.exit_code == 1
    assert "4 samples of 2 files by phi4, 1 failed." in " ".join(ended.output.split())
    (failure,) = open_run(parts.parent / "run").failures()
    assert failure.reason == f"{path}, group q7: it is not a group."


@pytest.mark.parametrize(
    ("files", "script", "said"),
    [
        ({}, None, "holds no .h5 files; give the folder of the HDF5 parts"),
        ({"a.h5": None}, None, "holds no vectors that can be imported. The file .*a.h5 holds no samples"),
        ({"a.h5": "phi-4-multimodal", "b.h5": "gemma-3-12b-multimodal"}, None, "a.h5 is of phi4, b.h5 of gemma"),
        ({"a.h5": "a-model-of-mine"}, None, "do not say which script wrote them, .*; name it with script: phi4, llama"),
        ({"a.h5": "phi-4-multimodal"}, "phi3", "script='phi3' is unknown; choose from phi4, llama"),
    ],
)
def test_what_cannot_be_imported_is_refused_before_a_run_is_made(tmp_path, files, script, said):
    (tmp_path / "parts").mkdir()
    for name, model_type in files.items():
        samples = {} if model_type is None else {f"{name}-1": make_sample(1, (0, 3))}
        attributes = attributes_of(model_type, len(samples), model_name="a")
        write_part(tmp_path / "parts" / name, samples, attributes)
    with pytest.raises(MidsightError, match=said):
        import_halp(tmp_path / "parts", tmp_path / "run", script=script)
    assert not (tmp_path / "run").exists()


def test_files_that_do_not_say_their_script_are_not_taken_for_those_beside_them(parts):
    write_part(parts / "x.h5", {"q7": make_sample(7, LAYERS_32)}, {"model_name": "mine"})
    with pytest.raises(MidsightError, match=r"p_part_001\.h5 is of phi4, x\.h5 of an unknown one; give each a folder"):
        import_halp(parts, parts.parent / "run")


def test_parts_by_midsight_need_no_script(tmp_path):
    spec = make_spec(extras={})
    write_run(tmp_path / "run", [make_record(0, spec, extras={})], spec)
    export_halp(open_run(tmp_path / "run"), tmp_path / "parts")
    with pytest.raises(MidsightError, match=r"midsight wrote the files of .*parts; leave out script='phi4'"):
        import_halp(tmp_path / "parts", tmp_path / "back", script="phi4")


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(MidsightError, match="nope is not a folder; give the folder of the HDF5 parts"):
        import_halp(tmp_path / "nope", tmp_path / "run")


def test_files_of_an_unknown_script_keep_names_that_claim_nothing(tmp_path):
    write_part(tmp_path / "parts" / "a.h5", {"q1": make_sample(1, (0, 3)), "q2": make_sample(2, (0, 3))})
    import_halp(tmp_path / "parts", tmp_path / "run", script="other")
    assert list(open_run(tmp_path / "run").vector_columns) == [
        "halp_vision_only_representation",
        *of("halp_vision_token_representation", 0, 3),
        *of("halp_query_token_representation", 0, 3),
    ]


def external_link(sample, folder):
    other = write_part(folder / "secret" / "other.h5", {"q": make_sample(1, (0,))})
    sample["answer"] = h5py.ExternalLink(str(other), "/q/answer")


def soft_link(sample, _):
    sample["answer"] = h5py.SoftLink("/q0/answer")


def external_values(sample, folder):
    (folder / "secret.bin").write_bytes(b"\0" * 64)
    sample.create_dataset("answer", shape=(1,), dtype="S64", external=[(str(folder / "secret.bin"), 0, 64)])


def object_reference(sample, _):
    sample.create_dataset("answer", data=sample.ref, dtype=h5py.ref_dtype)


def long_text(sample, _):
    sample.create_dataset("answer", data=np.bytes_(b"x" * 4_000_001))


@pytest.mark.parametrize("harm", [external_link, soft_link, external_values, object_reference, long_text])
def test_texts_that_point_elsewhere_are_not_read(parts, harm):
    with h5py.File(add(parts, {"q7": make_sample(7, LAYERS_32)}), "r+") as file:
        del file["q7/answer"]
        harm(file["q7"], parts.parent)
    report, ids, _ = imported(parts)
    assert ids == ["q0", "q1", "q2", "q7"]
    assert open_run(parts.parent / "run").table()["answer"].to_pylist()[3] is None
    (note,) = report.notes
    assert note.startswith("In 1 sample (q7), answer is left out: ")


def linked_vector(group, folder):
    other = folder / "secret.h5"
    with h5py.File(other, "w") as file:
        file["v"] = np.ones(WIDTH, np.float32)
    group["layer_0"] = h5py.ExternalLink(str(other), "/v")


def virtual_vector(group, folder):
    with h5py.File(folder / "secret.h5", "w") as file:
        file["v"] = np.ones(WIDTH, np.float32)
    layout = h5py.VirtualLayout((WIDTH,), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "v", (WIDTH,))
    group.create_virtual_dataset("layer_0", layout)


def huge_vector(group, _):
    group.create_dataset("layer_0", shape=(2**40,), dtype=np.float32, chunks=(1024,))


def huge_chunk(group, _):
    group.create_dataset("layer_0", shape=(WIDTH,), maxshape=(None,), chunks=(2**26,), dtype=np.float32, compression=9)


def packed_bomb(group, _):
    """A chunk of 24 bytes that unfolds to 100 MB."""
    import zlib

    dataset = group.create_dataset("layer_0", shape=(WIDTH,), chunks=(WIDTH,), dtype=np.float32, compression=9)
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(100_000_000), 9))


def not_floats(group, _):
    group.create_dataset("layer_0", data=np.arange(WIDTH))


def matrix(group, _):
    group.create_dataset("layer_0", data=np.ones((2, WIDTH), np.float32))


def a_group(group, _):
    group.create_group("layer_0")


@pytest.mark.parametrize(
    "harm", [linked_vector, virtual_vector, huge_vector, huge_chunk, packed_bomb, not_floats, matrix, a_group]
)
def test_vectors_that_are_none_or_too_large_are_missing(parts, harm):
    with h5py.File(add(parts, {"q7": make_sample(7, LAYERS_32)}), "r+") as file:
        del file[f"q7/{QUERY_TOKEN}/layer_0"]
        harm(file[f"q7/{QUERY_TOKEN}"], parts.parent)
    report, ids, _ = imported(parts)
    assert ids == ["q0", "q1", "q2", "q7"]
    lost = np.isnan(open_run(parts.parent / "run").matrix(QUERY_TOKEN, layer=0)).all(axis=1)
    assert lost.tolist() == [False, False, False, True]
    assert report.notes[0].startswith(f"In 1 sample (q7), {QUERY_TOKEN}/layer_0 is left out: ")


def test_groups_that_are_links_fail(parts):
    with h5py.File(add(parts, {"q7": make_sample(7, LAYERS_32)}), "r+") as file:
        file["q8"] = h5py.ExternalLink(str(parts / "p_part_001.h5"), "/q0")
        file["q9"] = h5py.SoftLink("/q7")
    _, ids, failures = imported(parts)
    assert ids == ["q0", "q1", "q2", "q7"]
    assert [one.partition(": ")[2].partition(": ")[2] for one in failures] == [
        "it is a link to another place or file, which is not followed."
    ] * 2


def test_a_file_that_changes_meanwhile_is_said(parts, monkeypatch):
    from midsight.halp import importing

    survey = importing.survey_parts

    def survey_and_lose(*arguments):
        found = survey(*arguments)
        shutil.rmtree(parts)
        return found

    monkeypatch.setattr(importing, "survey_parts", survey_and_lose)
    with pytest.raises(MidsightError, match="changed while it was read: it is not a file"):
        import_halp(parts, parts.parent / "run")
