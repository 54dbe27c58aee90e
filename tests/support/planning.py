"""Prepared samples that no model takes, for tests of what goes through the model together."""

import torch

from midsight.checkpoints.generation import AnswerSettings
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import ResolvedRequest
from midsight.prompts.chat_template import ChatTemplate
from midsight.prompts.prompt import PromptFormat, PromptTokens
from midsight.prompts.token_layout import Span, TokenLayout
from midsight.samples.sample import Sample

CPU = torch.device("cpu")
REQUEST = ResolvedRequest(
    taps=(),
    prompt=PromptFormat(ChatTemplate("raw", None)),
    pixels="pil",
    vision=False,
    processor_pooled_pixels=False,
    answers=True,
    max_new_tokens=5,
    answer_settings=AnswerSettings(),
    share=True,
    images_read_ahead=False,
    longrope_threshold=None,
    vectors={},
)


def asked(number, image, prefix, rest):
    """A prepared sample whose image takes `prefix` tokens and whose question `rest`."""
    layout = TokenLayout(Span(0, prefix + rest), (Span(0, prefix),), Span(prefix, prefix + rest))
    prompt = PromptTokens((image,) * prefix + (0,) * rest, layout, "")
    sample = Sample(str(number), number, (b"",), "?", image=str(image))
    return PreparedSample(sample, str(image), (), prompt, torch.zeros(1, 1))
