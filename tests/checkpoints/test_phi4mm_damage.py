"""Wrong weights and wrong config: each damage is refused, or seen in the numbers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import midsight
from midsight.errors import MidsightError
from support.folders import LAYERS, edit_json, edit_published, edit_tensors, said_by
from support.pictures import picture

IMAGE = "model.embed_tokens_extend.image_embed"
TOWER = f"{IMAGE}.img_processor.encoder.layers"
MODULES = tuple(
    f"model.layers.{n}.{name}"
    for n in range(LAYERS)
    for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
)
SEEN = 0.01
"""Relative error from which on two sets of numbers are another model's."""


def numbers(folder, **options):
    """Vectors of one image and question."""
    model = midsight.load(folder, device="cpu", **options)
    return model.extract(picture((300, 200), 1), "What is this?", layers="all", answers=False).vectors


@torch.inference_mode()
def decoder_states(folder, **options):
    """The decoder's output on a prompt without an image, [tokens, hidden size]: what its own weights change."""
    loaded = midsight.load(folder, device="cpu", **options).loaded
    ids = loaded.tokenizer("<|user|>Is there a red circle in the image?<|end|><|assistant|>", return_tensors="pt")
    return loaded.hf_model.model(input_ids=ids["input_ids"]).last_hidden_state[0]


@pytest.fixture(scope="module")
def right(folders):
    return numbers(folders["published phi4mm"])


@pytest.fixture(scope="module")
def right_states(folders):
    return decoder_states(folders["published phi4mm"])


def difference(states, right_states):
    """The smallest relative difference of a state, ||a - b|| / ||b||."""
    return float(((states - right_states).norm(dim=1) / right_states.norm(dim=1)).min())


def error(vectors, right, name=f"query_token_representation.layer_{LAYERS - 1}"):
    return np.linalg.norm(vectors[name] - right[name]) / np.linalg.norm(right[name])


def test_undamaged_both_formats_give_the_right_numbers(folders, right):
    vectors = numbers(folders["transformers"])
    assert max(error(vectors, right, name) for name in right) <= 1e-5


def test_an_edited_copy_without_an_edit_gives_the_right_numbers(published, right):
    """So that what the tests below see is their damage, and not the copying."""
    edit_published(published, lambda tensors: None)
    vectors = numbers(published)
    assert all(np.array_equal(vectors[name], right[name]) for name in right)


def test_lora_alpha_doubled_in_the_published_config(published, right, right_states):
    edit_json(published / "config.json", lambda config: config["vision_lora"].update(lora_alpha=16))
    assert error(numbers(published), right) > SEEN
    assert difference(decoder_states(published, lora="unmerged"), right_states) > SEEN


def test_lora_alpha_doubled_in_the_native_adapter(native, right_states):
    edit_json(native / "vision-lora" / "adapter_config.json", lambda config: config.update(lora_alpha=16))
    assert difference(decoder_states(native), right_states) > SEEN


@pytest.mark.parametrize("rank", [2, 8])
def test_another_rank_than_the_factors_have(published, native, rank):
    edit_json(published / "config.json", lambda config: config["vision_lora"].update(r=rank, lora_alpha=2 * rank))
    edit_json(native / "vision-lora" / "adapter_config.json", lambda config: config.update(r=rank, lora_alpha=2 * rank))
    for folder in (published, native):
        with pytest.raises(MidsightError, match=r"lora_[AB]"):
            numbers(folder)


def transposed(tensors, a, b):
    """B's transpose as A and A's transpose as B; of a square weight the shapes still fit."""
    tensors[a], tensors[b] = tensors[b].T.contiguous(), tensors[a].T.contiguous()


def test_factors_transposed_of_a_square_weight(published, native, right_states):
    names = [f"model.layers.{n}.self_attn.o_proj.lora_{{}}" for n in range(LAYERS)]

    def damage(pattern):
        return lambda tensors: [transposed(tensors, *(pattern.format(n.format(x)) for x in "AB")) for n in names]

    edit_published(published, damage("{}.vision.weight"))
    edit_tensors(native / "vision-lora" / "adapter_model.safetensors", damage("base_model.model.{}.weight"))
    first, second = decoder_states(published), decoder_states(native)
    assert difference(first, right_states) > SEEN
    torch.testing.assert_close(second, first, rtol=0, atol=1e-4)


@pytest.mark.parametrize("module", ["self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"])
def test_factors_transposed_of_any_other_weight(published, native, module):
    name = f"model.layers.0.{module}.lora_"
    edit_published(published, lambda t: transposed(t, f"{name}A.vision.weight", f"{name}B.vision.weight"))
    adapter = native / "vision-lora" / "adapter_model.safetensors"
    edit_tensors(
        adapter, lambda t: transposed(t, f"base_model.model.{name}A.weight", f"base_model.model.{name}B.weight")
    )
    for folder in (published, native):
        with pytest.raises(MidsightError, match=rf"model\.layers\.0\.{module}"):
            numbers(folder)


def exchange_names(tensors, one, other):
    names = [name for name in tensors if one in name]
    for name in names:
        twin = name.replace(one, other)
        tensors[name], tensors[twin] = tensors[twin], tensors[name]


@pytest.mark.parametrize("module", ["self_attn.o_proj", ""])
def test_factors_whose_names_are_exchanged(published, module):
    edit_published(
        published, lambda tensors: exchange_names(tensors, f"{module}.lora_A.vision", f"{module}.lora_B.vision")
    )
    with pytest.raises(MidsightError, match=r"lora_[AB]\.vision\.weight has the shape"):
        numbers(published)


def test_vision_and_speech_adapters_exchanged_of_different_ranks(published):
    edit_published(published, lambda tensors: exchange_names(tensors, ".vision.weight", ".speech.weight"))
    with pytest.raises(MidsightError, match=r"lora_[AB]\.(vision|speech)\.weight"):
        numbers(published)


def test_vision_and_speech_adapters_exchanged_of_one_rank(published, right_states):
    """Nothing in names and shapes shows it; the numbers do."""

    def same_rank(tensors):
        for name in [name for name in tensors if name.endswith(".speech.weight")]:
            tensors[name] = tensors[name][:4] if ".lora_A." in name else tensors[name][:, :4]

    edit_published(published, same_rank)
    edit_json(published / "config.json", lambda config: config["speech_lora"].update(r=4, lora_alpha=8))
    assert difference(decoder_states(published), right_states) == 0
    edit_published(published, lambda tensors: exchange_names(tensors, ".vision.weight", ".speech.weight"))
    assert difference(decoder_states(published), right_states) > SEEN


def test_separators_exchanged(published, native):
    """Their shapes differ by one axis."""
    edit_published(published, lambda tensors: exchange_names(tensors, "glb_GN", "sub_GN"))
    edit_tensors(
        native / "model.safetensors",
        lambda tensors: exchange_names(tensors, "global_img_feature_extensor", "sub_img_feature_extensor"),
    )
    with pytest.raises(MidsightError, match=r"(glb|sub)_GN has the shape"):
        numbers(published)
    with pytest.raises(MidsightError, match=r"(global|sub)_img_feature_extensor"):
        numbers(native)


def test_separators_exchanged_with_fitting_shapes(published, right):
    def damage(tensors):
        exchange_names(tensors, "glb_GN", "sub_GN")
        tensors[f"{IMAGE}.glb_GN"], tensors[f"{IMAGE}.sub_GN"] = (
            tensors[f"{IMAGE}.glb_GN"].view(1, 1, -1),
            tensors[f"{IMAGE}.sub_GN"].view(1, 1, 1, -1),
        )

    edit_published(published, damage)
    assert error(numbers(published), right) > SEEN


def untie(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].roll(1, dims=1)


def test_a_head_of_its_own_beside_the_published_embedding(published):
    """transformers' class would tie the two and silently drop one."""
    edit_published(published, untie)
    with pytest.raises(MidsightError, match=r"lm_head\.weight"):
        numbers(published)


def test_a_head_of_its_own_beside_the_native_embedding(folders, native):
    """transformers takes both as they are, and so does midsight: the answers are another model's."""
    edit_tensors(native / "model.safetensors", untie)
    own, tied = (midsight.load(folder, device="cpu").loaded.hf_model for folder in (native, folders["transformers"]))
    state = torch.arange(32.0)
    assert torch.equal(own.model.embed_tokens.weight, tied.model.embed_tokens.weight)
    assert not torch.allclose(own.lm_head(state), tied.lm_head(state))


def test_embeddings_that_the_config_does_not_tie(published, native):
    """The head would have no weights."""
    for folder in (published, native):
        edit_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=False))
        with pytest.raises(MidsightError, match=r"tie_word_embeddings|lm_head\.weight"):
            numbers(folder)


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(2, 1), (8, 4), (1, 1), (4, 4), (4, 1), (2, 2), (8, 2), (3, 2), (6, 1), (16, 8)]
)
def test_wrong_head_counts(published, native, right_states, heads, kv_heads):
    """Two of them leave the rows of qkv_proj as they are, and are known by the number of rotary factors."""
    for folder in (published, native):
        edit_json(
            folder / "config.json",
            lambda config: config.update(num_attention_heads=heads, num_key_value_heads=kv_heads),
        )
    with pytest.raises(MidsightError, match=r"num_attention_heads|num_key_value_heads|short_factor"):
        numbers(published)
    if said_by(midsight.load, native, device="cpu") is None:
        assert difference(decoder_states(native), right_states) > SEEN


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_wrong_number_of_decoder_layers(published, native, layers):
    for folder in (published, native):
        edit_json(folder / "config.json", lambda config: config.update(num_hidden_layers=layers))
        with pytest.raises(MidsightError, match=r"num_hidden_layers|model\.layers\.\d"):
            numbers(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 64), ("intermediate_size", 32), ("vocab_size", 200065), ("partial_rotary_factor", 0.5)],
)
def test_wrong_widths(published, field, value):
    edit_json(published / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(MidsightError, match=r"\.weight|_size|factor|qkv_proj"):
        numbers(published)


def drop(prefix):
    def damage(tensors):
        names = [name for name in tensors if name.startswith(prefix)]
        assert names
        for name in names:
            del tensors[name]

    return damage


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_vision_layer_missing(published, native, layer):
    edit_published(published, drop(f"{TOWER}.{layer}."))
    edit_tensors(native / "model.safetensors", drop(f"{TOWER}.{layer}."))
    for folder in (published, native):
        with pytest.raises(MidsightError, match=rf"img_processor\.encoder\.layers\.{layer}\."):
            numbers(folder)


def test_the_last_vision_layer_missing(published, native, right):
    """The published config does not say how many there are, so the one before takes its place."""
    edit_published(published, drop(f"{TOWER}.3."))
    assert error(numbers(published), right, "vision_only_representation") > SEEN
    edit_tensors(native / "model.safetensors", drop(f"{TOWER}.3."))
    with pytest.raises(MidsightError, match=r"img_processor\.encoder\.layers\.3\."):
        numbers(native)


def test_a_lora_that_is_not_complete(published, native):
    name = "model.layers.1.mlp.down_proj"
    edit_published(published, drop(f"{name}.lora_B.vision"))
    edit_tensors(native / "vision-lora" / "adapter_model.safetensors", drop(f"base_model.model.{name}.lora_B"))
    for folder in (published, native):
        with pytest.raises(MidsightError, match=r"model\.layers\.1\.mlp\.down_proj"):
            numbers(folder)


def test_a_lora_without_one_of_its_weights(published, native):
    """Both factors of one weight gone."""
    name = "model.layers.1.mlp.down_proj"
    edit_published(published, drop(f"{name}.lora_"))
    edit_tensors(native / "vision-lora" / "adapter_model.safetensors", drop(f"base_model.model.{name}.lora_"))
    for folder in (published, native):
        with pytest.raises(MidsightError, match=r"model\.layers\.1\.mlp\.down_proj"):
            numbers(folder)


def test_not_a_number_in_a_weight_never_becomes_data(published):
    edit_published(published, lambda t: t["model.layers.0.mlp.down_proj.base_layer.weight"].fill_(torch.nan))
    with pytest.raises(midsight.SampleError, match="finite"):
        numbers(published)


def test_the_factors_differ_so_that_an_exchange_can_be_seen(folders):
    adapter = load_file(folders["transformers"] / "vision-lora" / "adapter_model.safetensors")
    for module in MODULES:
        a, b = (adapter[f"base_model.model.{module}.lora_{x}.weight"].float() for x in "AB")
        assert (b @ a).norm() > 0.01
