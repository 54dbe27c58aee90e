"""The chat template that makes a prompt: the folder's own, the family's, a file's, or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from midsight.errors import MidsightError, Option, first_line
from midsight.prompts.declaration import QUESTION, FamilyPrompt

Content = Literal["parts", "text"]
"""How a template takes a message: a list of image and text parts, or one text with image tokens in it."""

CONTENTS: tuple[Content, ...] = ("parts", "text")
MARK = "MIDSIGHTMARK"
"""A text that no template changes or contains; it marks the place of the user's text in a prompt."""
MAX_TEMPLATE_BYTES = 1_000_000


@dataclass(frozen=True)
class ChatTemplate:
    """A template that renders the prompt of one user turn."""

    source: str
    """`folder`, `family`, `raw`, or the path of a file."""
    text: str | None
    """Jinja, as transformers renders it; None for `raw`, which is the images and the user's text alone."""
    content: Content = "parts"
    """How it takes a message."""


def choose_template(processor: Any, declaration: FamilyPrompt, choice: str | Path, folder: str) -> ChatTemplate:
    """The template that `prompt_template` names: `auto`, `raw`, or a file.

    `auto` is the folder's own, or the family's if the folder has none that renders an image and a text.
    Raises MidsightError if there is none, or if a file's template does not work.
    """
    if choice == "auto":
        found = find_template(processor, declaration)
        if found is None:
            raise MidsightError(
                f"{folder} has no chat template for an image and a text; give ",
                Option("prompt_template"),
                " a file with one, or raw for the images and the user's text alone.",
            )
        return found
    if choice == "raw":
        return ChatTemplate("raw", None)
    text = read_template(Path(choice))
    for content in CONTENTS:
        template = ChatTemplate(str(choice), text, content)
        if is_usable(processor, declaration, template):
            return template
    raise MidsightError(
        Option("prompt_template"),
        f" is {str(choice)!r}, which does not render one {declaration.image_token} and the user's text: "
        f"{why_unusable(processor, declaration, ChatTemplate(str(choice), text))}; correct the file.",
    )


def read_template(path: Path) -> str:
    """The text of a template file; raises MidsightError."""
    try:
        content = path.read_bytes()[: MAX_TEMPLATE_BYTES + 1]
        if len(content) > MAX_TEMPLATE_BYTES:
            raise MidsightError(Option("prompt_template"), f" is {str(path)!r}, which is larger than 1 MB.")
        return content.decode("utf-8")
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


def is_usable(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> bool:
    """Whether the template renders one image and one text, each once."""
    return why_unusable(processor, declaration, template) is None


def why_unusable(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> str | None:
    """Why a template does not render one image and one text, each once; None if it does."""
    try:
        text = render(processor, declaration, template, MARK)
    except Exception as error:  # a template may raise anything
        return first_line(error)
    images, texts = text.count(declaration.image_token), text.count(MARK)
    return None if (images, texts) == (1, 1) else f"it renders {images} images and the text {texts} times"


def render(
    processor: Any,
    declaration: FamilyPrompt,
    template: ChatTemplate,
    user_text: str,
    *,
    images: int = 1,
    system: str | None = None,
) -> str:
    """The prompt of one user turn: images first, then the text, then the start of the assistant's turn.

    With `system`, a system turn comes first. Raises whatever the template raises.
    """
    if template.text is None:
        return declaration.image_markup * images + user_text
    messages = [{"role": "user", "content": user_content(declaration, template.content, user_text, images)}]
    if system is not None:
        content = system if template.content == "text" else [{"type": "text", "text": system}]
        messages.insert(0, {"role": "system", "content": content})
    renderer = processor if hasattr(processor, "apply_chat_template") else processor.tokenizer
    return renderer.apply_chat_template(
        messages, chat_template=template.text, add_generation_prompt=True, tokenize=False
    )


def user_content(declaration: FamilyPrompt, content: Content, user_text: str, images: int) -> Any:
    """The content of the user's message, images first."""
    if content == "text":
        return declaration.image_markup * images + user_text
    return [*({"type": "image"} for _ in range(images)), {"type": "text", "text": user_text}]


def default_prompt(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> str:
    """The prompt for one image and `{question}`."""
    return render(processor, declaration, template, QUESTION)


def describe_template(folder: str, name: str, declaration: FamilyPrompt, template: ChatTemplate, prompt: str) -> str:
    """What a user should know about the template, in one sentence; empty if it renders the published prompt.

    `name` is the family's, `prompt` what `default_prompt` rendered.
    """
    if template.source == "family":
        return f"{folder} has no chat template for an image and a text, so that of the published {name} is used."
    if declaration.published in (None, prompt):
        return ""
    return f"The chat template of {folder} is not that of the published {name}; it is used, and renders {prompt!r}."


def validate_system(processor: Any, declaration: FamilyPrompt, template: ChatTemplate, system: str) -> None:
    """Raises MidsightError if the template renders no system turn together with an image."""
    try:
        if template.text is not None and MARK in render(processor, declaration, template, "a", system=MARK):
            return
        reason = "it leaves the turn out" if template.text is not None else "there is no template"
    except Exception as error:  # a template may raise anything
        reason = f"it says: {first_line(error)}"
    raise MidsightError(
        Option("system"),
        f" is {system!r}, and the chat template takes no system turn with an image ({reason}); put its words into ",
        Option("prompt"),
        ".",
    )


def find_default_system_turn(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> tuple[int, int]:
    """Start and stop, in characters of any prompt, of the system turn that the template adds on its own.

    (0, 0) if it adds none. Raises MidsightError if it cannot be told from the user's turn.
    """
    default = render(processor, declaration, template, MARK)
    try:
        before, mark, after = render(processor, declaration, template, MARK, system=f"{MARK}S").partition(f"{MARK}S")
    except Exception:  # no system turn, so none by default that could be told
        return 0, 0
    if not mark or len(default) < len(before + after) or not (default.startswith(before) and default.endswith(after)):
        return 0, 0
    first = processor.tokenizer.bos_token or ""
    start = len(first) if first and before.startswith(first) else 0
    user_head = before[start:].replace("system", "user")
    if user_head == before[start:] or user_head not in after:
        raise MidsightError(
            Option("system"),
            " is '', and the system turn that the chat template adds by itself cannot be told from the user's; give ",
            Option("prompt_template"),
            " a file without it.",
        )
    return start, len(default) - len(after) + after.index(user_head)
