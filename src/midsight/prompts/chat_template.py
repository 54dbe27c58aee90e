"""The chat template that makes a prompt: the folder's own, the family's, a file's, or none."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from midsight.bounded_process import do_bounded
from midsight.errors import MidsightError, Option, counted, first_line
from midsight.prompts.declaration import QUESTION, FamilyPrompt

Message = Mapping[str, Any]
"""A message as transformers takes it: `role`, and `content`, which is a text or a list of parts."""
Content = Literal["parts", "text"]
"""How a template takes a message: a list of image and text parts, or one text with image tokens in it."""

CONTENTS: tuple[Content, ...] = ("parts", "text")
MARK = "MIDSIGHTMARK"
"""A text that no template changes or contains; it marks the place of the user's text in a prompt."""
MAX_TEMPLATE_BYTES = 1_000_000
TELLS_TIME = "strftime_now"
"""The function by which a template asks for the time, as transformers calls it."""
ASKS_TIME = re.compile(rf"""{TELLS_TIME}\(\s*(['"])([^'"\\]*)\1\s*\)""")
MOST_SECONDS = 3.0
"""CPU time in which a template has to render a prompt; an ordinary one takes a thousandth of it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that renders the prompt of one user turn."""

    source: str
    """`folder`, `family`, `raw`, or the path of a file."""
    text: str | None
    """Jinja, as transformers renders it; None for `raw`, which is the images and the user's text alone."""
    content: Content = "parts"
    """How it takes the user's message."""
    time: str | None = None
    """The local time that it is told, as ISO writes it; None for the present time, and if it does not ask."""

    @property
    def sha256(self) -> str | None:
        """Hash of its text, hex; None for `raw`."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()

    def at(self, time: str | None) -> ChatTemplate:
        """The same template, told this time whenever it asks; None stands for now."""
        if self.text is None or TELLS_TIME not in self.text:
            return self
        return replace(self, time=time or datetime.now().isoformat(timespec="seconds"))

    @property
    def text_at_time(self) -> str | None:
        """Its text for transformers' own renderers, which cannot be told a time: the time is in place of the calls.

        Calls whose format is not written out stay, and get the present time.
        """
        if self.text is None or self.time is None:
            return self.text
        time = datetime.fromisoformat(self.time)
        return ASKS_TIME.sub(lambda call: json.dumps(time.strftime(call[2])), self.text)


def choose_template(
    processor: Any, declaration: FamilyPrompt, choice: str | Path, *, own: ChatTemplate | None, folder: str
) -> ChatTemplate:
    """The template that `prompt_template` names: `auto`, `raw`, or a file.

    `auto` is `own`, which find_template found for the model `folder`.
    Raises MidsightError if there is none, or if a file's template does not work.
    """
    if choice == "auto":
        if own is None:
            raise MidsightError(
                f"{folder} has no chat template for an image and a text ({why_no_template(processor, declaration)}); "
                "give ",
                Option("prompt_template"),
                " a file with one, or raw for the images and the user's text alone.",
            )
        return own
    if choice == "raw":
        return ChatTemplate("raw", None)
    text = read_template(choice)
    for content in CONTENTS:
        template = ChatTemplate(str(choice), text, content)
        if is_usable(processor, declaration, template):
            return template
    raise MidsightError(
        Option("prompt_template"),
        f" is {str(choice)!r}, which does not render one {declaration.image_in_template} and the user's text: "
        f"{why_unusable(processor, declaration, ChatTemplate(str(choice), text))}; correct the file.",
    )


def validate_template_choice(choice: str | Path) -> None:
    """Raises MidsightError if `prompt_template` is none of `auto`, `raw`, and a file that can be read."""
    if choice not in ("auto", "raw"):
        read_template(choice)


def read_template(choice: str | Path) -> str:
    """The text of the template file that `prompt_template` names; raises MidsightError."""
    if not isinstance(choice, str | Path) or choice == "":
        raise MidsightError(Option("prompt_template"), f" is {choice!r}; give auto, raw, or a file.")
    path = Path(choice)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(content) > MAX_TEMPLATE_BYTES:
            raise MidsightError(Option("prompt_template"), f" is {str(path)!r}, which is larger than 1 MB.")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise MidsightError(
            Option("prompt_template"),
            f" is {str(path)!r}, which cannot be read ({first_line(error)}); give auto, raw, or a file with a chat "
            "template.",
        ) from error


def find_template(processor: Any, declaration: FamilyPrompt) -> ChatTemplate | None:
    """The folder's own template if it is usable, else the family's; None if there is neither."""
    own = folder_template(processor)
    candidates = [ChatTemplate("folder", own, content) for content in CONTENTS] if own is not None else []
    if declaration.fallback_template is not None:
        candidates.append(ChatTemplate("family", declaration.fallback_template))
    return next((one for one in candidates if is_usable(processor, declaration, one)), None)


def folder_template(processor: Any) -> str | None:
    """The chat template of a processor, or of its tokenizer; if it has several, the one named default."""
    for holder in (processor, processor.tokenizer):
        template = getattr(holder, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return template
    return None


def why_no_template(processor: Any, declaration: FamilyPrompt) -> str:
    """Why the folder's own template is not used, in words."""
    own = folder_template(processor)
    if own is None:
        named = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
        return "of its templates none is named default" if named else "it brings none"
    return f"its own is not usable: {why_unusable(processor, declaration, ChatTemplate('folder', own))}"


def is_usable(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> bool:
    """Whether the template renders one image and one text, each once."""
    return why_unusable(processor, declaration, template) is None


def why_unusable(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> str | None:
    """Why a template does not render one image and one text, each once; None if it does."""
    if len(template.text or "") > MAX_TEMPLATE_BYTES:
        return "it is larger than 1 MB"
    try:
        text = render(processor, declaration, template, MARK)
    except Exception as error:  # a template may raise anything
        return first_line(error)
    images, texts = text.count(declaration.image_in_template), text.count(MARK)
    rendered = f"it renders {counted(images, 'image')} and the text {counted(texts, 'time')}"
    return None if (images, texts) == (1, 1) else rendered


def render(
    processor: Any,
    declaration: FamilyPrompt,
    template: ChatTemplate,
    user_text: str,
    *,
    images: int = 1,
    before: Sequence[Message] = (),
) -> str:
    """The prompt of one user turn: images first, then the text, then the start of the assistant's turn.

    `before` are messages that come before that turn. Raises whatever the template raises.
    """
    return render_places(processor, declaration, template, (*[None] * images, user_text), before=before)


def render_places(
    processor: Any,
    declaration: FamilyPrompt,
    template: ChatTemplate,
    places: Sequence[str | None],
    *,
    before: Sequence[Message] = (),
) -> str:
    """The prompt of one user turn, whose `places` are texts, and None for each image; as `render` otherwise."""
    if template.text is None:
        return user_text(declaration, places)
    messages = [*before, {"role": "user", "content": user_content(declaration, template.content, places)}]
    return render_messages(processor, template, messages)


def render_messages(processor: Any, template: ChatTemplate, messages: Sequence[Message]) -> str:
    """The prompt of messages that JSON can hold, within bounds of time and memory; not for `raw`.

    Raises whatever the template raises.
    """
    renderer = processor if hasattr(processor, "apply_chat_template") else processor.tokenizer
    if not renders_as_transformers(renderer):
        return renderer.apply_chat_template(
            messages, chat_template=template.text_at_time, add_generation_prompt=True, tokenize=False
        )
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    variables = {**given, **processor.tokenizer.special_tokens_map}
    return do_bounded("render", seconds=MOST_SECONDS, template=template.text, variables=variables, time=template.time)


def renders_as_transformers(renderer: Any) -> bool:
    """Whether the processor's or tokenizer's way to render is transformers', not that of a class of the user's."""
    method = getattr(type(renderer), "apply_chat_template", None)
    return method is not None and method.__module__.startswith("transformers.")


def user_content(declaration: FamilyPrompt, content: Content, places: Sequence[str | None]) -> Any:
    """The content of the user's message."""
    if content == "text":
        return user_text(declaration, places)
    return [{"type": "image"} if text is None else {"type": "text", "text": text} for text in places]


def user_text(declaration: FamilyPrompt, places: Sequence[str | None]) -> str:
    """The user's message as one text with image tokens in it."""
    return "".join(declaration.image_markup if text is None else text for text in places)


def can_interleave(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> bool:
    """Whether the template keeps the places of images between texts."""
    try:
        text = render_places(processor, declaration, template, (f"{MARK}1", None, f"{MARK}2"))
    except Exception:  # a template may raise anything
        return False
    first, image, second = (text.find(part) for part in (f"{MARK}1", declaration.image_in_template, f"{MARK}2"))
    return text.count(declaration.image_in_template) == 1 and 0 <= first < image < second


def default_prompt(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> str:
    """The prompt for one image and `{question}`."""
    return render(processor, declaration, template, QUESTION)


def describe_template(
    processor: Any, declaration: FamilyPrompt, template: ChatTemplate | None, *, folder: str, name: str
) -> str:
    """What a user should know about the template, in one sentence; empty if it renders the published prompt.

    `name` is the family's; `template` is what find_template found.
    """
    if template is None or template.source == "family":
        consequence = (
            "so its prompt has to be chosen with the option prompt_template"
            if template is None
            else f"so that of the published {name} is used"
        )
        why = why_no_template(processor, declaration)
        return f"{folder} has no chat template for an image and a text ({why}), {consequence}."
    prompt = default_prompt(processor, declaration, template)
    if declaration.is_published(prompt) is not False:
        return ""
    return f"The chat template of {folder} is not that of the published {name}; it is used, and renders {prompt!r}."
