"""Control tokens: the added tokens that chat templates and images use, so that a question must not spell them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from midsight.prompts.chat_template import MARK, ChatTemplate, Message, folder_template, render
from midsight.prompts.declaration import FamilyPrompt
from midsight.samples.placeholders import PLACEHOLDER, looks_alike

ROLES = ("system", "assistant")
"""Roles whose tokens a template may put together from their names."""
MARK_LIKE = re.compile(r"\W.*\W", re.DOTALL)
"""How tokens of templates look that are not declared special."""


def control_tokens(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> tuple[str, ...]:
    """The added tokens that only midsight may place, sorted.

    These are the tokens of the chat templates, the tokenizer's own (the first and the last of a text, padding), and
    special ones for images, video and audio. Other added tokens are words of the user's.
    """
    tokenizer = processor.tokenizer
    named = {str(token) for token in getattr(tokenizer, "special_tokens_map", {}).values()}
    special = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    texts = list(template_texts(processor, declaration, template))

    def is_control(token: str) -> bool:
        if token in special and (PLACEHOLDER.search(token) or looks_alike(token)):
            return True
        # a word that the user added may also be one of the template's words
        is_mark = token in special or MARK_LIKE.fullmatch(token) is not None
        return token in named or (is_mark and any(token in text for text in texts))

    return tuple(token for token in sorted(tokenizer.get_added_vocab()) if is_control(token))


def template_texts(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> Iterator[str]:
    """The chosen template, the folder's and the family's, as Jinja and as what the chosen one renders."""
    yield declaration.image_markup
    yield from (text for text in (template.text, folder_template(processor), declaration.fallback_template) if text)
    yield from renderings(processor, declaration, template)


def renderings(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> Iterator[str]:
    """Prompts of the template with messages of every role; roles that it refuses are left out."""
    contents = [MARK, [{"type": "text", "text": MARK}]]
    befores: list[list[Message]] = [
        [],
        *([{"role": role, "content": content}] for role in ROLES for content in contents),
    ]
    for before in befores:
        with suppress(Exception):  # a template may raise anything
            yield render(processor, declaration, template, MARK, before=before)
