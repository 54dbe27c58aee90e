"""The tests of Llama 4 fail for each mistake that chunks, temperatures, tiles and a CLS at the end invite."""

from dataclasses import replace

import peft
import pytest
import torch
from transformers.models.llama4.modeling_llama4 import Llama4CausalLMOutputWithPast

from midsight import load, wrap
from midsight.extraction import attention, prefill
from midsight.extraction.request import resolve
from midsight.families.llama4 import add_image_outputs
from midsight.samples.sample import Sample
from midsight.testing.llama4 import CHUNK
from support.damages import DAMAGED_CASES, EVERYTHING, compare_cases, declaring, failing
from support.folders import assert_sentence, copy_folder, edit_json, said_by
from support.parity import LIMIT, assert_parity, expect, extract_records, rgb, samples_of
from support.pictures import CASES
from support.reference import relative_error

pytestmark = pytest.mark.parametrize("name", ["llama4"], indirect=True)
OTHER_PROMPT = "prompts whose token ids differ from the processor's own"
IMAGE, QUESTIONS = CASES[4].image, ("What is this?", CASES[6].question)


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model):
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)

    return run


class TestChunks:
    """Prompts are longer than a chunk, and a token reads nothing of the chunks before its own in most layers."""

    @pytest.fixture
    def compare(self, reference):
        """Two questions on one prefix; the long one follows the other in its row."""

        def run(model, padding_side="right"):
            samples = [Sample(str(i), i, (IMAGE,), question) for i, question in enumerate(QUESTIONS)]
            records = extract_records(model, resolve(EVERYTHING, model.loaded), samples, padding_side=padding_side)
            for record, question in reversed([*zip(records, QUESTIONS, strict=True)]):
                assert record.prompt_tokens > 2 * CHUNK
                assert_parity(record, expect(reference, [IMAGE], question))

        return run

    @pytest.mark.parametrize("padding_side", ["left", "right"])
    def test_a_prompt_of_several_chunks(self, compare, model, padding_side):
        compare(model, padding_side)

    def test_no_chunks(self, compare, model):
        whole = replace(model, loaded=replace(model.loaded, attention_chunk=10**6))
        with pytest.raises(AssertionError, match="is off by"):
            compare(whole)

    def test_chunks_that_count_other_questions(self, compare, model, monkeypatch):
        def by_place(reads, chunk):
            new, total = reads.shape[1:]
            number = torch.arange(total) // chunk
            return reads & (number == number[-new:, None])

        monkeypatch.setattr(attention, "same_chunk", by_place)
        with pytest.raises(AssertionError, match="is off by"):
            compare(model)

    def test_a_cache_that_drops_earlier_chunks(self, compare, model, monkeypatch):
        monkeypatch.setattr(prefill, "growing_cache", lambda config: None)
        with pytest.raises(AssertionError):
            compare(model)


class TestTemperature:
    """Layers without rotary embedding read more sharply after every 16 tokens here, after every 8,192 as published."""

    def last_states(self, reference, padding):
        """The last token's states in plain transformers, with and without padding before the prompt."""
        inputs = reference.inputs([rgb(IMAGE)], QUESTIONS[0])
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        before = torch.zeros((1, padding), dtype=torch.int64)
        mask = torch.cat([before, mask], dim=1)
        with torch.inference_mode():
            output = reference.model(
                **inputs,
                input_ids=torch.cat([before, ids], dim=1),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                output_hidden_states=True,
                logits_to_keep=1,
            )
        return torch.stack(output.hidden_states)[:, 0, -1].numpy()

    def test_the_installed_transformers_counts_padding(self, reference):
        """Where this fails, the defect is gone and midsight's fix with it."""
        assert relative_error(self.last_states(reference, 20), self.last_states(reference, 0)) > 1e-4

    def test_a_model_is_fixed_once_and_says_so(self, model):
        assert "temperature follows a token's position in its prompt in 1 layer (" in model.loaded.fixes[0]
        assert wrap(model.loaded.hf_model, model.loaded.processor).loaded.fixes == ()

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
    def test_an_adapter_that_is_put_around_a_fixed_layer_is_scaled_too(self, family, folder, model, reference):
        """PEFT's module takes the place of the projection that was fixed."""
        own, plain = (family.model.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
        wrap(own, model.loaded.processor).extract(IMAGE, QUESTIONS[0], layers=[0], answers=False)
        add_image_outputs(plain)
        target = r".*layers\.3\.self_attn\.q_proj"
        for one in (own, plain):
            torch.manual_seed(0)
            peft.get_peft_model(one, peft.LoraConfig(target_modules=target, init_lora_weights=False)).eval()
        with torch.inference_mode():
            states = plain(**reference.inputs([rgb(IMAGE)], QUESTIONS[0]), output_hidden_states=True).hidden_states
        record = wrap(own, model.loaded.processor).extract(IMAGE, QUESTIONS[0], layers="all", answers=False)
        for layer, state in enumerate(states[1:]):
            assert relative_error(record.query_token_representation[layer], state[0, -1].numpy()) <= LIMIT

    def test_a_model_that_is_not_fixed(self, model, reference):
        plain = replace(model, loaded=replace(model.loaded, hf_model=reference.model))
        resolved = resolve(EVERYTHING, plain.loaded)
        records = extract_records(plain, resolved, samples_of(DAMAGED_CASES), padding_side="left")
        expected = [expect(reference, [case.image], case.question) for case in DAMAGED_CASES]
        with pytest.raises(AssertionError, match="is off by"):
            [assert_parity(record, wanted) for record, wanted in zip(records, expected, strict=True)]


def test_a_temperature_that_transformers_does_not_take_is_named(folder, tmp_path):
    """As in older copies of the published config.json."""
    other = copy_folder(folder, tmp_path / "model")
    edit_json(other / "config.json", lambda config: config["text_config"].update(attn_temperature_tuning=4))
    said = said_by(load, other, device="cpu")
    assert said is not None
    assert "'attn_temperature_tuning' expected bool, got int (value: 4)" in said
    assert_sentence(said)


def test_features_before_the_norm(is_off_by, model):
    def encode(hf_model, images):
        norm, seen = hf_model.vision_model.layernorm_post, []
        hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for image in images:
            hf_model.vision_model(image.pixel_values)
            yield seen.pop()
        hook.remove()

    is_off_by(declaring(model, encode=encode))


def test_the_class_token_counted(model):
    useful = model.loaded.family.vision.useful_patches
    assert failing(declaring(model, useful_patches=lambda image: torch.ones_like(useful(image))), "useful patches") == {
        "patches in the mean that never reach the decoder"
    }


def test_the_class_token_in_place_of_the_last_patch(is_off_by, model):
    original = model.loaded.family.vision.image_embeddings
    is_off_by(declaring(model, image_embeddings=lambda m, features, i: original(m, features.roll(-1, dims=1), i)))


@pytest.mark.parametrize("mark", ["<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>", "<|image_end|>"])
def test_marks_left_out(model, mark):
    original = model.loaded.family.vision.image_inputs

    def unmarked(*args):
        image = original(*args)
        return replace(image, text=image.text.replace(mark, ""))

    assert OTHER_PROMPT in failing(declaring(model, image_inputs=unmarked), "prompts")


def test_the_whole_class_of_transformers_can_be_called(model):
    """In transformers 5.24.0 it reads a field that its language model's output lacks; the fix adds it, and no other."""
    hf_model = model.loaded.hf_model
    ids = torch.tensor([[200000, 5, 6]])
    with torch.inference_mode():
        whole, language_model = hf_model(input_ids=ids), hf_model.language_model(input_ids=ids)
    assert torch.equal(whole.logits, language_model.logits)
    needed = "image_outputs" in Llama4CausalLMOutputWithPast.__dataclass_fields__
    assert any("image_outputs" in fix for fix in model.loaded.fixes) == needed
