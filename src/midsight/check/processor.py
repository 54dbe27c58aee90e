"""What the folder's own processor makes of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.request import ResolvedRequest
from midsight.prompts.chat_template import render_messages, render_places, user_text
from midsight.prompts.prompt import adds_special_tokens
from midsight.samples.images import decode_image
from midsight.samples.sample import Sample


def processor_inputs(model: LoadedModel, request: ResolvedRequest, sample: Sample) -> Mapping[str, Any] | None:
    """What the processor's own `apply_chat_template(..., tokenize=True)` gives; None if there is no processor.

    For a raw prompt it is from the processor's call on images and text. The request must not have a system turn.
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
        return processor(text=text, images=[images], add_special_tokens=add_special_tokens, return_tensors="pt")
    content: Any = user_text(model.family.prompt, turn.places)
    seen, given = content, dict[str, Any](images=images)
    if template.content == "parts":
        content, given = [as_part(part, decoded) for part in turn.parts], {}
        seen = [as_part(part, ["<Image>"] * len(decoded)) for part in turn.parts]  # what a template sees of it
    # raises if the template has no end, which transformers does not notice
    render_messages(processor, template, [{"role": "user", "content": seen}])
    has_own = template.source in ("folder", "family") and isinstance(getattr(processor, "chat_template", None), str)
    own = has_own and template.time is None
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=None if own else template.text_at_time,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",  # SmolVLM's processor overwrites the one in processor_kwargs
        processor_kwargs=given,
    )


def as_part(part: str | int, images: Sequence[Any]) -> dict[str, Any]:
    """The part of a message that is a text, or the image with this index."""
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": images[part]}


def takes(model: LoadedModel, request: ResolvedRequest, sample: Sample) -> bool:
    """Whether the folder's own processor, if there is one, takes a sample; some take one image only."""
    try:
        processor_inputs(model, request, sample)
    except Exception:  # templates and processors raise many types
        return False
    return True
