"""PEFT adapters' folders as models: the numbers of PEFT's own merged model, for every family."""

import copy
import json
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

import midsight
from midsight.check.facts import read_facts
from midsight.check.proof import prove
from support.family_reference import FamilyReference
from support.folders import (
    assert_sentence,
    copy_folder,
    edit_json,
    edit_tensors,
    said_by,
    write_native,
    write_published,
)
from support.molmo2_layout import publish_molmo2
from support.parity import LIMIT, assert_parity, expect
from support.pictures import CASES
from support.reference import Reference, load_reference_model, relative_error

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
"""PEFT asks transformers for a property under its old name, and comments on unusual adapters."""

TARGETS = {
    "phi4_multimodal": r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.down_proj)",
    "mllama": r".*language_model\.layers\.\d+\.((self_attn|cross_attn)\.(q|v)_proj|mlp\.down_proj)|lm_head",
    "qwen2_5_vl": r".*language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.down_proj)|.*blocks\.\d\.attn\.qkv",
    "qwen2_vl": r".*language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.down_proj)|lm_head",
    "glm4v_moe": r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj",  # PEFT takes down_proj for that of experts
}
OTHER_TARGETS = r".*(language_model|text_model)(\.model)?\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.down_proj)"
CASE = CASES[4]


def lora_config(name, **options) -> Any:
    given: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS.get(name, OTHER_TARGETS),
        "init_lora_weights": False,
    }
    return peft.LoraConfig(**{**given, **options})


def tune(model, config, out, seed=0):
    """An adapter with random weights in a folder, and PEFT's model with it."""
    torch.manual_seed(seed)
    tuned: Any = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and ".lora_" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save_pretrained(out)
    return tuned


def tuned_reference(name, family, folder, out):
    """transformers' own procedure on PEFT's merged model."""
    if name != "phi4_multimodal":
        reference: Any = FamilyReference(folder, family)
        reference.model = tune(reference.model, lora_config(name), out).merge_and_unload()
        return reference
    reference = Reference(folder)
    model = tune_phi4(folder, out)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    reference.states_model, reference.generating_model = model, copy.deepcopy(model)
    return reference


def tune_phi4(folder, out):
    """An adapter in a folder, and transformers' model with it and the LoRA for images on, both PEFT's layers."""
    config = lora_config("phi4_multimodal", base_model_name_or_path=str(folder))
    model = load_reference_model(folder)
    torch.manual_seed(0)
    peft.inject_adapter_in_model(config, model, adapter_name="mine")
    state = peft.get_peft_model_state_dict(model, adapter_name="mine")
    config.save_pretrained(out)
    save_file({f"base_model.model.{key}": tensor for key, tensor in state.items()}, out / "adapter_model.safetensors")
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.set_adapter([one for one in ("vision", "mine") if one in layer.lora_A])
    return model


@pytest.fixture(scope="package")
def adapter(name, family, folder, tmp_path_factory):
    """An adapter's folder, and what PEFT's merged model gives for one case."""
    out = tmp_path_factory.mktemp("adapter") / name
    reference = tuned_reference(name, family, folder, out)
    return out, expect(reference, [CASE.image], CASE.question, new_tokens=6)


def record_of(model):
    return model.extract(
        CASE.image,
        CASE.question,
        layers="all",
        residual=True,
        positions="vision_token,query_token,image_mean",
        max_new_tokens=6,
    )


@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_its_numbers_are_those_of_pefts_merged_model(adapter, folder, model, lora):
    out, expected = adapter
    loaded = midsight.load(out, device="cpu", lora=lora)  # the adapter names its base model
    record = record_of(loaded)
    assert_parity(record, expected)
    plain = model.extract(CASE.image, CASE.question, layers="all", answers=False)
    column = "query_token_representation.layer_3"
    assert relative_error(record.vectors[column], plain.vectors[column]) > 0.01
    assert loaded.loaded.lora == lora
    assert loaded.loaded.adapter is not None
    assert loaded.loaded.adapter.base == str(folder)
    assert loaded.loaded.notes[0] == f"{out} is an adapter of {folder}."


def test_check_and_load_say_the_same(adapter, folder, model):
    out, _ = adapter
    facts, loaded = read_facts(out), midsight.load(out, device="cpu", weights=False).loaded
    origin = loaded.adapter
    assert origin is not None
    assert facts.fingerprint == loaded.fingerprint == origin.fingerprint
    assert origin.base_fingerprint == model.loaded.fingerprint
    assert len({facts.fingerprint, origin.base_fingerprint, origin.adapter_fingerprint}) == 3
    assert (facts.base, facts.folder, facts.adapter_folder) == (str(folder), str(folder), str(out))
    assert facts.parameters["adapter"] == sum(t.numel() for t in load_file(out / "adapter_model.safetensors").values())


@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_the_published_format_takes_it_too(tmp_path, lora):
    """The numbers are those of the same weights in transformers' format."""
    native = write_native(tmp_path / "native")
    published = write_published(tmp_path / "published", native)
    tune_phi4(native, tmp_path / "adapter")
    ours, theirs = (
        midsight.load(tmp_path / "adapter", base=base, device="cpu", lora=lora).extract(
            CASE.image, CASE.question, layers="all", answers=False
        )
        for base in (published, native)
    )
    assert max(relative_error(ours.vectors[name], vector) for name, vector in theirs.vectors.items()) <= LIMIT
    plain = midsight.load(published, device="cpu").extract(CASE.image, CASE.question, layers=[1], answers=False)
    assert relative_error(ours.query_token_representation[1], plain.query_token_representation[1]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["molmo2"], indirect=True)
@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_a_folder_that_stores_several_weights_as_one_tensor_takes_it_too(adapter, folder, tmp_path, lora):
    out, expected = adapter
    published = publish_molmo2(copy_folder(folder, tmp_path / "published"))
    assert_parity(record_of(midsight.load(out, base=published, device="cpu", lora=lora)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
def test_the_proof_holds_for_an_adapter(adapter):
    """Also that its layers compute what its files say, and that it changes something."""
    out, _ = adapter
    proof = prove(out, device="cpu")
    names = {check.name for check in proof.checks}
    assert {"LoRA off and on", "layers with LoRA and W x + alpha / rank B A x from the files"} <= names
    assert [check for check in proof.checks if not check.passed] == []


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
def test_a_run_records_base_and_adapter(adapter, folder, tmp_path):
    out, _ = adapter
    model = midsight.load(out, base=folder, device="cpu")
    midsight.extract([(CASE.image, "What?")], model=model, out=tmp_path / "run", layers=[0], answers=False)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    origin = model.loaded.adapter
    assert origin is not None
    assert (stored["name"], stored["base"], stored["lora"]) == (str(out), str(folder), "merged")
    assert stored["base_fingerprint"] == origin.base_fingerprint
    assert stored["adapter_fingerprint"] == origin.adapter_fingerprint
    assert stored["fingerprint"] == origin.fingerprint


@pytest.fixture(scope="module")
def base(family, folder):
    """PEFT changes the model that it gets, so each test takes a copy."""
    return family.model.from_pretrained(folder, dtype=torch.float32).eval()


def merged_weights(model):
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def assert_same_weights(out, reference):
    """Every weight of midsight's merged model, against PEFT's."""
    ours, theirs = merged_weights(midsight.load(out, device="cpu").loaded.hf_model), merged_weights(reference)
    assert ours.keys() == theirs.keys()
    errors = {
        name: float((ours[name] - tensor).norm() / tensor.norm().clamp(min=1e-9)) for name, tensor in theirs.items()
    }
    assert max(errors.values()) <= LIMIT, max(errors, key=errors.__getitem__)


OPTIONS = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {r".*\.v_proj": 3}},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1, 3]},
    "all but some": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.2\..*"},
    "whole modules": {"modules_to_save": ["lm_head", "norm"]},
    "biases": {"bias": "all", "target_modules": ["q_proj"]},
    "names of layers": {"target_modules": "all-linear"},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_peft_does_with_an_option_is_done(base, tmp_path, option):
    tuned = tune(copy.deepcopy(base), lora_config("qwen2_vl", **OPTIONS[option]), tmp_path / "adapter")
    assert_same_weights(tmp_path / "adapter", tuned.merge_and_unload())


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
def test_names_of_tensors_as_transformers_4_has_them(base, tmp_path):
    tuned = tune(copy.deepcopy(base), lora_config("qwen2_vl"), tmp_path / "adapter")

    def rename(tensors):
        for name in list(tensors):
            older = name.replace(".model.language_model.", ".model.").replace(".model.visual.", ".visual.")
            tensors[older] = tensors.pop(name)

    edit_tensors(tmp_path / "adapter" / "adapter_model.safetensors", rename)
    edit_json(
        tmp_path / "adapter" / "adapter_config.json",
        lambda config: config.update(target_modules=["q_proj", "v_proj", "down_proj", "lm_head"]),
    )
    assert_same_weights(tmp_path / "adapter", tuned.merge_and_unload())


REFUSED = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "Conv3d": {"target_modules": r".*patch_embed\.proj"},
}


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_more_than_a_lora_is_refused_by_name(base, tmp_path, kind):
    tune(copy.deepcopy(base), lora_config("qwen2_vl", **REFUSED[kind]), tmp_path / "adapter")
    for call in (read_facts, midsight.load):
        said = said_by(call, tmp_path / "adapter")
        assert said is not None
        assert_sentence(said)
        assert kind in said
        assert "midsight.wrap" in said


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
def test_a_checkpoint_folder_of_a_trainer(adapter, folder, tmp_path):
    """With the base model's config.json, as some trainers write it, and what others keep."""
    out, _ = adapter
    checkpoint = copy_folder(out, tmp_path / "checkpoint-500")
    (checkpoint / "config.json").write_bytes((folder / "config.json").read_bytes())
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (checkpoint / name).write_bytes(b"\x80")
    (checkpoint / "global_step500").mkdir()
    facts = read_facts(checkpoint)
    assert (facts.base, facts.adapter_folder) == (str(folder), str(checkpoint))
    assert facts.parameters == read_facts(out).parameters


@pytest.fixture
def broken(adapter, tmp_path):
    out, _ = adapter
    return copy_folder(out, tmp_path / "adapter")


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
class TestSentences:
    """Adapters that cannot be loaded."""

    def refuse(self, folder, *names, **options):
        said = said_by(midsight.load, folder, device="cpu", **options)
        assert said is not None
        assert_sentence(said)
        assert all(name in said for name in names), said
        if not options:
            assert said == said_by(read_facts, folder)

    def test_a_pickle(self, broken):
        (broken / "adapter_model.safetensors").unlink()
        torch.save({}, broken / "adapter_model.bin")
        self.refuse(broken, "adapter_model.bin", "save_pretrained")

    @pytest.mark.parametrize("named", [None, "", 3])
    def test_no_base_model(self, broken, named):
        edit_json(broken / "adapter_config.json", lambda config: config.update(base_model_name_or_path=named))
        self.refuse(broken, "base")

    @pytest.mark.parametrize("file", ["non_lora_state_dict.bin", "non_lora_trainables.bin"])
    def test_weights_that_were_trained_beside_the_lora(self, broken, file):
        (broken / file).write_bytes(b"\x80")
        self.refuse(broken, file, "merged model")

    def test_a_setting_that_a_newer_peft_may_have(self, broken):
        edit_json(broken / "adapter_config.json", lambda config: config.update(use_other=False))
        assert said_by(read_facts, broken) is None
        edit_json(broken / "adapter_config.json", lambda config: config.update(use_other=True))
        self.refuse(broken, "use_other", "midsight.wrap")

    def test_a_base_model_that_is_a_folder_of_the_trainers(self, broken, monkeypatch):
        """It looks like a hub id."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        edit_json(broken / "adapter_config.json", lambda config: config.update(base_model_name_or_path="models/mine"))
        self.refuse(broken, str(broken), "base", "models/mine")

    def test_a_base_model_that_is_elsewhere(self, broken):
        edit_json(
            broken / "adapter_config.json", lambda config: config.update(base_model_name_or_path="/data/models/x")
        )
        self.refuse(broken, "/data/models/x", "base")

    def test_a_base_model_of_another_size(self, broken, family, tmp_path):
        other = family.write(tmp_path / "other", layers=2)
        self.refuse(broken, "Qwen2-VL", base=other)

    def test_an_adapter_of_an_adapter(self, broken):
        self.refuse(broken, "adapter itself", base=broken)

    def test_a_base_for_a_whole_model(self, folder):
        self.refuse(folder, "base=", base=folder)

    def test_a_quantised_base_model(self, broken, folder, tmp_path):
        base = copy_folder(folder, tmp_path / "quantised")
        edit_json(base / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq"}))
        self.refuse(broken, "quantised", "base", base=base)
