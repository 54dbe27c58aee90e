"""Folders of every family: published sizes, names that older checkpoints have, damage, the run folder."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MllamaForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm

import midsight
from midsight.check.facts import read_facts
from midsight.check.full_forward import largest_error, relative_error
from midsight.checkpoints.hub import refuse_unknown_family
from midsight.comparison.rows import describe_model
from midsight.comparison.table import cells
from midsight.families.family import TIMM
from midsight.families.mllama import FAMILY
from midsight.reports.summary import summarise
from midsight.taps.tap import choose_layers
from support.family_reference import WITHOUT_PHI, FamilyReference
from support.folders import assert_sentence, copy_folder, edit_json, replace_file, said_by
from support.molmo2_layout import publish_molmo2
from support.parity import LIMIT, assert_parity, expect, rgb
from support.pictures import CASES, picture

FACTS = Path(os.environ.get("MIDSIGHT_FACTS", Path(__file__).parents[3] / "shared" / "facts")) / "mllama"

LLAVA_NAMES = {
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.vision_tower\.": "vision_tower.vision_model.",
    r"^model\.(multi_modal_projector\.|image_newline)": r"\1",
}
INTERNVL_NAMES = {name: new for name, new in LLAVA_NAMES.items() if "vision_tower" not in name} | {
    r"^model\.vision_tower\.": "vision_tower."
}
PUBLISHED_NAMES = {
    "mllama": {
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head\.": "language_model.lm_head.",
        r"^model\.(vision_model|multi_modal_projector)\.": r"\1.",
    },
    "qwen2_5_vl": {r"^model\.visual\.": "visual.", r"^model\.language_model\.": "model."},
    "qwen2_vl": {r"^model\.visual\.": "visual.", r"^model\.language_model\.": "model."},
    "llava": LLAVA_NAMES,
    "llava_next": LLAVA_NAMES,
    "llava_onevision": LLAVA_NAMES,
    "gemma3": LLAVA_NAMES,
    "aya_vision": LLAVA_NAMES,
    "mistral3": INTERNVL_NAMES,
    "pixtral": INTERNVL_NAMES,
    "paligemma": LLAVA_NAMES,
    "internvl": INTERNVL_NAMES,
    "qwen3_vl": {},
    "glm4v": {},
    "glm4v_moe": {},
    "deepseek_vl": {},
    "deepseek_vl_hybrid": {},
    "ovis2": {},
    "qwen3_vl_moe": {},
    "qwen3_5": {},
    "qwen3_5_moe": {},
    "gemma3n": {},
    "gemma4": {},
    "idefics3": {},
    "smolvlm": {},
    "llama4": {},
    "fast_vlm": {},
}
"""Native name to the one in the published files; empty if they are the same."""


def rename(folder, names):
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        for native, published in names.items():
            if re.match(native, name):
                name = re.sub(native, published, name)
                break
        renamed[name] = tensor
    assert not names or not set(renamed) & set(tensors) - {"lm_head.weight"}
    (folder / "model.safetensors").unlink()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def turn_experts(folder):
    """Inputs before outputs in the weights of experts, as the published files have them."""
    tensors = load_file(folder / "model.safetensors")
    turned = {name: one.transpose(1, 2).contiguous() if ".experts." in name else one for name, one in tensors.items()}
    assert [name for name, one in turned.items() if one.shape != tensors[name].shape]
    (folder / "model.safetensors").unlink()
    save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})


def publish_settings(name, folder):
    """Config and processor as the published folders have them."""
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    settings = processor.pop("image_processor")
    if name.startswith("qwen2"):
        flatten_config(folder / "config.json")
        size = settings.pop("size")
        settings |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if name in ("mistral3", "pixtral"):  # it does not say that the head is not the embedding
        edit_json(folder / "config.json", lambda config: config.pop("tie_word_embeddings"))
    if name == "gemma3":
        shorten_rotary_settings(folder / "config.json")
    if name == "llama4":
        edit_json(folder / "config.json", older_rotary_settings)
    if name == "glm4v_moe":
        edit_json(folder / "config.json", lambda config: spread_rotary_settings(config["text_config"]))
    if name == "gemma3n":
        edit_json(folder / "config.json", lambda config: split_rotary_settings(config["text_config"]))
    if not name.startswith(("mllama", "qwen", "glm4v")):
        replace_file(path, json.dumps(processor).encode())
        template = folder / "chat_template.jinja"
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
        template.unlink()
    else:
        path.unlink()


def split_rotary_settings(text):
    """Those of Gemma 3n, which the published folder has in fields of their own."""
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["full_attention"]["rope_theta"]
    text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]


def spread_rotary_settings(text):
    """Those of GLM-4.5V, which the published folder has in three fields; and what transformers' config leaves out."""
    rope = text.pop("rope_parameters")
    text |= {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    text |= {"rope_scaling": rope, "use_qk_norm": False}


def shorten_rotary_settings(path):
    """The rotary settings as the published Gemma folders have them; the kinds of layers follow from their number."""
    config = json.loads(path.read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")["full_attention"]
    text |= {"rope_scaling": {"rope_type": rope["rope_type"], "factor": rope["factor"]}}
    del text["layer_types"]
    replace_file(path, json.dumps(config).encode())


def older_rotary_settings(config):
    """The rotary settings as the published Llama 4 folders have them."""
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    del text["layer_types"]
    vision["rope_theta"] = vision.pop("rope_parameters")["rope_theta"]


def flatten_config(path):
    """The decoder's fields beside the others, as in the published Qwen folders."""
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    config |= {key: value for key, value in text.items() if key not in {"model_type", "layer_types", "dtype"}}
    config |= {"rope_theta": rope["rope_theta"]}
    config |= {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    replace_file(path, json.dumps(config).encode())


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_PHI, indirect=True)
def test_the_published_format_gives_the_same_numbers_and_parts(name, family, folder, model, tmp_path):
    folder = copy_folder(folder, tmp_path / "published")
    native = read_facts(folder)
    if name == "molmo2":
        publish_molmo2(folder)
    else:
        rename(folder, PUBLISHED_NAMES[name])
        publish_settings(name, folder)
    if name == "qwen3_vl_moe":
        turn_experts(folder)
    facts = read_facts(folder)
    assert facts.parameters == native.parameters
    assert set(facts.parameters) >= {"vision encoder", "decoder", "token embedding"}
    assert ("language-model head" in facts.parameters) is not family.tied
    records = [m.extract(CASES[3].image, "What is it?", max_new_tokens=3) for m in (midsight.load(folder), model)]
    assert largest_error(*records) == 0
    assert records[0].answer_token_ids == records[1].answer_token_ids


@pytest.mark.parametrize("name", ["qwen2_5_vl"], indirect=True)
def test_a_head_tied_to_the_embedding_is_not_stored(family, tmp_path):
    """As in the smaller Qwen2.5-VL."""
    folder = family.write(tmp_path / "tied")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "language-model head" not in read_facts(folder).parameters
    record = midsight.load(folder).extract(CASES[3].image, "What is it?", layers="all", residual=True, max_new_tokens=6)
    expected = expect(FamilyReference(folder, family), [CASES[3].image], "What is it?", new_tokens=6)
    vectors = {name: vector for name, vector in expected.vectors.items() if name in record.vectors}
    assert_parity(record, replace(expected, vectors=vectors))


@pytest.mark.skipif(not FACTS.is_dir(), reason="the published Llama 3.2 files are not here; set MIDSIGHT_FACTS")
def test_llama_has_the_published_sizes():
    config: Any = AutoConfig.from_pretrained(FACTS)
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == json.loads((FACTS / "native_state_dict_shapes.json").read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(10.67e9, abs=0.005e9)
    assert FAMILY.vision.width(config) == 7680
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (40, 4096)
    assert choose_layers("default", config.text_config.num_hidden_layers) == (0, 10, 20, 30, 39)
    assert len(model.get_submodule(FAMILY.modules.layers)) == 40  # pyright: ignore[reportArgumentType]
    assert config.image_token_index == 128256
    for path in asdict(FAMILY.modules).values():
        assert model.get_submodule(path) is not None


def test_a_run_holds_its_columns_and_flags_the_constant_one(name, model, tmp_path):
    pairs = [(picture((60 + 40 * seed, 90), seed), f"What is number {seed}?") for seed in range(3)]
    run = midsight.extract(pairs, model=model, out=tmp_path / "run", max_new_tokens=4, batch_size=2)
    assert run.failures() == []
    n = model.loaded.n_layers
    for layer in sorted({0, n // 4, n // 2, 3 * n // 4, n - 1}):
        matrix = run.matrix("vision_token_representation", layer=layer)
        assert matrix.shape == (3, model.loaded.hidden_size)
        assert np.isfinite(matrix).all()
    width = model.loaded.family.vision.width(model.loaded.config)
    assert run.matrix("vision_only_representation").shape == (3, width)
    constant = {vector.name for vector in summarise(run).vectors if vector.constant}
    # in Llama 3.2 Vision the image enters at the first cross-attention, layer 2 of this checkpoint
    assert constant == ({"vision_token_representation.layer_0"} if name == "mllama" else set())


@pytest.mark.parametrize("name", ["smolvlm"], indirect=True)
def test_without_the_package_of_its_processor(folder, model, tmp_path, monkeypatch):
    """The image processor and the tokenizer's template are enough; a template of the processor alone is not."""
    folder = copy_folder(folder, tmp_path / "model")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    records = [m.extract(CASES[3].image, "What is it?", max_new_tokens=3) for m in (midsight.load(folder), model)]
    assert largest_error(*records) == 0
    assert records[0].answer_token_ids == records[1].answer_token_ids
    publish_settings("smolvlm", folder)
    said = said_by(midsight.load, folder, device="cpu")
    assert said is not None
    assert_sentence(said)
    assert "`pip install num2words`" in said


@pytest.mark.parametrize("name", ["fast_vlm"], indirect=True)
class TestFastVlm:
    """What its encoder, which is timm's, needs and must not be given."""

    @pytest.fixture
    def other(self, folder, tmp_path):
        return copy_folder(folder, tmp_path / "model")

    def refuse(self, folder, *names):
        for call in (midsight.load, read_facts, lambda one: describe_model(str(one))):
            said = said_by(call, folder)
            assert said is not None
            assert_sentence(said)
            assert [name for name in names if name not in said] == []

    def test_without_timm_it_is_named(self, other, monkeypatch):
        monkeypatch.setattr("midsight.families.family.find_spec", lambda package: None)
        for call in (midsight.load, read_facts, lambda one: refuse_unknown_family(one, "some/model", None)):
            said = said_by(call, other)
            assert said is not None
            assert_sentence(said)
            assert said.startswith("FastVLM needs the package timm, ")
            assert "`pip install 'midsight[fastvlm]'`" in said
        row = describe_model(str(other))
        assert (row.vision_width, row.parameters, row.lacks) == (64, {}, "timm")
        assert cells(row)["parameters"] == "not counted: timm is not installed"

    @pytest.mark.parametrize(
        "changed",
        [
            {"architecture": "hf-hub:some/model"},
            {"architecture": "resnet18"},
            {"model_args": {"checkpoint_path": "model.safetensors"}},
            {"model_args": {"inference_mode": True, "pretrained_cfg": {"file": "weights.bin"}}},
        ],
    )
    def test_an_encoder_that_could_load_other_weights_is_refused(self, other, changed):
        edit_json(other / "config.json", lambda config: config["vision_config"].update(changed))
        self.refuse(other, "fastvit_mci3", "inference_mode")

    def test_the_published_format_is_refused_by_name(self, other):
        fields = {"model_type": "llava_qwen2", "architectures": ["LlavaQwen2ForCausalLM"]}
        edit_json(other / "config.json", lambda config: config.update(fields))
        for call in (midsight.load, read_facts):
            said = said_by(call, other)
            assert said is not None
            assert "llava_qwen2" in said
            assert "without remote code" in said

    def test_the_mean_is_what_the_encoder_pools(self, model, reference):
        """timm's own average pool, of which transformers keeps no trace."""
        inputs = reference.inputs([rgb(CASES[0].image)], "What?")
        with torch.inference_mode():
            output = reference.model.model.vision_tower(inputs["pixel_values"])
        record = model.extract(CASES[0].image, "What?", layers=[0], answers=False)
        assert relative_error(record.vision_only_representation, output.pooler_output[0].numpy()) <= LIMIT


@pytest.mark.parametrize("name", ["llava"], indirect=True)
def test_an_encoder_of_timms_in_another_family_is_refused(folder, tmp_path):
    """Its settings may name a place on the hub, which would be asked for its config."""
    other = copy_folder(folder, tmp_path / "model")
    encoder = {"model_type": "timm_wrapper", "architecture": "hf-hub:some/model", "hidden_size": 16}
    edit_json(other / "config.json", lambda config: config.update(vision_config=encoder))
    for call in (midsight.load, read_facts, lambda one: describe_model(str(one))):
        said = said_by(call, other)
        assert said is not None
        assert "has the encoder timm_wrapper" in said


@pytest.mark.parametrize(
    ("name", "part", "encoder"),
    [
        ("deepseek_vl_hybrid", "high_res_vision_config", "timm_wrapper"),
        ("llava", "text_config", "timm_wrapper"),
        ("llava", "vision_config", "gemma3n_vision"),
        ("fast_vlm", "text_config", "timm_wrapper"),
    ],
    indirect=["name"],
    scope="package",
)
def test_an_encoder_of_timms_in_any_part_of_the_config_is_refused(folder, tmp_path, monkeypatch, part, encoder):
    """transformers makes the class of a part from its `model_type`, whatever the part is for."""
    asked = []
    monkeypatch.setattr("timm.create_model", lambda *args, **options: asked.append(args))
    other = copy_folder(folder, tmp_path / "model")
    named = {"model_type": encoder, "architecture": "hf-hub:some/model"}
    edit_json(other / "config.json", lambda config: config[part].update(named))
    for call in (midsight.load, read_facts, lambda one: describe_model(str(one))):
        said = said_by(call, other)
        assert asked == []
        assert said is not None
        assert_sentence(said)
        assert f"has the encoder {encoder}, which midsight does not know" in said


def test_all_types_of_timms_encoders_are_known():
    classes = {**MODEL_MAPPING_NAMES, **MODEL_FOR_BACKBONE_MAPPING_NAMES}
    assert {kind for kind, made in classes.items() if "Timm" in str(made)} == {*TIMM}


def edit(path, **fields):
    content = json.loads(path.read_text())
    (content.get("image_processor") or content).update(fields)
    replace_file(path, json.dumps(content).encode())


@pytest.mark.parametrize("name", WITHOUT_PHI, indirect=True)
def test_a_processor_that_does_not_fit_the_encoder_is_refused(family, folder, tmp_path):
    folder = copy_folder(folder, tmp_path / "model")
    edit(folder / "processor_config.json", **family.misfit)
    said = said_by(midsight.load, folder, device="cpu")
    assert said is not None
    assert "preprocessor_config.json" in said
    assert said.endswith("; download the folder again.")


@pytest.mark.parametrize("name", WITHOUT_PHI, indirect=True)
def test_a_lora_option_is_refused_where_the_family_has_none(folder):
    said = said_by(midsight.load, folder, device="cpu", lora="merged")
    assert said is not None
    assert said.startswith("lora='merged' needs a LoRA beside the weights")
