"""The token ids that the folder's own processor gives for a question and its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.request import ResolvedRequest
from midsight.prompts.chat_template import render_places, user_text
from midsight.prompts.prompt import adds_special_tokens
from midsight.samples.images import decode_image
from midsight.samples.sample import Sample


def processor_token_ids(model: LoadedModel, request: ResolvedRequest, sample: Sample) -> list[int] | None:
    """Token ids from the processor's own `apply_chat_template(..., tokenize=True)`; None if there is no processor.

    For a raw prompt they are from the processor's call on images and text. The request must not have a system turn.
    """
    processor, template = model.processor, request.prompt.template
    if not hasattr(processor, "apply_chat_template"):
        return None
    turn = request.prompt.turn(sample)
    decoded = [decode_image(source) for source in sample.images]
    images = [decoded[index] for index in turn.images]
    if template.text is None:
        text = render_places(processor, model.family.prompt, template, turn.places)
        add_special_tokens = adds_special_tokens(processor.tokenizer, text)
        return as_list(processor(text=text, images=images, add_special_tokens=add_special_tokens))
    content: Any = user_text(model.family.prompt, turn.places)
    given: dict[str, Any] = {"images": images}
    if template.content == "parts":
        content, given = [as_part(part, decoded) for part in turn.parts], {}
    return as_list(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template.text,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs=given,
        )
    )


def as_part(part: str | int, images: Sequence[Image.Image]) -> dict[str, Any]:
    """The part of a message that is a text, or the image with this index."""
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": images[part]}


def as_list(encoded: Any) -> list[int]:
    """The token ids in a processor's output for one prompt."""
    (ids,) = encoded["input_ids"]
    return list(map(int, ids))
