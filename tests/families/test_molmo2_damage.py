"""The tests of Molmo 2 fail for each mistake that overlapping crops and one block of all image tokens invite."""

from types import SimpleNamespace

import pytest
import torch

from midsight import load
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import resolve
from midsight.families import molmo2
from midsight.prompts.declaration import keep_text
from midsight.samples.sample import Sample
from support import damages
from support.breaking import render_differently
from support.damages import DAMAGED_CASES, EVERYTHING, failing
from support.folders import assert_sentence, copy_folder, edit_json, said_by
from support.parity import assert_parity, expect, extract_records, samples_of
from support.pictures import CASES

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", ["molmo2"], indirect=True)]
OTHER_PROMPT = "prompts whose token ids differ from the processor's own"
TWO = (CASES[0].image, CASES[4].image)


@pytest.fixture
def declaring(model):
    """The model with some of its family's declarations replaced."""
    return lambda **declared: damages.declaring(model, **declared)


@pytest.fixture
def compare(reference):
    """Extracts the cases in one batch and asserts parity for each."""

    def run(model):
        records = extract_records(model, resolve(EVERYTHING, model.loaded), samples_of(DAMAGED_CASES))
        for record, case in zip(records, DAMAGED_CASES, strict=True):
            assert_parity(record, expect(reference, [case.image], case.question))

    return run


@pytest.fixture
def is_off_by(compare):
    """A vector of one of the cases has to be wrong."""

    def run(model, column=""):
        with pytest.raises(AssertionError, match=f"{column}.* is off by"):
            compare(model)

    return run


def compare_two_images(model, reference):
    record = extract_records(model, resolve(EVERYTHING, model.loaded), [Sample("two", 0, TWO, "Which differs?")])[0]
    assert_parity(record, expect(reference, list(TWO), "Which differs?"))


def test_undamaged_two_images_pass(model, reference):
    compare_two_images(model, reference)


def test_image_tokens_that_read_backwards_only(is_off_by, declaring):
    is_off_by(declaring(images_read_ahead=False))


def test_image_tokens_that_read_their_own_image_only(declaring, reference):
    def by_image(config, token_ids, layouts):
        images = (token_ids == config.low_res_image_start_token_id).cumsum(dim=1)
        return torch.where(molmo2.blocks(config, token_ids, layouts) == 0, images, -1)

    with pytest.raises(AssertionError, match="is off by"):
        compare_two_images(declaring(blocks=by_image), reference)


def test_patches_alone_in_the_block(is_off_by, declaring):
    """Ends of lines and of images belong to it."""
    is_off_by(declaring(blocks=lambda config, ids, _: (ids == config.image_patch_id).long() - 1))


def test_a_prefix_cut_behind_the_last_patch(model, monkeypatch):
    cut = property(lambda item: item.prompt.layout.vision_token + 1)
    monkeypatch.setattr(PreparedSample, "prefix_length", cut)
    assert failing(model, "continued prefix") == {
        "a question on the image's prefix and the whole prompt at once",
        "several questions on one prefix and the whole prompt at once",
    }


def test_feature_layers_exchanged(is_off_by, model, monkeypatch):
    monkeypatch.setattr(molmo2, "FEATURE_LAYERS", molmo2.FEATURE_LAYERS[::-1])
    is_off_by(model)


def test_overlap_counted(is_off_by, declaring):
    counting = declaring(useful_patches=lambda image: torch.ones_like(image.patch_mask.flatten(1)))
    is_off_by(counting, "vision_only_representation")
    assert failing(counting, "useful patches", "vision features", "states") == {
        "patches in the mean that never reach the decoder"
    }


def test_features_in_place_of_the_tokens_embedding(is_off_by, declaring, model):
    """They are added to it."""
    original = model.loaded.family.vision.image_embeddings

    def alone(hf_model, features, image):
        token_id = torch.tensor([hf_model.config.image_patch_id])
        return original(hf_model, features, image) - hf_model.get_input_embeddings()(token_id)

    is_off_by(declaring(image_embeddings=alone))


def test_the_image_inside_the_users_turn(model, monkeypatch):
    turn, image = "<|im_start|>user\n", "<|image|>"
    render_differently(lambda text: text.replace(f"{image}{turn}", f"{turn}{image}"))(monkeypatch, model)
    assert OTHER_PROMPT in failing(model, "prompts")


def test_without_the_first_token(declaring):
    """The processor puts it there, not the template."""
    assert OTHER_PROMPT in failing(declaring(complete_text=keep_text), "prompts")


def test_ends_of_lines_in_the_whole_image(declaring, model):
    """Only processor_config.json says that it has none."""
    original = model.loaded.family.vision.image_inputs

    def with_ends(processor, *args):
        settings = SimpleNamespace(image_processor=processor.image_processor, use_single_crop_col_tokens=True)
        return original(settings, *args)

    assert OTHER_PROMPT in failing(declaring(image_inputs=with_ends), "prompts")


def test_a_full_forward_without_token_types(declaring, model):
    original = model.loaded.family.reference.forward_inputs

    def without_types(*args):
        return {name: value for name, value in original(*args).items() if name != "mm_token_type_ids"}

    assert "query_token at every layer and transformers' full forward" in failing(
        declaring(forward_inputs=without_types), "states"
    )


def test_other_feature_layers_are_refused(folder, tmp_path):
    other = copy_folder(folder, tmp_path / "model")
    edit_json(other / "config.json", lambda config: config["adapter_config"].update(vision_feature_layer=[7, 2]))
    said = said_by(load, other, device="cpu")
    assert said is not None
    assert_sentence(said)
    assert "[-1, -6]" in said
