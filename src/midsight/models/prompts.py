"""From a question to token ids: template, control tokens, and the layout of the result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from midsight.errors import MidsightError, SampleError
from midsight.models.adapter import Adapter
from midsight.models.layout import Span, TokenLayout, runs_of

QUESTION = "{question}"


@dataclass(frozen=True)
class PromptTemplate:
    """The words around every question of a run."""

    user: str = QUESTION
    """The user's text; `{question}` stands for the sample's question."""
    system: str | None = None
    """Text of a system turn before the user's."""

    def __post_init__(self) -> None:
        if self.user.count(QUESTION) != 1:
            raise MidsightError(f"--prompt is {self.user!r}; it has to contain {QUESTION} exactly once.")


@dataclass(frozen=True)
class PromptTokens:
    """A tokenised prompt, its image tokens expanded."""

    token_ids: tuple[int, ...]
    """Without padding."""
    layout: TokenLayout
    """Where its parts lie."""
    text: str
    """The prompt as text, each image still one token."""


def find_control_text(text: str, tokenizer: Any, adapter: Adapter) -> str | None:
    """The first control token or image placeholder that `text` spells out, if any."""
    placeholder = re.search(adapter.placeholder, text) if adapter.placeholder else None
    if placeholder:
        return placeholder.group()
    return next((token for token in sorted(tokenizer.get_added_vocab()) if token in text), None)


def check_template(template: PromptTemplate, tokenizer: Any, adapter: Adapter) -> None:
    """Raises MidsightError where the template spells a control token, or has a turn that the family does not take."""
    if template.system is not None and not adapter.takes_system:
        raise MidsightError(
            f"--system is {template.system!r}, and {adapter.family} takes no system turn before an image; "
            "put its words into --prompt."
        )
    for option, text in (("--prompt", template.user), ("--system", template.system or "")):
        control = find_control_text(text, tokenizer, adapter)
        if control:
            raise MidsightError(f"{option} contains the control token {control!r}; leave it out: midsight places it.")


def tokenise_prompt(
    tokenizer: Any, adapter: Adapter, template: PromptTemplate, question: str, image_tokens: Sequence[int]
) -> PromptTokens:
    """The prompt for a question on images that take `image_tokens[i]` tokens each.

    Text that spells a control token is refused, never turned into one: a question that carries the
    template of another tool would otherwise give numbers of another prompt. Raises SampleError.
    """
    if not question.strip():
        raise SampleError("The question is empty; give one, or leave the sample out.")
    before, after = template.user.split(QUESTION)
    user_text = before + question + after
    # of the whole text: template and question, harmless each, may spell a token between them
    control = find_control_text(user_text, tokenizer, adapter)
    if control:
        raise SampleError(f"The question contains the control token {control!r}; leave it out: midsight places it.")
    prompt = adapter.render_prompt(
        user_text, (len(before), len(before) + len(question)), len(image_tokens), template.system
    )
    # the text has every special token already: a tokenizer that adds its own would begin it twice
    encoded = tokenizer(prompt.text, return_offsets_mapping=True, add_special_tokens=False)
    return expand_image_tokens(
        encoded["input_ids"],
        encoded["offset_mapping"],
        prompt.text,
        question_chars=prompt.question,
        image_token_id=tokenizer.convert_tokens_to_ids(adapter.image_token),
        image_tokens=image_tokens,
    )


def expand_image_tokens(
    token_ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    *,
    question_chars: tuple[int, int],
    image_token_id: int,
    image_tokens: Sequence[int],
) -> PromptTokens:
    """Repeats each image token as often as its image needs, and lays out the result.

    `offsets` are the tokens' character ranges in `text`.
    """
    if list(token_ids).count(image_token_id) != len(image_tokens):
        raise SampleError(
            f"The prompt has {list(token_ids).count(image_token_id)} image tokens for {len(image_tokens)} images."
        )
    question_start, question_stop = question_chars
    expanded: list[int] = []
    in_question: list[int] = []
    counts = iter(image_tokens)
    for token_id, (start, stop) in zip(token_ids, offsets, strict=True):
        if start < question_stop and stop > question_start:
            in_question.append(len(expanded))
        expanded.extend([token_id] * (next(counts) if token_id == image_token_id else 1))
    layout = TokenLayout(
        prompt=Span(0, len(expanded)),
        image=runs_of(expanded, image_token_id),
        question=Span(in_question[0], in_question[-1] + 1) if in_question else Span(0, 0),
    )
    return PromptTokens(tuple(expanded), layout, text)
