"""The parity test of every family fails for each kind of wrong number: damage done on purpose."""

import dataclasses
from functools import partial

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from PIL import Image
from transformers import AutoProcessor, Cohere2ForCausalLM

from midsight import load, wrap
from midsight.check.full_forward import largest_error
from midsight.errors import MidsightError, SampleError
from midsight.extraction import attention, extract_call, prefill
from midsight.extraction.request import resolve
from midsight.families import deepseek_vl, fast_vlm, glm4v, inputs, llava, llava_onevision, ovis2
from midsight.families.family import joined_pixel_values
from midsight.prompts import prompt
from midsight.samples.sample import Sample
from support import damages
from support.breaking import last_by_place, render_differently
from support.damages import DAMAGED_CASES, EVERYTHING, failing
from support.family_reference import FAMILIES, FamilyReference
from support.folders import copy_folder, edit_json
from support.parity import LIMIT, assert_parity, expect, extract_records, rgb, samples_of
from support.pictures import CASES, encoded, picture
from support.reference import Reference, load_reference_model, relative_error

VISION = ("useful patches", "vision features", "states")
FIRST_TOKEN_BY_TOKENIZER = [name for name, family in FAMILIES.items() if family.first_by == "tokenizer"]
FIRST_TOKEN_BY_TEMPLATE = [
    name
    for name, family in FAMILIES.items()
    if family.first_by == "template" and name not in ("mllama", "smolvlm")  # whose tokenizer adds none
]
NO_FIRST_TOKEN_ADDED = [name for name, family in FAMILIES.items() if family.first_by == "none"]


@pytest.fixture(scope="module")
def expected(reference):
    return {case.name: expect(reference, [case.image], case.question) for case in DAMAGED_CASES}


@pytest.fixture
def compare(expected):
    """Extracts the cases in one batch and asserts parity for each."""

    def run(model, padding_side=None):
        plan = resolve(EVERYTHING, model.loaded)
        for record in extract_records(model, plan, samples_of(DAMAGED_CASES), padding_side=padding_side):
            assert_parity(record, expected[record.sample_id])

    return run


@pytest.fixture
def declaring(model):
    """The model with some of its family's declarations replaced."""
    return partial(damages.declaring, model)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_undamaged_it_passes(compare, model, padding_side):
    compare(model, padding_side)


def test_attention_mask_dropped(compare, model, monkeypatch):
    original = prefill.pad_rows

    def without_mask(*args, **kwargs):
        rows = original(*args, **kwargs)
        return dataclasses.replace(rows, prompt_ids=rows.prompt_ids.clamp(min=0))

    monkeypatch.setattr(extract_call, "pad_rows", without_mask)
    with pytest.raises(AssertionError, match="is off by"):
        compare(model, padding_side="left")


@pytest.mark.parametrize("shift", [-1, 1])
def test_layer_off_by_one(compare, model, monkeypatch, shift):
    damages.shift_layers(monkeypatch, shift, last=model.loaded.n_layers - 1)
    with pytest.raises(AssertionError, match="is off by"):
        compare(model)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["vision_token", "query_token"])
@pytest.mark.parametrize("shift", [-1, 1])
def test_position_off_by_one(compare, expected, family, model, monkeypatch, position, shift):
    if (position, shift) == ("query_token", 1) and family.keeps_state:
        pytest.skip("padding is before its prompts, so that no token follows the last")
    damages.shift_position(monkeypatch, position, shift, last=max(e.prompt_tokens for e in expected.values()) - 1)
    with pytest.raises(AssertionError, match=f"{position}_representation.* is off by"):
        compare(model)


def test_pooling_that_misses_a_patch_or_counts_padding(compare, declaring, model):
    """Padding tiles where there are any; else the last patch left out."""
    useful = model.loaded.family.vision.useful_patches

    def damaged(image):
        patches = useful(image)
        if not patches.all():
            return torch.ones_like(patches)
        patches = patches.clone()
        patches.view(-1)[-1] = False
        return patches

    with pytest.raises(AssertionError, match="vision_only_representation is off by"):
        compare(declaring(useful_patches=damaged))


def test_images_exchanged_between_samples(model, monkeypatch):
    pairs = [(picture((64, 64), seed), "What is it?") for seed in (1, 2)]
    right = model.extract_many(pairs, answers=False)
    damages.exchange_images(monkeypatch)
    exchanged = model.extract_many(pairs, answers=False)
    assert largest_error(right[0], exchanged[0]) > 0.01
    assert largest_error(right[0], exchanged[1]) < 1e-5


def test_decode_positions_counted_over_padding(compare, model, monkeypatch):
    damages.count_padding_in_decode(monkeypatch)
    with pytest.raises(AssertionError, match="the answers differ"):
        compare(model)


def test_a_prefix_declared_unshareable_is_caught(declaring, family):
    """So is one declared shareable where the image reads the question."""
    wrong = declaring(shares_image_prefix=not family.shares)
    assert failing(wrong, "shared prefix") == {"image states under another question"}


def test_embeddings_in_the_wrong_order_are_caught(declaring, model):
    original = model.loaded.family.vision.image_embeddings

    def turned(hf_model, features, image):
        return original(hf_model, features, image).flip(0)

    assert "query_token at every layer and transformers' full forward" in failing(
        declaring(image_embeddings=turned), "states"
    )


class TestPrompts:
    """Every prompt is compared with the processor's own."""

    CAUGHT = "prompts whose token ids differ from the processor's own"

    def test_a_changed_template_is_caught(self, model, monkeypatch):
        render_differently(lambda text: f"Look: {text}")(monkeypatch, model)
        assert self.CAUGHT in failing(model, "prompts")

    def test_an_image_token_too_few_is_caught(self, model, monkeypatch):
        original = prompt.expand_image_tokens

        def fewer(*args, image_tokens, **options):
            return original(*args, image_tokens=[tokens - 1 for tokens in image_tokens], **options)

        monkeypatch.setattr(prompt, "expand_image_tokens", fewer)
        assert self.CAUGHT in failing(model, "prompts")

    @pytest.mark.parametrize("name", FIRST_TOKEN_BY_TEMPLATE, indirect=True)
    def test_the_templates_first_token_doubled_is_caught(self, model, monkeypatch):
        monkeypatch.setattr(prompt, "adds_special_tokens", lambda *args: True)
        assert self.CAUGHT in failing(model, "prompts")

    @pytest.mark.parametrize("name", [*NO_FIRST_TOKEN_ADDED, "mllama", "smolvlm"], indirect=True)
    def test_a_first_token_written_twice_is_caught(self, model, reference, monkeypatch):
        """As GLM's `[gMASK]`, which a template writes and no tokenizer adds."""
        first_id = reference.inputs([rgb(CASES[0].image)], "What?")["input_ids"][0, :1]
        first = reference.processor.tokenizer.decode(first_id)
        render_differently(lambda text: f"{first}{text}")(monkeypatch, model)
        assert self.CAUGHT in failing(model, "prompts")

    @pytest.mark.parametrize("name", FIRST_TOKEN_BY_TOKENIZER, indirect=True)
    def test_a_first_token_left_out_or_doubled_is_caught(self, declaring, model, monkeypatch):
        doubled = declaring(complete_text=lambda text, tokenizer: f"{tokenizer.bos_token}{text}")
        assert self.CAUGHT in failing(doubled, "prompts")
        monkeypatch.setattr(prompt, "adds_special_tokens", lambda *args: False)
        assert self.CAUGHT in failing(model, "prompts")


@pytest.mark.parametrize("name", ["gemma3", "aya_vision"], indirect=True)
class TestWindow:
    """What sliding windows need."""

    def compare_two_questions(self, model, reference):
        """On one prefix; the long one, which follows the other in its row, comes first."""
        image, questions = CASES[4].image, ("What is this?", CASES[6].question)
        samples = [Sample(str(i), i, (image,), question) for i, question in enumerate(questions)]
        records = extract_records(model, resolve(EVERYTHING, model.loaded), samples)
        for record, question in reversed([*zip(records, questions, strict=True)]):
            assert_parity(record, expect(reference, [image], question))

    def test_no_window(self, model, reference):
        whole = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, sliding_window=10**6))
        with pytest.raises(AssertionError, match="is off by"):
            self.compare_two_questions(whole, reference)

    def test_a_window_that_counts_padding(self, model, reference, monkeypatch):
        """So does one that counts other questions on the same prefix."""
        monkeypatch.setattr(attention, "last_of", last_by_place)
        with pytest.raises(AssertionError, match="is off by"):
            self.compare_two_questions(model, reference)


@pytest.mark.parametrize("name", ["gemma3"], indirect=True)
class TestGemma3:
    """What images whose tokens read each other need."""

    def test_image_tokens_that_read_backwards_only(self, compare, declaring):
        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(images_read_ahead=False))

    def test_image_tokens_of_other_images_read_ahead(self, declaring, model, reference):
        """All images of a prompt as one."""
        declared = model.loaded.family.decoder.blocks
        as_one = declaring(blocks=lambda *args: declared(*args).clamp(max=0))
        images = (CASES[0].image, CASES[4].image)
        sample = Sample("two", 0, images, "Which differs?")
        record = extract_records(as_one, resolve(EVERYTHING, model.loaded), [sample])[0]
        with pytest.raises(AssertionError, match="is off by"):
            assert_parity(record, expect(reference, list(images), "Which differs?"))

    def test_a_full_forward_without_token_types(self, declaring):
        assert "query_token at every layer and transformers' full forward" in failing(
            declaring(forward_inputs=joined_pixel_values), "states"
        )

    def test_an_attention_kernel_without_masks_for_tokens_is_refused(self, model):
        flash = dataclasses.replace(model.loaded, attention="flash_attention_2")
        with pytest.raises(MidsightError, match="loaded with flash_attention_2 attention, which takes no mask"):
            resolve(EVERYTHING, flash)


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"], indirect=True)
class TestClassToken:
    """What a feature layer without CLS needs."""

    def test_the_class_token_counted(self, declaring, model):
        useful = model.loaded.family.vision.useful_patches

        def with_class_token(image):
            patches = useful(image)
            patches[:, 0] = True
            return patches

        assert failing(declaring(useful_patches=with_class_token), *VISION) == {
            "patches in the mean that never reach the decoder"
        }

    def test_the_class_token_in_place_of_the_last_patch(self, compare, declaring, model):
        original = model.loaded.family.vision.image_embeddings
        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(image_embeddings=lambda m, features, i: original(m, features.roll(1, dims=1), i)))


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [("llava", llava, -1), ("llava_next", llava, -1), ("llava_onevision", llava_onevision, -2)],
    indirect=["name"],
)
def test_another_feature_layer(compare, model, monkeypatch, module, layer):
    monkeypatch.setattr(module, "FEATURE_LAYER", layer)
    with pytest.raises(AssertionError, match="is off by"):
        compare(model)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"], indirect=True)
class TestGridOfTiles:
    """They drop the padding of their grid, and end every line with a learned vector."""

    def test_padding_counted(self, declaring, model):
        useful = model.loaded.family.vision.useful_patches

        def every_patch(image):
            return useful(dataclasses.replace(image, patch_mask=torch.ones_like(image.patch_mask)))

        assert failing(declaring(useful_patches=every_patch), *VISION) == {
            "patches in the mean that never reach the decoder"
        }

    def test_lines_without_their_vector(self, compare, declaring, model):
        original = model.loaded.family.vision.image_embeddings

        def without_vector(hf_model, features, image):
            rows = original(hf_model, features, image)
            return rows.masked_fill((rows == hf_model.model.image_newline).all(dim=1, keepdim=True), 0)

        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(image_embeddings=without_vector))


@pytest.mark.parametrize("name", ["llava_onevision", "aya_vision"], indirect=True)
def test_features_after_the_norm(compare, declaring):
    def encode(hf_model, images):
        for image in images:
            yield hf_model.model.vision_tower(image.pixel_values).last_hidden_state

    with pytest.raises(AssertionError, match="is off by"):
        compare(declaring(encode=encode))


@pytest.mark.parametrize("name", ["aya_vision"], indirect=True)
class TestAyaVision:
    """Its head is scaled, as the decoder's own class for text does."""

    def test_probabilities_are_those_of_the_decoders_own_class(self, model, reference):
        inputs = reference.inputs([rgb(CASES[0].image)], "What?")
        of_text = Cohere2ForCausalLM(reference.model.config.text_config).eval()
        of_text.model, of_text.lm_head = reference.model.model.language_model, reference.model.lm_head
        with torch.inference_mode():
            states = reference.model(**inputs, output_hidden_states=True).hidden_states[0]
            logits = of_text(inputs_embeds=states, logits_to_keep=1).logits[0, -1].double()
            without_scale = reference.model(**inputs, logits_to_keep=1).logits[0, -1].double()
        assert relative_error((without_scale / 4).numpy(), logits.numpy()) <= 1e-6, "the defect is gone"
        logprobs = logits.log_softmax(-1)
        record = model.extract(CASES[0].image, "What?", layers=[0], max_new_tokens=1)
        assert record.first_token_top_ids == tuple(logprobs.topk(10).indices.tolist())
        torch.testing.assert_close(
            torch.tensor(record.first_token_top_logprobs, dtype=torch.float64), logprobs.topk(10).values
        )

    def test_a_model_is_fixed_once_and_says_so(self, model):
        assert "logit_scale, 0.25" in model.loaded.fixes[0]
        assert wrap(model.loaded.hf_model, processor_of(model)).loaded.fixes == ()

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"vision_feature_layer": -2}, "feature layer -2"),
            ({"vision_feature_select_strategy": "default"}, "default"),
        ],
    )
    def test_another_feature_layer_is_refused(self, folder, tmp_path, changed, said):
        other = copy_folder(folder, tmp_path / "model")
        edit_json(other / "config.json", lambda config: config.update(changed))
        with pytest.raises(MidsightError, match=said):
            load(other, device="cpu")


@pytest.mark.parametrize("name", ["llava_onevision"], indirect=True)
class TestOneVision:
    """Its pixels depend on the number of images, and its large grids are scaled."""

    def test_a_large_grid_that_is_not_scaled(self, model, monkeypatch):
        monkeypatch.setattr(llava_onevision, "scaled_down", lambda lines, columns, most: (lines, columns))
        assert TestPrompts.CAUGHT in failing(model, "prompts")

    def test_several_images_cut_into_tiles(self, declaring):
        assert failing(declaring(image_among_several=None), "prompts") == {TestPrompts.CAUGHT}

    def test_one_image_as_one_of_several(self, declaring, model):
        alone = declaring(image_inputs=model.loaded.family.vision.image_among_several)
        assert TestPrompts.CAUGHT in failing(alone, "prompts")

    def test_an_image_is_prepared_anew_for_a_prompt_with_several(self, model, reference):
        """In one window, before and after the prompt in which it is alone."""
        image, other = CASES[4].image, CASES[0].image
        asked = [((image,), "a"), ((image, other), "Which?"), ((image,), "Why?")]
        samples = [Sample(str(index), index, *sample) for index, sample in enumerate(asked)]
        records = extract_records(model, resolve(EVERYTHING, model.loaded), samples)
        for record, (images, question) in zip(records, asked, strict=True):
            assert_parity(record, expect(reference, list(images), question))

    def test_a_square_too_large_for_an_image_is_refused(self, model):
        thin = encoded(Image.new("RGB", (20_000, 2)))
        with pytest.raises(SampleError, match=r"20000 x 2 pixels among several would be padded to 20,000 x 20,000"):
            model.extract([thin, CASES[0].image], "Which?")

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"vision_feature_layer": -2}, "feature layer -2"),
            ({"vision_aspect_ratio": "anyres_max_4"}, "vision_aspect_ratio anyres_max_4"),
            ({"image_grid_pinpoints": [[56, 56 * 40]]}, "grids of up to 40 tiles"),
        ],
    )
    def test_another_config_is_refused(self, folder, tmp_path, changed, said):
        other = copy_folder(folder, tmp_path / "model")
        edit_json(other / "config.json", lambda config: config.update(changed))
        with pytest.raises(MidsightError, match=said):
            load(other, device="cpu")


@pytest.mark.parametrize("name", ["fast_vlm"], indirect=True)
class TestFastVlm:
    """What a feature map needs."""

    def test_rows_and_columns_of_the_map_exchanged(self, compare, monkeypatch, model):
        monkeypatch.setattr(fast_vlm, "by_patch", lambda maps: maps.transpose(2, 3).flatten(2).transpose(1, 2))
        with pytest.raises(AssertionError, match="is off by"):
            compare(model)

    def test_features_before_the_last_activation(self, compare, declaring, model):
        final = model.loaded.hf_model.model.vision_tower.timm_model.final_conv

        def encode(hf_model, images):
            seen = []
            hook = final.reparam_conv.register_forward_hook(lambda _, __, output: seen.append(output))
            for image in images:
                hf_model.model.vision_tower(image.pixel_values)
                yield fast_vlm.by_patch(seen.pop())
            hook.remove()

        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(encode=encode))

    def test_a_patch_left_out_of_the_mean_is_caught(self, declaring):
        def all_but_one(image):
            patches = image.patch_mask.flatten(1).clone()
            patches[0, 0] = False
            return patches

        assert failing(declaring(useful_patches=all_but_one), *VISION) == {
            "patches of filled crops that reach the decoder and are not in the mean"
        }


@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
class TestPhi4:
    """What its LoRA and its vision tower need."""

    def test_lora_off(self, compare, folder):
        with pytest.raises(AssertionError, match="is off by"):
            compare(load(folder, device="cpu", lora="off"))

    def test_padding_patches_counted(self, compare, declaring):
        """640 x 480 leaves part of its crops empty; those patches do not belong to the mean."""
        counted = declaring(useful_patches=lambda image: torch.ones_like(image.patch_mask.flatten(1)))
        with pytest.raises(AssertionError, match="vision_only_representation is off by"):
            compare(counted)


@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
class TestVisionFix:
    """transformers' tower turns causal for images that fill their crops. When these fail, that is fixed upstream."""

    @pytest.fixture
    def unfixed(self, folder):
        model = load(folder, device="cpu")
        for layer in model.loaded.hf_model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
            layer.self_attn.is_causal = True
        return model

    def test_without_it_images_that_fill_their_crops_are_wrong(self, expected, unfixed):
        (record,) = extract_records(unfixed, resolve(EVERYTHING, unfixed.loaded), samples_of([CASES[1]]))
        with pytest.raises(AssertionError, match="is off by"):
            assert_parity(record, expected[CASES[1].name])

    def test_a_mixed_batch_does_not_hide_it(self, compare, unfixed):
        """transformers masks all crops of a call or none; here filled crops go through by themselves."""
        with pytest.raises(AssertionError, match="is off by"):
            compare(unfixed, padding_side="left")

    def test_transformers_marks_the_tower_causal(self, folder):
        tower = load_reference_model(folder, fixed=False).model.embed_tokens_extend.image_embed.img_processor
        assert all(layer.self_attn.is_causal for layer in tower.encoder.layers)

    def test_the_fixed_tower_equals_eager_attention(self, folder, reference):
        eager = Reference(folder, fixed=False, attn_implementation="eager")
        inputs = reference.inputs([rgb(CASES[1].image)], CASES[1].question)
        ours, theirs = reference.forward(inputs), eager.forward(inputs)
        assert relative_error(ours.vision_mean, theirs.vision_mean) < 1e-5
        assert relative_error(ours.hidden_states[-1], theirs.hidden_states[-1]) < 1e-5

    def test_a_wrapped_model_is_fixed_and_gives_the_same_numbers(self, folder, model):
        wrapped = wrap(load_reference_model(folder, fixed=False), AutoProcessor.from_pretrained(folder))
        assert "bidirectional" in wrapped.loaded.fixes[0]
        assert (wrapped.loaded.lora, wrapped.loaded.format) == ("as given", "in memory")
        for case in (CASES[0], CASES[1]):  # the second fills its crop
            ours, theirs = (m.extract(case.image, case.question, max_new_tokens=6) for m in (wrapped, model))
            assert max(relative_error(ours.vectors[name], theirs.vectors[name]) for name in theirs.vectors) <= LIMIT
            assert ours.answer_token_ids == theirs.answer_token_ids


@pytest.mark.parametrize("name", ["mllama"], indirect=True)
class TestLlama:
    """What cross-attention needs."""

    @pytest.fixture
    def changing(self, declaring, model):
        """The model whose decoder inputs are changed by a function of (prefill, later)."""

        def change(edit):
            def changed(*args):
                made = model.loaded.family.decoder.inputs(*args)
                return inputs.DecoderInputs(*edit(dict(made.prefill), dict(made.later)))

            return declaring(inputs=changed)

        return change

    def test_without_the_mask_in_decode_answers_differ(self, compare, changing):
        model = changing(lambda prefill, later: (prefill, {}))
        with pytest.raises(AssertionError, match="the answers differ"):
            compare(model)

    def test_padding_tiles_read_by_the_question(self, compare, changing):
        def open_all(prefill, later):
            return {**prefill, "cross_attention_mask": torch.zeros_like(prefill["cross_attention_mask"])}, later

        with pytest.raises(AssertionError, match="is off by"):
            compare(changing(open_all))

    def test_tokens_before_the_image_that_read_it(self, compare, changing):
        """As transformers lets them: that changes every later state."""

        def open_rows(prefill, later):
            return {
                **prefill,
                "full_text_row_masked_out_mask": torch.ones_like(prefill["full_text_row_masked_out_mask"]),
            }, later

        with pytest.raises(AssertionError, match="is off by"):
            compare(changing(open_rows), padding_side="right")

    def test_the_class_token_left_out_of_the_mean(self, compare, declaring, model):
        def without_class_token(image):
            useful = model.loaded.family.vision.useful_patches(image)
            useful[:, 0] = False
            return useful

        with pytest.raises(AssertionError, match="vision_only_representation is off by"):
            compare(declaring(useful_patches=without_class_token))
        assert failing(declaring(useful_patches=without_class_token), *VISION) == {
            "patches of filled crops that reach the decoder and are not in the mean"
        }

    def test_padding_tiles_counted_are_caught(self, declaring):
        assert failing(declaring(useful_patches=lambda image: torch.ones((4, 65), dtype=torch.bool)), *VISION) == {
            "patches in the mean that never reach the decoder"
        }

    def test_the_mask_of_a_question_on_a_prefix_is_proved(self, changing):
        assert failing(changing(lambda prefill, later: (prefill, {})), "continued prefix") >= {
            "a question on the image's prefix and the whole prompt at once",
            "several questions on one prefix and the whole prompt at once",
        }


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "glm4v", "glm4v_moe"], indirect=True)
class TestQwen:
    """What positions with three axes need."""

    def test_positions_counted_like_text(self, compare, declaring):
        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(positions=inputs.sequential_positions))

    def test_rows_and_columns_exchanged(self, compare, declaring, model):
        original = model.loaded.family.decoder.positions
        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(positions=lambda *args: original(*args)[[0, 2, 1]]))

    def test_a_question_that_goes_on_from_the_number_of_tokens(self, declaring, model, monkeypatch):
        """Positions behind an image are smaller than the count of tokens."""

        def count_on(positions, more):
            behind = positions.shape[1] + torch.arange(more)
            return torch.cat([positions, behind.expand(len(positions), more)], dim=1)

        monkeypatch.setattr("midsight.check.states.continue_positions", count_on)
        assert "a question on the image's prefix and the whole prompt at once" in failing(model, "continued prefix")

    def test_a_full_forward_without_token_types(self, declaring, model):
        """Qwen2.5-VL takes image tokens for text then; the others raise."""
        original = model.loaded.family.reference.forward_inputs

        def without_types(*args):
            return {name: value for name, value in original(*args).items() if name != "mm_token_type_ids"}

        assert failing(declaring(forward_inputs=without_types), "states")

    def test_what_an_earlier_call_left_on_the_model_changes_nothing(self, compare, model):
        model.loaded.hf_model.model.rope_deltas = torch.tensor([[-77]])
        compare(model)


@pytest.mark.parametrize("name", ["glm4v", "glm4v_moe"], indirect=True)
class TestGlm:
    """Its features are those after the encoder's last norm, joined two by two by a convolution."""

    def test_features_before_the_norm(self, compare, model, monkeypatch):
        monkeypatch.setattr(glm4v, "LAST_NORM", f"{glm4v.VISION_TOWER}.blocks.2")
        with pytest.raises(AssertionError, match="is off by"):
            compare(model)

    def test_rows_and_columns_of_a_square_exchanged(self, compare, declaring, model):
        original = model.loaded.family.vision.image_embeddings

        def turned(hf_model, features, image):
            return original(hf_model, features.view(-1, 2, 2, features.shape[-1]).transpose(1, 2), image)

        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(image_embeddings=turned))


@pytest.mark.parametrize("name", ["deepseek_vl"], indirect=True)
def test_features_before_the_encoders_last_norm(compare, declaring):
    with pytest.raises(AssertionError, match="is off by"):
        compare(declaring(encode=dataclasses.replace(deepseek_vl.SQUARES, feature=-1).encode))


@pytest.mark.parametrize("name", ["ovis2"], indirect=True)
class TestOvis2:
    """The tokens that stand between tiles and around an image have embeddings of its visual vocabulary."""

    def test_indicators_with_the_embeddings_of_text(self, compare, declaring):
        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(inputs=inputs.insert_image_embeddings))

    def test_the_end_of_an_image_left_to_the_question(self, declaring):
        assert failing(declaring(image_marks=lambda _: ()), "continued prefix") >= {
            "a question on the image's prefix and the whole prompt at once",
            "several questions on one prefix and the whole prompt at once",
        }

    def test_patches_joined_in_another_order(self, compare, monkeypatch, model):
        monkeypatch.setattr(ovis2, "joined", lambda features, side: features.reshape(len(features), 4, -1))
        with pytest.raises(AssertionError, match="is off by"):
            compare(model)

    def test_an_end_that_is_not_written(self, declaring, model):
        original = model.loaded.family.vision.image_inputs

        def unended(*args):
            image = original(*args)
            return dataclasses.replace(image, text=image.text.removesuffix("<IMG_END>"))

        assert TestPrompts.CAUGHT in failing(declaring(image_inputs=unended), "prompts")


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"], indirect=True)
class TestDeepstack:
    """Earlier blocks of the encoder are added after the decoder's first layers."""

    def change_inputs(self, declaring, model, **changes):
        original = model.loaded.family.decoder.inputs

        def changed(*args):
            made = original(*args)
            edited = {name: change(made.prefill[name]) for name, change in changes.items()}
            return inputs.DecoderInputs({**made.prefill, **edited}, made.later)

        return declaring(inputs=changed)

    def test_earlier_blocks_left_out(self, compare, declaring, model):
        with pytest.raises(AssertionError, match="is off by"):
            compare(self.change_inputs(declaring, model, deepstack_visual_embeds=lambda _: None))

    def test_earlier_blocks_exchanged(self, compare, declaring, model):
        with pytest.raises(AssertionError, match="is off by"):
            compare(self.change_inputs(declaring, model, deepstack_visual_embeds=lambda added: added[::-1]))

    def test_a_layers_output_is_not_what_the_next_layer_takes(self, model):
        """As docs/models.md says: what is added comes after the layer, whose output hidden_states hold."""
        seen = {}
        layers = model.loaded.hf_model.model.language_model.layers
        hooks = [
            layers[0].register_forward_hook(lambda _, __, output: seen.update(after=output[0])),
            layers[1].register_forward_pre_hook(lambda _, args: seen.update(before=args[0][0])),
        ]
        record = model.extract(CASES[0].image, "What?", layers=[0], answers=False)
        for hook in hooks:
            hook.remove()
        at = record.vision_token_index
        assert relative_error(record.vision_token_representation[0], seen["after"][at].numpy()) == 0
        assert relative_error(seen["before"][at].numpy(), seen["after"][at].numpy()) > 0.05


@pytest.mark.parametrize("name", ["mllama"], indirect=True)
class TestSilenceBeforeImages:
    """Tokens before the image do not attend to it, as the model was trained."""

    def before_image(self, reference, image):
        inputs = reference.inputs([image], "What is this?")
        ids = inputs["input_ids"][0].tolist()
        return reference.forward(inputs).hidden_states[:, : ids.index(reference.image_token_id)]

    def test_the_installed_transformers_lets_them_read_it(self, family, folder, reference):
        """Where this fails, the defect is gone and midsight's fix with it."""
        images = [rgb(CASES[0].image), rgb(CASES[4].image)]
        plain = FamilyReference(folder, family, fixed=False)
        one, other = (self.before_image(plain, image) for image in images)
        assert relative_error(one, other) > 1e-2
        one, other = (self.before_image(reference, image) for image in images)
        assert relative_error(one, other) <= 1e-6

    def test_a_model_is_fixed_once_and_says_so(self, model):
        again = wrap(model.loaded.hf_model, processor_of(model))
        assert "tokens before an image do not attend to it in 2 layers" in model.loaded.fixes[0]
        assert again.loaded.fixes == (), "nothing was left to fix"

    def test_layers_whose_class_or_forward_is_replaced_are_fixed_all_the_same(self, family, folder, model, compare):
        """As accelerate does where a model is split or offloaded, and FSDP where it is sharded."""
        hf_model = family.model.from_pretrained(folder, dtype=torch.float32)
        for number, layer in enumerate(hf_model.model.language_model.layers):
            if number % 2:
                layer.__class__ = type(f"Sharded{type(layer).__name__}", (type(layer),), {})
            add_hook_to_module(layer, AlignDevicesHook(io_same_device=True))
        wrapped = wrap(hf_model, processor_of(model))
        assert len(wrapped.loaded.fixes) == 1
        compare(wrapped)


def processor_of(model):
    return model.loaded.processor


@pytest.mark.parametrize("name", ["qwen2_5_vl"], indirect=True)
class TestWindows:
    """Qwen2.5-VL keeps its patches window by window."""

    def test_tokens_left_in_the_order_of_windows(self, compare, declaring):
        def in_window_order(hf_model, features, _image):
            return hf_model.model.visual.merger(features)

        with pytest.raises(AssertionError, match="is off by"):
            compare(declaring(image_embeddings=in_window_order))
