"""What a model family declares about its prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

QUESTION = "{question}"
"""Stands for the sample's question in a template."""
DATE, ANY_DATE = "{date}", r"\d{4}-\d{2}-\d{2}"
"""Stands for the day on which a template is rendered; and, as a regular expression, how it is written."""


class ReadTokenId(Protocol):
    """Reads a token id from a config."""

    def __call__(self, config: Any, /) -> int:
        """`config` is transformers' config of the whole model; returns an id from 0."""
        ...


class CompleteText(Protocol):
    """Changes a rendered prompt as the family's processor does."""

    def __call__(self, text: str, tokenizer: Any, /) -> str:
        """`text` is the prompt, each image one image token; returns what is tokenised."""
        ...


def keep_text(text: str, _tokenizer: Any) -> str:
    """For processors that tokenise what was rendered."""
    return text


def image_token_id(config: Any) -> int:
    """The id of the image token, from the field that most configs have."""
    return config.image_token_id


@dataclass(frozen=True, kw_only=True)
class FamilyPrompt:
    """The image token of a family, and the prompt of its published checkpoint."""

    image_token: str
    """The token that stands for image content; it is repeated, once per embedding of the image."""
    image_token_id: ReadTokenId = image_token_id
    """Its id in the config, which must equal the tokenizer's."""
    template_token: str = ""
    """What a template renders for an image if the processor then replaces it by text with image tokens in it, as for
    Gemma 3; empty if it is the image token."""
    image_text: str = ""
    """What stands for one image in a prompt before tokens are repeated; empty if it is `image_in_template` alone."""
    complete_text: CompleteText = keep_text
    """What the family's processor does to a rendered prompt before it tokenises it."""
    published: str | None = None
    """The published checkpoint's prompt for one image and `{question}`; None if a family has several. `{date}` is in it
    where the template writes today's date. A folder whose own chat template renders something else is used as it is,
    and midsight says so."""
    fallback_template: str | None = None
    """Jinja chat template for folders without a usable one; None if the family offers none."""
    placeholder: str | None = None
    """Regular expression of what else a question must not contain: placeholders of images and audio, and control tokens
    of the published model that its chat template does not use; the template's own are refused anyway."""

    @property
    def image_in_template(self) -> str:
        """The token that a template renders for an image."""
        return self.template_token or self.image_token

    @property
    def image_markup(self) -> str:
        """What stands for one image in a prompt."""
        return self.image_text or self.image_in_template

    def is_published(self, prompt: str) -> bool | None:
        """Whether a prompt for one image and `{question}` is the published one; None if a family has several."""
        if self.published is None:
            return None
        return re.fullmatch(re.escape(self.published).replace(re.escape(DATE), ANY_DATE), prompt) is not None
