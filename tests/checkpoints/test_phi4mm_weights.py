"""Every tensor of the published folder accounted for, by name, shape and number of parameters."""

import json
import math
import re

import pytest
import torch
from transformers import Phi4MultimodalForCausalLM

from midsight.checkpoints.checkpoint import count_parameters, loaded_parameters
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.checkpoints.phi4mm.config import lora_scale, native_config
from midsight.checkpoints.phi4mm.tensors import account_for
from midsight.errors import MidsightError
from support.folders import (
    FACTS,
    INDEX,
    edit_tensors,
    needs_facts,
    published_shapes,
    read_json,
    said_by,
    write_published_size,
)

TENSORS = 2047
AUDIO = "model.embed_tokens_extend.audio_embed."
IMAGE = "model.embed_tokens_extend.image_embed."
PARTS = {
    "vision LoRA": r".*\.lora_[AB]\.vision\.weight",
    "speech LoRA": r".*\.lora_[AB]\.speech\.weight",
    "vision encoder": r"model\.embed_tokens_extend\.image_embed\.img_processor\..*",
    "image projection": r"model\.embed_tokens_extend\.image_embed\.(glb_GN|sub_GN|img_projection\.[02]\.(weight|bias))",
    "audio": r"model\.embed_tokens_extend\.audio_embed\..*",
    "token embedding": r"model\.embed_tokens\.weight",
    "decoder": r"model\.(norm|layers\.\d+\.(?!.*lora_).*)(\.weight)?",
}
"""Part of the model to the published names of its tensors."""


def kind(name):
    """A tensor's name with its numbers left open."""
    return re.sub(r"\.\d+\.", ".N.", name)


def native_shapes(config):
    with torch.device("meta"):
        state = Phi4MultimodalForCausalLM(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


class Folder:
    """Config, shapes and native shapes of one published folder."""

    def __init__(self, config, shapes):
        self.shapes = shapes
        self.lora = lora_scale(config)
        self.native = native_shapes(native_config(config, shapes))

    def account(self, shapes=None, **options):
        return account_for(self.shapes if shapes is None else shapes, self.native, lora=self.lora, **options)


@pytest.fixture(scope="module")
def published():
    shapes = {name: tuple(shape) for name, shape in read_json(FACTS / "tensor_shapes.json").items()}
    return Folder(read_json(FACTS / "config.json"), shapes)


@pytest.fixture(scope="module")
def small(folders):
    folder = folders["published phi4mm"]
    return Folder(read_json(folder / "config.json"), published_shapes(folder))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """The folder of 11 GB as sparse files, opened as a user's folder is."""
    return open_checkpoint(write_published_size(tmp_path_factory.mktemp("full") / "published"))


@needs_facts
@pytest.mark.parametrize("audio", [False, True])
def test_all_2047_tensors_are_accounted_for_once(published, audio):
    index = json.loads((FACTS / INDEX).read_text())["weight_map"]
    assert set(index) == set(published.shapes)
    accounts = published.account(audio=audio)
    factors = [name for pair in accounts.vision_lora.values() for name in (pair.a, pair.b)]
    accounted = [*accounts.loaded.values(), *factors, *accounts.left_out]
    assert len(accounted) == len(set(accounted)) == TENSORS
    assert set(accounted) == set(index)
    speech = {name for name in index if ".speech.weight" in name and ".lora_" in name}
    sound = {name for name in index if name.startswith(AUDIO)}
    assert set(accounts.left_out) == (speech if audio else speech | sound)
    assert len(factors) == 2 * 4 * 32
    assert len(speech) == 2 * 4 * 32
    assert len(sound) == TENSORS - 2 * len(speech) - (1535 - len(sound))


@needs_facts
@pytest.mark.parametrize("audio", [False, True])
def test_what_is_loaded_is_what_transformers_expects(published, audio):
    accounts = published.account(audio=audio)
    expected = {
        name: shape
        for name, shape in published.native.items()
        if name != "lm_head.weight" and (audio or not name.startswith(AUDIO))
    }
    assert {native: published.shapes[name] for native, name in accounts.loaded.items()} == expected
    targets = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert set(accounts.vision_lora) == {f"model.layers.{n}.{name}" for n in range(32) for name in targets}
    for module, pair in accounts.vision_lora.items():
        rows, columns = published.native[f"{module}.weight"]
        assert published.shapes[pair.a] == (256, columns)
        assert published.shapes[pair.b] == (rows, 256)
        assert (pair.a, pair.b) == (f"{module}.lora_A.vision.weight", f"{module}.lora_B.vision.weight")


@needs_facts
def test_each_renamed_tensor_is_the_one_it_was(published):
    """Names by hand, for the tensors that have a twin of one shape."""
    loaded = published.account(audio=True).loaded
    assert loaded[f"{IMAGE}global_img_feature_extensor"] == f"{IMAGE}glb_GN"
    assert loaded[f"{IMAGE}sub_img_feature_extensor"] == f"{IMAGE}sub_GN"
    assert loaded[f"{IMAGE}img_projection_up.bias"] == f"{IMAGE}img_projection.0.bias"
    assert loaded[f"{IMAGE}img_projection_down.bias"] == f"{IMAGE}img_projection.2.bias"
    for mode, suffix in (("speech", "speech"), ("vision", "vision_speech")):
        for place, direction in (("0", "up"), ("2", "down")):
            native = f"{AUDIO}{direction}_proj_for_{suffix}.weight"
            assert loaded[native] == f"{AUDIO}audio_projection.{mode}.{place}.weight"
    encoders = f"{AUDIO}encoder.encoders"
    for letter in "qkv":
        assert (
            loaded[f"{encoders}.5.self_attn.{letter}_proj.weight"] == f"{encoders}.5.self_attn.linear_{letter}.weight"
        )
    assert loaded[f"{encoders}.5.self_attn.o_proj.weight"] == f"{encoders}.5.self_attn.linear_out.weight"
    for half in ("in", "out"):
        ours, theirs = (f"{encoders}.5.feed_forward_{half}.{rest}.weight" for rest in ("down_proj", "net.2"))
        assert loaded[ours] == theirs
    tower = f"{IMAGE}img_processor.encoder.layers.26"
    for name in ("self_attn.k_proj.bias", "self_attn.out_proj.weight", "layer_norm1.weight", "layer_norm2.weight"):
        assert loaded[f"{tower}.{name}"] == f"{tower}.{name}"


@needs_facts
def test_parameters_by_part_add_up_to_the_published_bytes(published, full_size):
    expected = {
        part: sum(math.prod(shape) for name, shape in published.shapes.items() if re.fullmatch(pattern, name))
        for part, pattern in PARTS.items()
    }
    counts = count_parameters(full_size)
    assert counts == expected
    assert 2 * sum(counts.values()) == read_json(FACTS / INDEX)["metadata"]["total_size"]
    assert counts["token embedding"] == 200064 * 3072
    assert counts["vision LoRA"] / 256 == counts["speech LoRA"] / 320
    model = sum(count for part, count in counts.items() if part not in ("audio", "speech LoRA", "vision LoRA"))
    assert loaded_parameters(full_size, "merged") == model


@needs_facts
def test_the_folder_of_11_gb_opens_without_its_weights(full_size):
    """The files are sparse: reading the weights would give zeros, and take long."""
    full_size.account()
    assert full_size.format == "published phi4mm"
    assert full_size.has_lora
    assert len(full_size.headers) == TENSORS
    assert {header.dtype for header in full_size.headers.values()} == {"BF16"}
    assert full_size.config.num_attention_heads == 24
    assert full_size.config.vision_config.num_hidden_layers == 27


@needs_facts
def test_the_small_checkpoint_has_every_kind_of_tensor(small, published):
    assert set(map(kind, small.shapes)) == set(map(kind, published.shapes))


@pytest.fixture(scope="module")
def one_of_each_kind(small):
    """The last tensor of every kind, by published name, with what an error may call it."""
    last = {kind(name): name for name in small.shapes}
    natives = {source: native for native, source in small.account(audio=True).loaded.items()}
    return {name: {name, natives.get(name, name), name.split(".lora_")[0]} for name in last.values()}


def refusal(folder, shapes, **options):
    """What accounting says to these shapes; nothing where it takes them."""
    return said_by(folder.account, shapes, **options) or ""


@pytest.mark.parametrize("audio", [False, True])
def test_a_tensor_that_is_missing_is_named(small, one_of_each_kind, audio):
    unnamed = {}
    for name, names in one_of_each_kind.items():
        said = refusal(small, {other: shape for other, shape in small.shapes.items() if other != name}, audio=audio)
        if not any(possible in said for possible in names):
            unnamed[name] = said
    assert unnamed == {}


@pytest.mark.parametrize("audio", [False, True])
def test_a_tensor_of_another_shape_is_named(small, one_of_each_kind, audio):
    unnamed = {}
    for name in one_of_each_kind:
        shape = small.shapes[name]
        for other in ((*shape, 1), shape[:-1], (*shape[:-1], 3 + sum(shape))):
            said = refusal(small, {**small.shapes, name: other}, audio=audio)
            if name not in said:
                unnamed[name] = said
    assert unnamed == {}


@pytest.mark.parametrize("audio", [False, True])
def test_a_tensor_too_many_is_named(small, one_of_each_kind, audio):
    unnamed = {}
    for name, shape in ((name, small.shapes[name]) for name in one_of_each_kind):
        for extra in (f"{name.rpartition('.')[0]}.surprise", f"extra.{name}"):
            said = refusal(small, {**small.shapes, extra: shape}, audio=audio)
            if extra not in said:
                unnamed[extra] = said
    assert unnamed == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.2.mlp.down_proj.base_layer.weight", "model.layers.2.mlp.down_proj.base_layer.weight"),
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("model.layers.0.mlp.down_proj.lora_A.third.weight", "model.layers.0.mlp.down_proj.lora_A.third.weight"),
        ("model.layers.2.mlp.down_proj.lora_A.speech.weight", "model.layers.2.mlp.down_proj"),
        ("model.layers.0.mlp.nothing.lora_A.speech.weight", "model.layers.0.mlp.nothing"),
        ("model.layers.2.mlp.down_proj.lora_A.vision.weight", "model.layers.2.mlp.down_proj"),
        (f"{IMAGE}global_img_feature_extensor", f"{IMAGE}global_img_feature_extensor"),
        (f"{IMAGE}img_projection_up.weight", f"{IMAGE}img_projection_up.weight"),
    ],
)
@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_tensors_of_other_formats_and_models_are_named(small, name, said, first):
    """Of two tensors for one place, the order in a file would decide which is loaded."""
    extra = {name: small.native.get(name, (4, 64))}
    assert said in refusal(small, {**extra, **small.shapes} if first else {**small.shapes, **extra})


NATIVE_SAMPLE = (
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
    "model.embed_tokens_extend.image_embed.img_projection_up.bias",
    "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.1.mlp.fc1.bias",
    "model.embed_tokens_extend.audio_embed.up_proj_for_speech.bias",
    "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
)


@pytest.mark.parametrize("name", NATIVE_SAMPLE)
@pytest.mark.parametrize("change", ["missing", "too many", "of another shape"])
def test_in_a_native_folder_such_a_tensor_is_named_too(native, name, change):
    called = {
        "missing": name,
        "too many": f"{name.removesuffix('.weight').removesuffix('.bias')}.surprise.weight",
        "of another shape": name,
    }[change]

    def damage(tensors):
        tensor = tensors[name]
        if change == "missing":
            del tensors[name]
        else:
            tensors[called] = torch.cat([tensor, tensor])

    edit_tensors(native / ("vision-lora/adapter_model.safetensors" if "lora" in name else "model.safetensors"), damage)
    with pytest.raises(
        MidsightError, match=re.escape(called.removeprefix("base_model.model.").partition(".lora_A")[0])
    ):
        open_checkpoint(native).account()
