"""The tests of PaliGemma 2 fail for each mistake that a prompt whose tokens all read each other invites."""

import pytest
import torch

from midsight.families.family import joined_pixel_values, logits_of_head
from midsight.families.inputs import image_blocks
from midsight.families.paligemma import with_first_token
from midsight.prompts.declaration import keep_text
from support import damages
from support.damages import compare_cases, failing

pytestmark = pytest.mark.parametrize("name", ["paligemma"], indirect=True)
OTHER_PROMPT = "prompts whose token ids differ from the processor's own"
FIRST = "<bos>"


@pytest.fixture
def declaring(model):
    """The model with some of its family's declarations replaced."""
    return lambda **declared: damages.declaring(model, **declared)


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model):
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)

    return run


def test_tokens_that_read_backwards_only(is_off_by, declaring):
    is_off_by(declaring(images_read_ahead=False))


def test_image_tokens_alone_in_the_block(is_off_by, declaring):
    """As in Gemma 3; here the question reads ahead too, and the image reads the question."""
    is_off_by(declaring(blocks=image_blocks))


def test_a_window_within_the_prompt(is_off_by, declaring):
    """Each token a block of its own reads its window only."""
    is_off_by(declaring(blocks=lambda _, ids, __: torch.arange(ids.shape[1]).expand(ids.shape)))


@pytest.mark.parametrize(
    "completed",
    [
        keep_text,
        lambda text, _: f"{FIRST}{text}\n",
        lambda text, _: f"{text}\n",
        lambda text, tokenizer: with_first_token(text, tokenizer).replace(FIRST, f"{FIRST}{FIRST}"),
    ],
    ids=["nothing", "first token in front", "no first token", "first token doubled"],
)
def test_another_completion_than_the_processors(declaring, completed):
    assert OTHER_PROMPT in failing(declaring(complete_text=completed), "prompts")


def test_logits_that_are_not_softcapped(declaring):
    assert failing(declaring(adjust_logits=logits_of_head), "answers")


def test_a_full_forward_without_token_types(declaring):
    assert "query_token at every layer and transformers' full forward" in failing(
        declaring(forward_inputs=joined_pixel_values), "states"
    )


def test_the_decoder_has_the_kernel_that_softcaps(model):
    config = model.loaded.config
    assert config.get_text_config()._attn_implementation == "eager"
    assert config.get_text_config().attn_logit_softcapping == 50.0
