"""The tests of Mistral 3 and Pixtral fail for each mistake that images of any size, written line by line, invite."""

from dataclasses import replace

import pytest
from PIL import Image

from midsight.families import mistral3
from support.damages import compare_cases, declaring, failing

BOTH = pytest.mark.parametrize("name", ["mistral3", "pixtral"], indirect=True)
OTHER_PROMPT = "prompts whose token ids differ from the processor's own"


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model):
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)

    return run


@BOTH
def test_features_of_another_layer(is_off_by, model, monkeypatch):
    monkeypatch.setattr(mistral3, "FEATURE_LAYER", -2)
    is_off_by(model)


@pytest.mark.parametrize("name", ["pixtral"], indirect=True)
def test_lines_and_columns_exchanged_where_patches_are_tokens(is_off_by, model):
    original = model.loaded.family.vision.image_embeddings

    def turned(hf_model, features, image):
        return original(hf_model, features.view(*image.grid, -1).transpose(0, 1).flatten(0, 1), image)

    is_off_by(declaring(model, image_embeddings=turned))


@pytest.mark.parametrize("name", ["mistral3"], indirect=True)
def test_lines_and_columns_exchanged(is_off_by, model):
    original = model.loaded.family.vision.image_embeddings

    def turned(hf_model, features, image):
        return original(hf_model, features, replace(image, pixel_values=image.pixel_values.transpose(2, 3)))

    is_off_by(declaring(model, image_embeddings=turned))


@BOTH
@pytest.mark.parametrize(
    ("written", "instead"),
    [(mistral3.BREAK, ""), (mistral3.END, ""), (mistral3.END, mistral3.BREAK + mistral3.END)],
)
def test_marks_of_lines_left_out_or_added(model, written, instead):
    original = model.loaded.family.vision.image_inputs

    def otherwise(*args):
        image = original(*args)
        return replace(image, text=image.text.replace(written, instead))

    assert OTHER_PROMPT in failing(declaring(model, image_inputs=otherwise), "prompts")


@pytest.mark.parametrize("name", ["mistral3"], indirect=True)
def test_an_image_of_one_token_which_the_installed_transformers_does_not_take(model, reference):
    """Where this fails, the defect is gone."""
    image = Image.new("RGB", (10, 9), "red")
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        reference.forward(reference.inputs([image], "What?"))
    alone = model.extract(image, "What?", layers="all", answers=False)
    among = model.extract([image, Image.new("RGB", (30, 20), "blue")], "What?", layers="all", answers=False)
    assert (alone.image_tokens, among.image_tokens) == (1, 1 + 3 * 2)
