"""One set of weights in every format: the same numbers, from load to the stored vector."""

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoProcessor, Phi4MultimodalForCausalLM

import midsight
from support.folders import LAYERS, copy_folder, edit_json, edit_published, edit_tensors, load_all
from support.pictures import picture
from support.reference import load_reference_model, relative_error

IMAGE = picture((300, 200), 1)
PAIRS = [(IMAGE, "What is this?"), (IMAGE, "Is there a red circle in the image?")]
TARGETS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
ADAPTED = [f"model.layers.{n}.{target}.weight" for n in range(LAYERS) for target in TARGETS]
SCALE = 2.0
FORMATS = ("published", "native", "native merged")


@dataclass(frozen=True)
class Numbers:
    """What a run stored."""

    vectors: dict[str, np.ndarray]
    answers: list[list[int]]
    lora: str
    format: str

    def error(self, reference):
        """The largest ||a - b|| / ||b|| over all vectors of all samples."""
        assert self.vectors.keys() == reference.vectors.keys()
        return max(
            (np.linalg.norm(self.vectors[name] - other, axis=1) / np.linalg.norm(other, axis=1)).max()
            for name, other in reference.vectors.items()
        )


def numbers(folder, out, **options):
    """The four outputs at all layers, loaded from `folder`, stored, and read back."""
    model = midsight.load(folder, device="cpu", **options)
    request = {"layers": "all", "positions": "vision_token,query_token", "residual": True, "max_new_tokens": 5}
    run = midsight.extract(PAIRS, model=model, out=out, **request)
    assert run.failures() == []
    recorded = json.loads((out / "run.json").read_text())["model"]
    vectors = {name: run.matrix(name) for name in run.vector_columns}
    assert len(vectors) == 1 + 2 * (LAYERS + 1)
    assert recorded["lora"] == model.loaded.lora
    return Numbers(vectors, run.table()["answer_token_ids"].to_pylist(), recorded["lora"], recorded["format"])


def lora_product(folder):
    """B A in float32 of every adapted weight, from a native folder's adapter."""
    adapter = load_file(folder / "vision-lora" / "adapter_model.safetensors")

    def factor(target, letter):
        return adapter[f"base_model.model.{target.removesuffix('.weight')}.lora_{letter}.weight"].float()

    return {target: factor(target, "B") @ factor(target, "A") for target in ADAPTED}


def merge_by_hand(source, folder):
    """The native folder with its LoRA added to the weights, in float32, and no adapter beside them."""
    copy_folder(source, folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "vision-lora" / name).unlink()
    (folder / "vision-lora").rmdir()
    tensors = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    for target, product in lora_product(source).items():
        tensors[target] += SCALE * product
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: config.update(dtype="float32"))
    return folder


@pytest.fixture(scope="module")
def formats(folders, tmp_path_factory):
    """The same weights in three formats."""
    native = folders["transformers"]
    merged = merge_by_hand(native, tmp_path_factory.mktemp("merged") / "folder")
    return {"native": native, "published": folders["published phi4mm"], "native merged": merged}


@pytest.fixture(scope="module")
def stored(formats, tmp_path_factory):
    """Numbers of every format with its LoRA in every way."""
    runs = tmp_path_factory.mktemp("runs")
    ways = [(folder_format, lora) for folder_format in FORMATS[:2] for lora in ("merged", "unmerged", "off")]
    return {
        (folder_format, lora): numbers(formats[folder_format], runs / f"{folder_format} {lora}", lora=lora)
        for folder_format, lora in [*ways, ("native merged", "auto")]
    }


@pytest.mark.slow
@pytest.mark.parametrize("folder_format", FORMATS[:2])
@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_every_format_gives_the_same_four_outputs(stored, folder_format, lora):
    ours, reference = stored[folder_format, lora], stored["native merged", "auto"]
    assert ours.error(reference) <= 1e-5
    assert ours.answers == reference.answers
    assert ours.lora == lora


@pytest.mark.parametrize("folder_format", FORMATS[:2])
def test_without_the_lora_the_decoder_is_another_and_the_vision_encoder_the_same(stored, folder_format):
    off, on = stored[folder_format, "off"], stored[folder_format, "merged"]
    assert off.lora == "off"
    for name, vector in off.vectors.items():
        errors = np.linalg.norm(vector - on.vectors[name], axis=1) / np.linalg.norm(on.vectors[name], axis=1)
        assert errors.max() == 0 if name == "vision_only_representation" else errors.min() > 0.01
    assert off.error(stored["native" if folder_format == "published" else "published", "off"]) <= 1e-5


def test_format_and_lora_are_recorded(stored):
    assert {folder_format: stored[folder_format, "merged"].format for folder_format in FORMATS[:2]} == {
        "native": "transformers",
        "published": "published phi4mm",
    }
    assert stored["native merged", "auto"].lora == "in the weights"


def test_the_format_is_found_from_the_files_not_from_the_name(formats, tmp_path):
    misleading = copy_folder(formats["native"], tmp_path / "microsoft-phi4mm-published")
    assert midsight.load(misleading, device="cpu").loaded.format == "transformers"
    misleading = copy_folder(formats["published"], tmp_path / "transformers-native")
    assert midsight.load(misleading, device="cpu").loaded.format == "published phi4mm"


def test_a_folder_without_a_lora_says_so_and_takes_no_lora_option(formats):
    model = midsight.load(formats["native merged"], device="cpu")
    assert model.loaded.lora == "in the weights"
    assert any("vision-lora" in note for note in model.loaded.notes)
    for lora in ("merged", "unmerged", "off"):
        with pytest.raises(midsight.MidsightError, match=f"^lora='{lora}' needs a LoRA beside the weights"):
            midsight.load(formats["native merged"], device="cpu", lora=lora)


def test_the_loaded_weights_are_those_of_transformers_itself(formats):
    """PEFT's own merge on the native folder, against both loaders: every parameter, and no other."""
    reference = load_reference_model(formats["native"])
    base = dict(reference.named_parameters())
    for folder_format in FORMATS[:2]:
        ours = dict(midsight.load(formats[folder_format], device="cpu", lora="off").loaded.hf_model.named_parameters())
        audio = {name for name in base if ".audio_embed." in name and ".lora_" not in name}
        names = {name.replace(".base_layer", ""): name for name in base if ".lora_" not in name and name not in audio}
        assert set(ours) == set(names)
        assert all(torch.equal(ours[name], base[names[name]]) for name in ours)


@pytest.mark.parametrize("folder_format", FORMATS[:2])
def test_the_audio_tower_is_loaded_when_asked_for_and_only_then(formats, folder_format):
    from midsight.checkpoints.loading import load_model

    tensors = load_all(formats["native"])
    sound = {name for name in tensors if ".audio_embed." in name}
    without = load_model(formats[folder_format], device="cpu").hf_model.state_dict()
    assert not [name for name in without if ".audio_embed." in name]
    state = load_model(formats[folder_format], device="cpu", audio=True).hf_model.state_dict()
    assert {name for name in state if ".audio_embed." in name} == sound
    assert all(torch.equal(state[name], tensors[name].float()) for name in sound)
    assert midsight.load(formats[folder_format], device="cpu", audio=True).loaded.hf_model is not None


@pytest.mark.parametrize("folder_format", FORMATS[:2])
def test_in_bfloat16_a_merged_weight_is_rounded_once(formats, folder_format):
    model = midsight.load(formats[folder_format], device="cpu", dtype="bfloat16", lora="merged").loaded.hf_model
    ours = dict(model.named_parameters())
    tensors = load_file(formats["native"] / "model.safetensors")
    twice = 0
    for target, product in lora_product(formats["native"]).items():
        weight = tensors[target].float()
        assert torch.equal(
            ours[target], torch.addmm(weight, *factors(formats["native"], target), alpha=SCALE).bfloat16()
        )
        assert torch.equal(ours[target], (weight.double() + SCALE * product.double()).bfloat16())
        twice += int((ours[target] != tensors[target] + (SCALE * product).bfloat16()).sum())
    assert twice > 100, "rounding the product before adding it would not be seen"
    for name in set(ours) - set(ADAPTED) - {"lm_head.weight"}:
        assert torch.equal(ours[name], tensors[name]), name


def factors(folder, target):
    """B and A of one weight, float32."""
    adapter = load_file(folder / "vision-lora" / "adapter_model.safetensors")
    module = f"base_model.model.{target.removesuffix('.weight')}"
    return adapter[f"{module}.lora_B.weight"].float(), adapter[f"{module}.lora_A.weight"].float()


def stored_in_float32(folder, folder_format):
    """Every weight of a copied folder in float32, with digits that bfloat16 has no room for; weights and factors."""
    generator = torch.Generator().manual_seed(0)

    def add_digits(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.float() * (1 + 2**-9 * torch.rand(tensor.shape, generator=generator))

    if folder_format == "published":
        edit_published(folder, add_digits)
        stored, names = load_all(folder), ("{}.base_layer.weight", "{}.lora_B.vision.weight", "{}.lora_A.vision.weight")
    else:
        edit_tensors(folder / "model.safetensors", add_digits)
        edit_tensors(folder / "vision-lora" / "adapter_model.safetensors", add_digits)
        stored = load_all(folder) | load_file(folder / "vision-lora" / "adapter_model.safetensors")
        names = ("{}.weight", "base_model.model.{}.lora_B.weight", "base_model.model.{}.lora_A.weight")
    modules = {target: target.removesuffix(".weight") for target in ADAPTED}
    return {target: [stored[name.format(module)] for name in names] for target, module in modules.items()}


@pytest.mark.parametrize("folder_format", FORMATS[:2])
def test_weights_stored_in_float32_are_merged_before_they_are_rounded_to_bfloat16(formats, folder_format, tmp_path):
    folder = copy_folder(formats[folder_format], tmp_path / "float32")
    stored = stored_in_float32(folder, folder_format)
    model = midsight.load(folder, device="cpu", dtype="bfloat16", lora="merged").loaded.hf_model
    ours = dict(model.named_parameters())
    rounded_first = 0
    for target, (weight, b, a) in stored.items():
        assert ours[target].dtype == torch.bfloat16
        assert torch.equal(ours[target], torch.addmm(weight, b, a, alpha=SCALE).bfloat16()), target
        twice = torch.addmm(weight.bfloat16().float(), b, a, alpha=SCALE).bfloat16()
        rounded_first += int((ours[target] != twice).sum())
    assert rounded_first > 100, "weights rounded before the merge would not be seen"


@pytest.mark.parametrize(
    ("settings", "suffix"),
    [
        ({"use_dora": True}, "lora_magnitude_vector.weight"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({}, "lora_B.bias"),
        ({"alora_invocation_tokens": [1, 2]}, None),
        ({"init_lora_weights": "pissa"}, None),
        ({"peft_type": "IA3"}, None),
    ],
    ids=["with magnitudes", "with biases", "with biases unsaid", "for some tokens", "with a changed base", "IA3"],
)
@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_an_adapter_that_is_more_than_a_plain_lora_is_refused(formats, tmp_path, settings, suffix, lora):
    """W x + scale B A x would be another model's output."""
    folder = copy_folder(formats["native"], tmp_path / "copy")
    edit_json(folder / "vision-lora" / "adapter_config.json", lambda config: config.update(settings))

    def add_tensors(tensors):
        for name in [name for name in tensors if name.endswith("lora_B.weight")]:
            tensors[name.replace("lora_B.weight", suffix)] = torch.ones(len(tensors[name]))

    if suffix:
        edit_tensors(folder / "vision-lora" / "adapter_model.safetensors", add_tensors)
    with pytest.raises(
        midsight.MidsightError,
        match=r"vision-lora is more than a plain LoRA .*; load it with PEFT and give the model to midsight\.wrap\.$",
    ):
        midsight.load(folder, device="cpu", lora=lora)


@pytest.mark.parametrize("folder_format", FORMATS[:2])
@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_peft_is_not_needed(formats, folder_format, lora, stored, monkeypatch):
    """Nor transformers' integration of it, which asks for versions of PEFT that may not exist."""

    def refuse(*_args, **_kwargs):
        raise ImportError("peft>=99 is required")

    monkeypatch.setitem(sys.modules, "peft", None)
    for method in ("load_adapter", "add_adapter", "set_adapter"):
        monkeypatch.setattr(Phi4MultimodalForCausalLM, method, refuse)
    record = midsight.load(formats[folder_format], device="cpu", lora=lora).extract(
        *PAIRS[0], layers="all", answers=False
    )
    for name, vectors in stored["native merged", "auto"].vectors.items():
        if name in record.vectors:
            assert relative_error(record.vectors[name], vectors[0]) <= 1e-5


@pytest.mark.parametrize(
    ("settings", "scale"), [({"use_rslora": True}, 4.0), ({"alpha_pattern": {r".*o_proj": 3}}, 0.75)], ids=str
)
def test_a_native_adapter_is_merged_at_the_scale_it_says(formats, tmp_path, settings, scale):
    """alpha / sqrt(rank), and an alpha of one module's own; alpha is 8 and the rank 4."""
    folder = copy_folder(formats["native"], tmp_path / "copy")
    edit_json(folder / "vision-lora" / "adapter_config.json", lambda config: config.update(settings))
    weights = dict(midsight.load(folder, device="cpu", lora="merged").loaded.hf_model.named_parameters())
    target = "model.layers.1.self_attn.o_proj.weight"
    base = load_file(formats["native"] / "model.safetensors")[target].float()
    expected = base + scale * lora_product(formats["native"])[target]
    torch.testing.assert_close(weights[target].data, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("folder_format", FORMATS[:2])
@pytest.mark.parametrize(("dtype", "lora"), [("float32", "merged"), ("bfloat16", "unmerged"), ("float16", "unmerged")])
def test_auto_merges_in_float32_only_and_the_rotary_frequencies_stay_float32(formats, folder_format, dtype, lora):
    loaded = midsight.load(formats[folder_format], device="cpu", dtype=dtype).loaded
    assert (loaded.lora, str(loaded.dtype)) == (lora, f"torch.{dtype}")
    for name, tensor in loaded.hf_model.named_parameters():
        assert tensor.dtype == loaded.dtype, name
    assert loaded.hf_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_folder_that_transformers_saved_loads(formats, tmp_path):
    """As a user saves a model that was merged: save_pretrained of model and processor, nothing else."""
    folder = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(formats["native merged"], dtype=torch.float32).save_pretrained(folder)
    AutoProcessor.from_pretrained(formats["native merged"]).save_pretrained(folder)
    (saved, merged) = (midsight.load(path, device="cpu") for path in (folder, formats["native merged"]))
    (ours, theirs) = (model.extract(*PAIRS[0], layers="all", max_new_tokens=4) for model in (saved, merged))
    assert all(np.array_equal(ours.vectors[name], vector) for name, vector in theirs.vectors.items())
    assert saved.loaded.stop_ids == merged.loaded.stop_ids
