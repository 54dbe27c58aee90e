"""`midsight adapter`: types that midsight does not know are proved on a small copy, or refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AyaVisionConfig, AyaVisionForConditionalGeneration, Glm4vConfig
from typer.testing import CliRunner

import midsight
from midsight import MidsightError, load
from midsight.checkpoints.quiet import quiet_transformers
from midsight.cli import app
from midsight.declaring import declare as declaring
from midsight.declaring.small_copy import scaled, small_config, some_of_each
from midsight.families import llava
from midsight.families.catalogue import FAMILIES
from midsight.families.family_file import installed_versions, proof_path
from midsight.testing import write_glm4v, write_glm4v_moe, write_llava, write_qwen3_vl
from support.folders import copy_folder, edit_json
from support.once import once
from support.other_models import write_aya_vision
from support.parity import rgb
from support.pictures import CASES, write_csv
from support.reference import relative_error

ROOT = Path(__file__).parents[2]


def adapter(*arguments):
    return CliRunner().invoke(app, ["adapter", *map(str, arguments)], env={"COLUMNS": "300"})


@pytest.fixture(scope="module", autouse=True)
def not_known():
    """Aya Vision as a family that midsight does not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(FAMILIES, "AyaVisionForConditionalGeneration")
        yield


@pytest.fixture(scope="module")
def aya(run_folder):
    return once(run_folder / "checkpoints" / "aya_vision", write_aya_vision)


@pytest.fixture(scope="module")
def proved(aya, tmp_path_factory):
    """What the command says about Aya Vision, and the file that it writes."""
    file = tmp_path_factory.mktemp("proved") / "aya.py"
    return adapter(aya, "--out", file), file


@pytest.fixture
def own(proved, tmp_path):
    """A copy of the proved file, which a test may change."""
    for path in (proved[1], proof_path(proved[1])):
        shutil.copy(path, tmp_path)
    return tmp_path / "aya.py"


@pytest.mark.slow
def test_what_passes_is_written_as_a_person_would_write_it(proved, aya):
    said, file = proved
    assert said.exit_code == 0, said.output
    assert "limits kept." in said.output
    assert f"--family {file}" in said.output.replace("\n", "")
    text = file.read_text()
    shown = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    assert text.partition("\nSQUARES")[2].strip() in shown
    assert len(text.splitlines()) <= 30
    record = json.loads(proof_path(file).read_text())
    assert {"midsight", "transformers"} == set(record["versions"])
    names = {check["name"] for check in record["checks"]}
    assert {
        "prompts whose token ids differ from the processor's own",
        "the copy tells apart the query token of two images",
    } <= names
    assert len(names) > 40


@pytest.mark.slow
def test_the_numbers_of_the_whole_model_are_those_of_transformers(proved, aya):
    case = CASES[4]
    with quiet_transformers():
        hf_model = AyaVisionForConditionalGeneration.from_pretrained(aya, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(aya)
    content = [{"type": "image", "image": rgb(case.image)}, {"type": "text", "text": case.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    seen = {}
    hf_model.model.vision_tower.register_forward_hook(lambda _, __, output: seen.update(output=output))
    with torch.inference_mode():
        output = hf_model(**inputs, output_hidden_states=True)
    record = load(aya, device="cpu", family=proved[1]).extract(
        case.image, case.question, layers="all", pixels="transformers", max_new_tokens=2
    )
    image = (inputs["input_ids"][0] == hf_model.config.image_token_id).nonzero()[-1, 0]
    for layer, states in enumerate(output.hidden_states[1:]):
        for position, at in (("vision_token", image), ("query_token", -1)):
            vector = record.vectors[f"{position}_representation.layer_{layer}"]
            assert relative_error(vector, states[0, at].numpy()) <= 1e-5
    mean = seen["output"].hidden_states[-1].flatten(0, 1).mean(dim=0).numpy()
    assert relative_error(record.vectors["vision_only_representation"], mean) <= 1e-5
    assert record.image_tokens == (inputs["input_ids"] == hf_model.config.image_token_id).sum()


@pytest.mark.slow
def test_a_run_records_the_file_and_another_file_does_not_resume_it(proved, aya, own, tmp_path):
    data = write_csv(tmp_path, [(60, 40)], ["a,0.png,What?"])
    call = ["extract", str(data), "--model", str(aya), "--device", "cpu", "--out", str(tmp_path / "run")]
    options = ["--max-new-tokens", "2", "--layers", "0"]
    assert CliRunner().invoke(app, [*call, *options, "--family", str(own)]).exit_code == 0
    spec = midsight.open_run(tmp_path / "run").spec.model
    assert (spec.family_file, spec.family, spec.architecture) == (
        str(own), "aya_vision", "AyaVisionForConditionalGeneration",
    )  # fmt: skip
    own.write_text(own.read_text() + "\n# a remark\n")
    edit_json(proof_path(own), lambda record: record.update(sha256=hashlib.sha256(own.read_bytes()).hexdigest()))
    said = CliRunner().invoke(app, [*call, *options, "--family", str(own)])
    assert said.exit_code == 2
    assert f"was started with --family {own} (SHA-256 {(spec.family_sha256 or '')[:16]})" in said.output


@pytest.mark.slow
def test_without_a_proof_of_this_file_nothing_is_extracted(own, aya, tmp_path):
    remedy = rf"; prove it with `midsight adapter MODEL --prove {re.escape(str(own))}`\.$"
    proof, text = proof_path(own), own.read_text()
    content = proof.read_text()

    def refused(why):
        with pytest.raises(MidsightError, match=f"family='{re.escape(str(own))}' {why}{remedy}"):
            load(aya, device="cpu", family=own, weights=False)

    load(aya, device="cpu", family=own, weights=False)
    own.write_text(text.replace("feature=-1", "feature=-2"))
    refused("was changed after its proof")
    own.write_text(text)
    edit_json(proof, lambda record: record["versions"].update(transformers="5.0.0"))
    refused(rf"was proved with transformers 5.0.0, and this is transformers {installed_versions()['transformers']}")
    proof.write_text("{")
    refused(r"has a proof that cannot be read \(.*\)")
    proof.unlink()
    refused(r"has no proof beside it \(aya.proof.json\)")
    proof.write_text(content)
    other = shutil.copytree(aya, tmp_path / "other")
    edit_json(other / "config.json", lambda config: config.update(vision_feature_layer=-2))
    with pytest.raises(MidsightError, match=r"config has vision_feature_layer -1, and .*other has -2; prove"):
        load(other, device="cpu", family=own, weights=False)


@pytest.mark.slow
def test_a_wrong_declaration_is_not_proved(own, aya):
    own.write_text(own.read_text().replace("feature=-1", 'feature="last_hidden_state"'))
    before = proof_path(own).read_text()
    said = adapter(aya, "--prove", own)
    assert said.exit_code == 1
    assert "vision_token at every layer and transformers' full forward: " in said.output
    assert "Nothing was written." in said.output
    assert proof_path(own).read_text() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("FAMILY =", r"does not run \(SyntaxError: invalid syntax.*\); correct it"),
        ("raise SystemError('no')", r"does not run \(SystemError: no\); correct it"),
        ("FAMILY = 3", "has no FAMILY that is a Family; end it with one"),
        (None, r"cannot be read \(No such file or directory\); give a family file"),
    ],
)
def test_a_file_that_declares_nothing_is_named(text, says, tmp_path):
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(MidsightError, match=rf"^family='{file}' {says}"):
        load(tmp_path, family=file)
    said = adapter(tmp_path, "--prove", file)
    assert said.exit_code == 2
    assert said.output.startswith(f"Error: --prove {file} ")


def test_the_file_of_another_class_is_refused(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(Path(llava.__file__).read_text())
    (tmp_path / "config.json").write_text('{"model_type": "aya_vision"}')
    record = {"architecture": llava.FAMILY.architecture, "settings": {}, "versions": installed_versions(), "checks": []}
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    proof_path(file).write_text(json.dumps({**record, "sha256": sha256}))
    with pytest.raises(
        MidsightError, match=r"is for LlavaForConditionalGeneration, and .* has the architecture AyaVision"
    ):
        load(tmp_path, family=file, device="cpu")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "molmo_e", "auto_map": {"AutoModel": "x.X"}}, "runs Python code of its own, which midsight"),
        ({"model_type": "molmo_e"}, "does not load; use a folder that was converted"),
        ({"model_type": "llama"}, "does not list as a model that takes images and text and answers"),
        ({"model_type": "llava"}, "is of the family LLaVA 1.5, which midsight knows; extract from it"),
        ({"model_type": "phi4mm"}, "is of the family Phi-4-multimodal, which midsight knows; extract from it"),
    ],
)  # fmt: skip
def test_what_cannot_be_declared_is_refused_in_one_sentence(config, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = adapter(tmp_path, "--out", tmp_path / "own.py")
    assert said.exit_code == 2
    assert says in said.output.replace("\n", " ")
    assert len(said.output.strip().splitlines()) == 1
    assert not (tmp_path / "own.py").exists()


def test_an_encoder_of_timms_is_refused(aya, tmp_path):
    """Its settings may name a place on the hub, which would be asked for its config."""
    other = copy_folder(aya, tmp_path / "model")
    encoder = {"model_type": "timm_wrapper", "architecture": "hf-hub:some/model"}
    edit_json(other / "config.json", lambda config: config.update(vision_config=encoder))
    said = adapter(other, "--out", tmp_path / "own.py")
    assert said.exit_code == 2
    assert "has the encoder timm_wrapper, which midsight does not know" in said.output


@pytest.mark.slow
def test_what_is_open_is_named_and_nothing_is_written(tmp_path):
    """ViP-LLaVA joins features of five layers, which no shape does."""
    folder = vip_llava(tmp_path / "vip")
    said = adapter(folder, "--out", tmp_path / "own.py")
    assert said.exit_code == 1, said.output
    assert f"1 thing open for {folder} (vipllava):" in said.output
    assert "vision_feature_layer [-2, -5, -8, -11, 6]" in said.output
    assert "Nothing was written." in said.output
    assert [*tmp_path.glob("own*")] == []


def vip_llava(folder):
    """LLaVA 1.5's processor with the config of ViP-LLaVA; no weights are read."""
    write_llava(folder, layers=1)
    (folder / "model.safetensors").unlink()

    def edit(config):
        config.update(model_type="vipllava", architectures=["VipLlavaForConditionalGeneration"])
        config.update(vision_feature_layer=[-2, -5, -8, -11, 6])

    edit_json(folder / "config.json", edit)
    return folder


@pytest.mark.slow
def test_a_class_of_a_known_shape_is_declared_by_that_family(monkeypatch, tmp_path):
    """Qwen3-VL with experts in its decoder."""
    monkeypatch.delitem(FAMILIES, "Qwen3VLMoeForConditionalGeneration", raising=False)
    outcome = declaring.declare(qwen3_vl_moe(tmp_path / "moe"), out=tmp_path / "own.py")
    assert outcome.open == ()
    text = (tmp_path / "own.py").read_text()
    assert "FAMILY = replace(\n    qwen3_vl.FAMILY,\n" in text
    assert 'architecture="Qwen3VLMoeForConditionalGeneration",\n    prompt=' in text, "its modules are Qwen3-VL's"


def qwen3_vl_moe(folder):
    """Qwen3-VL's processor with the config of its mixture of experts; no weights are read."""
    write_qwen3_vl(folder, layers=3)
    (folder / "model.safetensors").unlink()
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}

    def edit(config):
        config.update(model_type="qwen3_vl_moe", architectures=["Qwen3VLMoeForConditionalGeneration"])
        config["text_config"].update(model_type="qwen3_vl_moe_text", **experts)
        config["vision_config"].update(model_type="qwen3_vl_moe_vision")

    edit_json(folder / "config.json", edit)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Glm46VForConditionalGeneration", "Glm4vMoeForConditionalGeneration"])
def test_glm_of_another_class_is_declared_by_glm(monkeypatch, tmp_path, architecture):
    """GLM-4.6V-Flash, which midsight does not have; and GLM-4.5V with its experts, as long as it did not."""
    monkeypatch.delitem(FAMILIES, architecture, raising=False)
    has_experts = architecture.startswith("Glm4vMoe")
    folder = (write_glm4v_moe if has_experts else write_glm4v)(tmp_path / "model", layers=3)
    (folder / "model.safetensors").unlink()
    if not has_experts:
        changed = {"model_type": "glm46v", "architectures": [architecture]}
        edit_json(folder / "config.json", lambda config: config.update(changed))
    edit_json(folder / "config.json", widen_glm)
    outcome = declaring.declare(folder, out=tmp_path / "own.py")
    assert outcome.open == ()
    assert "FAMILY = replace(\n    glm4v.FAMILY,\n" in (tmp_path / "own.py").read_text()


def widen_glm(config):
    """The published widths; half of each head is turned."""
    text = config["text_config"]
    text.update(hidden_size=4096, num_attention_heads=32, num_key_value_heads=2)
    text["rope_parameters"]["mrope_section"] = [8, 12, 12]
    if "head_dim" in text:
        text["head_dim"] = 128
    config["vision_config"].update(hidden_size=1536, num_heads=12, out_hidden_size=4096)


def test_a_copy_is_small_and_has_every_kind_of_layer():
    text = {"model_type": "cohere2", "num_hidden_layers": 40, "num_attention_heads": 64, "num_key_value_heads": 8}
    config = AyaVisionConfig(text_config=text)
    small = small_config(config)
    decoder, encoder = small.get_text_config(), small.vision_config
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.head_dim) == (64, 6, 16)
    assert (decoder.num_attention_heads, decoder.num_key_value_heads, decoder.sliding_window) == (4, 2, 40)
    assert {*decoder.layer_types} == {"sliding_attention", "full_attention"}
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.image_size) == (64, 4, 384)
    assert config.get_text_config().num_hidden_layers == 40
    assert some_of_each(["a"] * 10 + ["b", "c"], 4) == ["a", "a", "c", "b"]
    assert scaled([24, 20, 20], 8) == [3, 2, 3]


@pytest.mark.parametrize(("part", "sections"), [(1.0, [2, 3, 3]), (0.5, [1, 1, 2])])
def test_positions_with_three_axes_fit_the_part_of_a_head_that_is_turned(part, sections):
    """GLM turns half of each head."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part, "mrope_section": [8, 12, 12]}
    decoder = small_config(Glm4vConfig(text_config={"rope_parameters": rope})).get_text_config()
    assert decoder.rope_parameters["mrope_section"] == sections


@pytest.mark.slow
def test_a_family_that_was_not_known_would_be_declared_as_ours_is(monkeypatch, tmp_path):
    folder = write_llava(tmp_path / "model", layers=2)
    by_hand = load(folder, device="cpu").extract(CASES[4].image, CASES[4].question, layers="all", max_new_tokens=4)
    monkeypatch.delitem(FAMILIES, "LlavaForConditionalGeneration")
    with pytest.raises(MidsightError, match="midsight adapter"):
        load(folder, device="cpu")
    outcome = declaring.declare(folder, out=tmp_path / "own.py")
    assert outcome.open == ()
    model = load(folder, device="cpu", family=tmp_path / "own.py")
    filled, ours = model.loaded.family, llava.FAMILY
    assert (filled.modules, filled.stored) == (ours.modules, ours.stored)
    assert filled.prompt.image_token == ours.prompt.image_token
    assert filled.vision.feature_source == ours.vision.feature_source.replace("vision", "model.vision", 1)
    record = model.extract(CASES[4].image, CASES[4].question, layers="all", max_new_tokens=4)
    assert record.vectors.keys() == by_hand.vectors.keys()
    for name, vector in by_hand.vectors.items():
        np.testing.assert_array_equal(record.vectors[name], vector)
    assert record.answer_token_ids == by_hand.answer_token_ids
