"""Models larger than one device, split over main memory and disk: the numbers of transformers' full forward."""

import copy
import gc
import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoProcessor

import midsight
from midsight.check.full_forward import largest_error
from midsight.checkpoints import device_map
from midsight.checkpoints.device_map import describe_places, fill_devices
from midsight.extraction import prefill
from midsight.extraction.calls import plan_whole
from midsight.extraction.extract_call import extract_call, extract_samples
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.families.family import decoder_layers
from midsight.records import Record
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from support.fake_device import DEVICE, fake_device
from support.family_reference import WITHOUT_PHI
from support.folders import assert_sentence, said_by
from support.parity import LIMIT, NEW_TOKENS, assert_parity, expect, samples_of
from support.pictures import CASES

EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=NEW_TOKENS)
ON_DISK = {1: "disk", 2: "disk", 4: "disk"}
ASKED = ["What is this?", "a", "Is there a red circle in the image? Answer yes or no."]


def split(folder, **options):
    return midsight.load(folder, device="cpu", device_map=ON_DISK, **options)


def on_meta(hf_model):
    return [name for name, parameter in hf_model.named_parameters() if parameter.is_meta]


def assert_all(model, samples, reference, **options):
    """Batches of several sizes, their answers too, against the full forward of each sample."""
    outcomes: Any = extract_samples(model.loaded, resolve(EVERYTHING, model.loaded), samples, **options)
    for sample, outcome in zip(samples, outcomes, strict=True):
        assert_parity(outcome, expect(reference, [*sample.images], sample.question))


@pytest.mark.slow
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batches_and_shared_prefixes_equal_the_full_forward(folder, reference, padding_side):
    model = split(folder)
    layers = decoder_layers(model.loaded.hf_model, model.loaded.family)
    elsewhere = [i for i, layer in enumerate(layers) if all(p.is_meta for p in layer.parameters())]
    assert elsewhere == [*ON_DISK]
    assert len(on_meta(model.loaded.hf_model)) == sum(len([*layers[i].parameters()]) for i in ON_DISK)
    assert model.loaded.device == torch.device("cpu")
    assert_all(model, samples_of([CASES[0], CASES[3], CASES[4], CASES[1]]), reference, padding_side=padding_side)
    asked = [Sample(str(i), i, (CASES[4].image,), question) for i, question in enumerate(ASKED)]
    assert_all(model, asked, reference, padding_side=padding_side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
def test_weights_on_disk_are_read_once_for_all_rows(folder, monkeypatch):
    """Rows that go through the decoder in slices, as in memory, would read them once for each slice."""
    monkeypatch.setattr(prefill, "SLICE_TOKENS", 0)
    calls: list[int] = []
    for model in (midsight.load(folder, device="cpu"), split(folder)):
        layer = decoder_layers(model.loaded.hf_model, model.loaded.family)[1]
        layer.register_forward_pre_hook(lambda _layer, inputs: calls.append(len(inputs[0])))
        request = resolve(Request(layers=[0], answers=False, share=False), model.loaded)
        extract_samples(model.loaded, request, samples_of(CASES[:3]))
    assert calls == [1, 1, 1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
def test_a_lora_beside_weights_that_are_on_disk(folder, reference):
    model = split(folder, lora="unmerged")
    assert any(".lora_A." in name for name in on_meta(model.loaded.hf_model))
    assert_all(model, samples_of([CASES[0], CASES[4]]), reference)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")
@pytest.mark.parametrize("name", WITHOUT_PHI, indirect=True)
def test_a_model_that_the_user_dispatched(family, folder, reference, tmp_path):
    """Also its embedding and head are on disk; its fingerprint is that of the same weights in memory."""
    hf_model = family.model.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    fingerprint = midsight.wrap(hf_model, processor).loaded.fingerprint
    around = family.decoder.rpartition(".")[0]
    outer = hf_model.get_submodule(around)
    modules: dict[str, Any] = {
        **{name: "cpu" for name, _ in hf_model.named_children() if name != around},
        **{f"{around}.{name}": "cpu" for name, _ in outer.named_parameters(recurse=False)},
        **{f"{around}.{name}": "cpu" for name, _ in outer.named_children() if f"{around}.{name}" != family.decoder},
        **{f"{family.decoder}.{name}": "disk" for name, _ in hf_model.get_submodule(family.decoder).named_children()},
        family.head: "disk",
        f"{family.decoder}.embed_tokens": family.embedding_may_be_on,
    }
    accelerate.dispatch_model(hf_model, modules, offload_dir=tmp_path / "weights")
    wrapped = midsight.wrap(hf_model, processor)
    head = set() if family.tied else {f"{family.head}.weight"}
    embedding = {f"{family.decoder}.embed_tokens.weight"} if family.embedding_may_be_on == "disk" else set()
    assert head | embedding <= {*on_meta(hf_model)}
    assert (wrapped.loaded.fingerprint, wrapped.loaded.device) == (fingerprint, torch.device("cpu"))
    assert_all(wrapped, samples_of([CASES[0], CASES[4]]), reference)


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
class TestPlaces:
    """What the option takes and says."""

    def test_auto_leaves_a_model_that_fits_in_one_place(self, folder):
        model = midsight.load(folder, device="cpu", device_map="auto").loaded
        assert on_meta(model.hf_model) == []
        assert model.notes[-1] == "Decoder layers are on cpu (0 to 5); everything else is on cpu."

    @pytest.mark.slow
    def test_auto_puts_on_disk_what_does_not_fit(self, folder, monkeypatch, tmp_path):
        plain = midsight.load(folder, device="cpu").loaded.hf_model
        layers = [device_map.size_of(layer) for layer in plain.model.language_model.layers]
        room = device_map.size_of(plain) - sum(layers[3:]) + 100
        monkeypatch.setattr(device_map, "free_memory", lambda: int(room / device_map.SPARE_MEMORY))
        model = midsight.load(folder, device="cpu", dtype="float32", device_map="auto")
        assert "cpu (0 to 1) and disk (2 to 5)" in model.loaded.notes[-1]
        midsight.extract([(CASES[0].image, "What?")], model=model, out=tmp_path / "run", answers=False)
        assert model.loaded.notes[-1] in (tmp_path / "run" / "run.json").read_text()

    @pytest.mark.slow
    def test_the_files_go_with_the_model(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        model = split(folder)
        assert [*tmp_path.glob("*/*.dat")]
        del model
        gc.collect()
        assert not [*tmp_path.glob("*/*.dat")]

    def test_a_disk_without_room(self, folder, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        sentence = said_by(midsight.load, folder, device="cpu", device_map={0: "disk"})
        assert sentence is not None
        assert_sentence(sentence)
        assert "TMPDIR" in sentence

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("balanced", "'balanced'"),
            ({"model.layers.0": "disk"}, "numbers of layers"),
            ({99: "disk"}, "layers 0 to 5"),
            ({0: "nowhere"}, "nowhere"),
        ],
        ids=str,
    )
    def test_a_map_that_is_none(self, folder, given, said):
        sentence = said_by(midsight.load, folder, device="cpu", device_map=given)
        assert sentence is not None
        assert_sentence(sentence)
        assert sentence.startswith("device_map")
        assert said in sentence


def test_layers_fill_one_device_after_the_other():
    free = {"cuda:1": 100, "cuda:0": 60, "cpu": 40}
    # 80 on cuda:1 less 30 for the rest, and 10 for a layer that is brought there
    assert fill_devices([10] * 14, 170, "cuda:1", free) == ["cuda:1"] * 4 + ["cuda:0"] * 4 + ["cpu"] * 3 + ["disk"] * 3
    assert fill_devices([10] * 5, 80, "cuda:1", free) == ["cuda:1"] * 5
    assert fill_devices([10] * 2, 500, "cuda:1", free) == ["cuda:0"] * 2


def test_places_are_said_in_words():
    assert describe_places(["cuda:0", "cuda:0", "cpu", "disk"]) == "cuda:0 (0 to 1), cpu (2) and disk (3)"


@pytest.mark.slow
def test_layers_on_a_second_device(model):
    """On a stand-in for a GPU, every other layer and its cache stay on the CPU; no operation mixes the two."""
    request = resolve(Request(layers="all", positions=POSITIONS, max_new_tokens=6), model.loaded)
    samples = [Sample(str(i), i, (CASES[4].image,), question) for i, question in enumerate(ASKED)]
    items = [item for item in prepare(model.loaded, request, samples) if isinstance(item, PreparedSample)]
    (call,) = plan_whole(items, request)
    with fake_device(), torch.no_grad():
        hf_model = copy.deepcopy(model.loaded.hf_model).to("cuda")
        norm = hf_model.get_submodule(model.loaded.family.modules.final_norm)
        for index, layer in enumerate(decoder_layers(hf_model, model.loaded.family)):
            place = "cpu" if index % 2 else "cuda:0"
            layer.to(place)
            add_hook_to_module(layer, AlignDevicesHook(place, skip_keys=["past_key_values", "cache"]))
        decoder = hf_model.get_submodule(model.loaded.family.modules.decoder)
        for module in (norm, *getattr(decoder, "altup_unembed_projections", ())):  # which join Gemma 3n's streams
            add_hook_to_module(module, AlignDevicesHook("cuda:0"))
        moved = replace(model.loaded, hf_model=hf_model, device=DEVICE)
        outcomes = extract_call.__wrapped__(moved, request, call)  # pyright: ignore[reportFunctionMemberAccess]
    by_id = {outcome.sample_id: outcome for outcome in outcomes}
    for expected in extract_samples(model.loaded, request, samples):
        outcome = by_id[expected.sample_id]
        assert isinstance(outcome, Record), outcome.reason
        assert isinstance(expected, Record)
        assert outcome.answer_token_ids == expected.answer_token_ids
        assert largest_error(outcome, expected) <= LIMIT
