"""Folders whose small files are missing or damaged: config, tokenizer, processor, generation config, LoRA."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import midsight
from midsight.check.facts import read_facts
from midsight.checkpoints.open_folder import open_checkpoint
from support.folders import assert_sentence, copy_folder, edit_json, edit_tensors, refuse, replace_file, said_by

NOT_AN_OBJECT = {
    "empty": b"",
    "cut": b'{"a": 1',
    "list": b"[]",
    "null": b"null",
    "number": b"3",
    "binary": b"\xff\xfe\0\0",
}
SMALL_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json")
DEEP = b"[" * 100_000


def test_an_empty_folder(tmp_path):
    refuse(tmp_path, str(tmp_path), "config.json")


def test_a_folder_that_is_not_there(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere is neither a folder nor a hub id like owner/name; give one of them.")


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    refuse(tmp_path / "model.safetensors", "model.safetensors is a file, not a folder; give the folder of a model.")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_file_missing(folder, name):
    (folder / name).unlink()
    if name == "preprocessor_config.json":
        (folder / "processor_config.json").unlink(missing_ok=True)  # in which transformers keeps the same once more
    refuse(folder, name)


def test_a_tokenizer_config_missing(folder):
    """tokenizer.json alone does not say which token pads the rows of a batch."""
    (folder / "tokenizer_config.json").unlink()
    refuse(folder, "tokenizer_config.json")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", NOT_AN_OBJECT.values(), ids=NOT_AN_OBJECT)
def test_a_file_that_is_not_a_json_object(folder, name, content):
    replace_file(folder / name, content)
    refuse(folder, name)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"]
)
def test_a_file_nested_too_deep(folder, name):
    replace_file(folder / name, DEEP)
    refuse(folder, name)


@pytest.mark.parametrize("model_type", [None, 3, "", "phi9", ["phi4mm"], {}])
def test_an_unknown_model_type(folder, model_type):
    edit_json(folder / "config.json", lambda config: config.update(model_type=model_type))
    refuse(folder, "model_type")


def test_a_config_without_model_type(folder):
    edit_json(folder / "config.json", lambda config: config.pop("model_type"))
    refuse(folder, "config.json", "model_type")


def test_a_config_that_names_a_field_twice(folder):
    """The last value would win, and may not be the right one."""
    text = (folder / "config.json").read_text()
    replace_file(folder / "config.json", text.replace("{", '{"hidden_size": 32, ', 1).encode())
    refuse(folder, "config.json", "hidden_size", "twice")


@pytest.mark.parametrize("architectures", [None, []], ids=repr)
def test_a_config_without_architectures_is_known_by_its_model_type(folder, architectures):
    edit_json(folder / "config.json", lambda config: config.update(architectures=architectures))
    assert midsight.load(folder, device="cpu").loaded.family.architecture == "Phi4MultimodalForCausalLM"
    edit_json(folder / "config.json", lambda config: config.pop("architectures"))
    assert read_facts(folder).family == "Phi-4-multimodal"


@pytest.mark.parametrize("architectures", [[["x"]], ["LlamaForCausalLM"], "Phi4MMForCausalLM", [3], {}])
def test_an_architecture_that_midsight_does_not_know(folder, architectures):
    edit_json(folder / "config.json", lambda config: config.update(architectures=architectures))
    refuse(folder, "architecture")


def test_an_activation_that_transformers_does_not_have(folder, folder_format):
    """transformers finds out while it makes the model, with a KeyError."""
    places = {"transformers": ("audio_config",), "published phi4mm": ("audio_processor", "config")}

    def edit(config):
        for name in places[folder_format]:
            config = config[name]
        config["conv_activation"] = "swash"

    edit_json(folder / "config.json", edit)
    refuse(folder, str(folder), "swash")


@pytest.mark.parametrize("damage", [{"model": {}}, {"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}, {}])
def test_a_tokenizer_that_is_not_usable(folder, damage):
    replace_file(folder / "tokenizer.json", json.dumps(damage).encode())
    refuse(folder, "tokenizer.json")


def test_a_tokenizer_cut_short(folder):
    data = (folder / "tokenizer.json").read_bytes()
    replace_file(folder / "tokenizer.json", data[: len(data) // 2])
    refuse(folder, "tokenizer.json")


def test_a_tokenizer_without_the_image_token(folder):
    text = (folder / "tokenizer.json").read_text()
    assert "<|endoftext10|>" in text
    replace_file(folder / "tokenizer.json", text.replace("<|endoftext10|>", "<|endoftext99|>").encode())
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            text = (folder / name).read_text().replace("<|endoftext10|>", "<|endoftext99|>")
            replace_file(folder / name, text.encode())
    refuse(folder, "<|endoftext10|>")


def test_a_published_tokenizer_config_that_is_not_an_object(published):
    replace_file(published / "tokenizer_config.json", b"[]")
    refuse(published, "tokenizer_config.json")


def test_number_of_crops_missing(folder, folder_format):
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            edit_json(folder / name, lambda content: content.get("image_processor", content).pop("dynamic_hd"))
    if folder_format == "transformers":  # whose class has a default of its own
        assert midsight.load(folder, device="cpu").loaded.processor.image_processor.dynamic_hd == 36
        return
    refuse(folder, "preprocessor_config.json", "dynamic_hd")


@pytest.mark.parametrize("dynamic_hd", [None, 0, -3, "36", 2.5, [36], True])
def test_number_of_crops_that_is_not_a_number(folder, dynamic_hd):
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            edit_json(
                folder / name,
                lambda content: content.get("image_processor", content).update(dynamic_hd=dynamic_hd),
            )
    refuse(folder, "preprocessor_config.json", "dynamic_hd")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "flax_model.msgpack"])
def test_a_pickle_in_place_of_safetensors_is_never_opened(folder, name):
    """The file would run code; it is named by what it is not."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()
    torch.save({"model.norm.weight": torch.ones(32)}, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
        refuse(folder, "safetensors")


def test_a_pickle_beside_safetensors_changes_nothing(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04no pickle")
    assert midsight.load(folder, device="cpu").loaded.stop_ids == (199999, 200020)


def test_python_files_in_the_folder_are_never_run(folder, tmp_path):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nraise SystemExit\n"
    for name in ("configuration_phi4mm", "modeling_phi4mm", "processing_phi4mm", "tokenization_phi4mm"):
        (folder / f"{name}.py").write_text(code)
    remote = {
        "config.json": {
            "AutoConfig": "configuration_phi4mm.Phi4MMConfig",
            "AutoModelForCausalLM": "modeling_phi4mm.Phi4MMForCausalLM",
        },
        "preprocessor_config.json": {"AutoImageProcessor": "processing_phi4mm.Phi4MMImageProcessor"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_phi4mm.T", "tokenization_phi4mm.T"]},
    }
    for name, auto_map in remote.items():
        edit_json(folder / name, lambda content, value=auto_map: content.update(auto_map=value))
    assert midsight.load(folder, device="cpu").loaded.stop_ids == (199999, 200020)
    assert not ran.exists()


def test_a_generation_config_missing(folder):
    """Answers may then not end at the end of a turn."""
    (folder / "generation_config.json").unlink()
    loaded = midsight.load(folder, device="cpu").loaded
    assert 199999 in loaded.stop_ids
    assert any("generation_config.json" in note and "199999" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("eos", "ids"), [([200020, 199999], (199999, 200020)), (200020, (200020,)), ([200020], (200020,))]
)
def test_stop_ids_may_be_one_or_several(folder, eos, ids):
    edit_json(folder / "generation_config.json", lambda config: config.update(eos_token_id=eos))
    assert midsight.load(folder, device="cpu").loaded.stop_ids == ids


@pytest.mark.parametrize("eos", [None, [], [None], "200020", ["200020"], 1.5, True, {}, [[199999]], -1])
def test_stop_ids_that_are_not_token_ids(folder, eos):
    edit_json(folder / "generation_config.json", lambda config: config.update(eos_token_id=eos))
    refuse(folder, "generation_config.json", "eos_token_id")


@pytest.mark.parametrize("eos", [200060, 200064, 10**9, 10**30, [200020, 200060]], ids=str)
def test_a_stop_id_that_is_not_a_token_is_named_before_any_weight_is_read(folder, eos):
    """In the embedding without a token, and outside of it."""
    edit_json(folder / "generation_config.json", lambda config: config.update(eos_token_id=eos))
    unknown = str(max(eos) if isinstance(eos, list) else eos)
    for call in (read_facts, midsight.load):
        said = said_by(call, folder)
        assert said is not None, "it is taken"
        assert_sentence(said)
        assert all(part in said for part in ("generation_config.json", f"says {unknown} for eos_token_id"))


def test_a_stop_id_beyond_the_models_head_is_named(native):
    """The tokenizer has the token, no answer can have it."""
    edit_json(native / "config.json", lambda config: config.update(vocab_size=200020))
    edit_tensors(
        native / "model.safetensors",
        lambda tensors: tensors.update(
            {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:200020].clone()}
        ),
    )
    refuse(native, "generation_config.json", "200020", "eos_token_id")


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": -5}, {"early_stopping": 3}, {"watermarking_config": {"a": 1}}, {"num_return_sequences": 4}],
    ids=str,
)
def test_a_generation_config_that_transformers_refuses(folder, change):
    edit_json(folder / "generation_config.json", lambda config: config.update(change))
    said = {said_by(call, folder) or "It is taken." for call in (read_facts, midsight.load)}
    assert len(said) == 1
    assert_sentence(*said)
    assert "generation_config.json" in said.pop()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("folder_format", ["transformers", "published phi4mm"])
def test_whatever_happens_to_a_small_file_only_a_midsight_error_comes_out(
    folders, folder_format, tmp_path_factory, data
):
    folder = copy_folder(folders[folder_format], tmp_path_factory.mktemp("fuzz") / "model")
    path = folder / data.draw(st.sampled_from(["config.json", "preprocessor_config.json", "tokenizer_config.json"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(32, 126))
    replace_file(path, bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))]))

    def open_all():
        checkpoint = open_checkpoint(folder)
        checkpoint.account()
        checkpoint.load_processor()

    assert_sentence(said_by(open_all) or "It is complete.")
    shutil.rmtree(folder.parent)


def test_an_adapter_beside_the_model_is_refused(native, tmp_path):
    """transformers would load the model that it names, and not this one."""
    adapter = json.loads((native / "vision-lora" / "adapter_config.json").read_text())
    (native / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": str(tmp_path)}))
    refuse(native, str(native), "adapter_config.json")


def test_a_model_that_is_quantised_at_load_is_refused(native):
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    edit_json(native / "config.json", lambda config: config.update(quantised))
    refuse(native, "config.json", "quantization_config", "midsight.wrap")


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_a_dtype_that_midsight_does_not_use_becomes_float32(native, dtype, monkeypatch):
    """Also where there is no room for float32, or a GPU, and the checkpoint's dtype would be taken."""
    edit_json(native / "config.json", lambda config: config.update(dtype=dtype))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10))
    assert midsight.load(native, device="cpu").loaded.dtype == torch.float32


class TestLoraFolder:
    """The LoRA folder of transformers' format."""

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_half_of_it(self, native, name):
        (native / "vision-lora" / name).unlink()
        refuse(native, "vision-lora", name)

    def test_a_pickle_in_it(self, native):
        (native / "vision-lora" / "adapter_model.safetensors").unlink()
        torch.save({}, native / "vision-lora" / "adapter_model.bin")
        refuse(native, "vision-lora", "adapter_model.safetensors")

    @pytest.mark.parametrize("content", [*NOT_AN_OBJECT.values(), b"{}"], ids=[*NOT_AN_OBJECT, "nothing in it"])
    def test_its_config_damaged(self, native, content):
        replace_file(native / "vision-lora" / "adapter_config.json", content)
        refuse(native, "vision-lora")

    @pytest.mark.parametrize(
        "change",
        [
            {"r": 0},
            {"r": "4"},
            {"lora_alpha": None},
            pytest.param({"peft_type": "IA3"}, marks=pytest.mark.filterwarnings("ignore::UserWarning")),
            {"target_modules": ["k_proj"]},
            {"r": -4},
        ],
        ids=str,
    )
    def test_its_config_wrong(self, native, change):
        edit_json(native / "vision-lora" / "adapter_config.json", lambda config: config.update(change))
        refuse(native, "vision-lora")

    def test_the_speech_lora_alone_shows_that_nothing_was_merged(self, native):
        (native / "vision-lora").rename(native / "speech-lora")
        refuse(native, "speech-lora", "vision-lora")

    def test_the_weights_alone_are_taken_as_merged_and_a_note_says_so(self, native):
        shutil.rmtree(native / "vision-lora")
        loaded = midsight.load(native, device="cpu").loaded
        assert loaded.lora == "in the weights"
        assert len(loaded.notes) == 1
        assert "vision-lora/" in loaded.notes[0]
