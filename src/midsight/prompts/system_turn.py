"""The system turn of a prompt: one of the user's, the template's own, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from midsight.errors import MidsightError, Option, first_line
from midsight.prompts.chat_template import CONTENTS, MARK, ChatTemplate, Message, render
from midsight.prompts.declaration import FamilyPrompt

SYSTEM_MARK = "MIDSIGHTSYSTEM"
PRINTED_LIST = ("{'type'", '{"type"')
"""A rendering with one of these has a message's list of parts printed as Python or JSON, not its text."""


@dataclass(frozen=True)
class SystemTurn:
    """What the prompts of a run have as their system turn."""

    messages: tuple[Message, ...] = ()
    """The message with the user's system text; empty if there is none."""
    left_out: str = ""
    """Text of the template's own system turn that is left out of every prompt."""
    start: int = 0
    """Where that text starts in a prompt, in characters."""

    def leave_out(self, text: str) -> str:
        """The prompt without the template's own system turn; raises MidsightError if that has changed."""
        if not self.left_out:
            return text
        stop = self.start + len(self.left_out)
        if text[self.start : stop] != self.left_out:
            raise MidsightError(
                "The chat template changes its own system turn from prompt to prompt, so it cannot be left out; give ",
                Option("prompt_template"),
                " a file without it.",
            )
        return text[: self.start] + text[stop:]


NO_SYSTEM_TURN = SystemTurn()
"""Prompts as the template makes them of the user's turn alone."""


def make_system_turn(
    processor: Any, declaration: FamilyPrompt, template: ChatTemplate, system: str | None
) -> SystemTurn:
    """The system turn for the option `system`: None is the template's choice, empty text no system turn at all.

    Raises MidsightError if the template takes no system turn, or if its own cannot be left out.
    """
    if system is None:
        return NO_SYSTEM_TURN
    if system == "":
        return find_default_turn(processor, declaration, template)
    return SystemTurn((system_message(processor, declaration, template, system),))


def system_message(processor: Any, declaration: FamilyPrompt, template: ChatTemplate, system: str) -> Message:
    """The message whose text the template renders; raises MidsightError if it takes no system message."""
    reason = "there is no template" if template.text is None else "it leaves the turn out"
    for message in candidates(SYSTEM_MARK) if template.text is not None else ():
        try:
            text = render(processor, declaration, template, MARK, before=[message])
        except Exception as error:  # a template may raise anything
            reason = f"it says: {first_line(error)}"
            continue
        if text.count(SYSTEM_MARK) == 1 and MARK in text and not any(printed in text for printed in PRINTED_LIST):
            return {**message, "content": fill(message["content"], system)}
    raise MidsightError(
        Option("system"),
        f" is {system!r}, and the chat template takes no system turn with an image ({reason}); put its words into ",
        Option("prompt"),
        ".",
    )


def candidates(system: str) -> Sequence[Message]:
    """A system message in each form that templates take."""
    contents = {"parts": [{"type": "text", "text": system}], "text": system}
    return [{"role": "system", "content": contents[form]} for form in CONTENTS]


def fill(content: Any, system: str) -> Any:
    """The content with the user's system text."""
    return system if isinstance(content, str) else [{"type": "text", "text": system}]


def find_default_turn(processor: Any, declaration: FamilyPrompt, template: ChatTemplate) -> SystemTurn:
    """What is left out of every prompt for no system turn at all; nothing if the template adds none of its own.

    Raises MidsightError if the template's own system turn cannot be told from the user's turn.
    """
    default = render(processor, declaration, template, MARK)
    first = processor.tokenizer.bos_token or ""
    start = len(first) if first and default.startswith(first) else 0
    if template.text is None or begins_with_user(processor, declaration, template, default[start:]):
        return NO_SYSTEM_TURN
    try:
        message = system_message(processor, declaration, template, SYSTEM_MARK)
        before, _, after = render(processor, declaration, template, MARK, before=[message]).partition(SYSTEM_MARK)
    except MidsightError:
        before, after = "", ""
    begins = after_special_tokens(processor.tokenizer, default, before, start)
    if any(begins_with_user(processor, declaration, template, default[begin:]) for begin in begins):
        return NO_SYSTEM_TURN
    head = before[start:].rstrip()  # a template may have a line break only before the user's system text
    known = default[start:].startswith(head) and default.endswith(after) and len(default) - start >= len(head + after)
    end = end_of_turn(head, after) if known else None
    if end is not None:
        stop = len(default) - len(after) + end
        return SystemTurn(left_out=default[start:stop], start=start)
    stops = [*ends_of_fixed_text(default, start, before, after)]
    for stop in stops:
        own, rest = default[start:stop], default[stop:]
        has_mark = before_content(declaration, rest) != ""  # else the text before it may be the user's
        is_one = len(stops) == 1 and has_mark and begins_with_user(processor, declaration, template, rest)
        if is_one or is_system_turn(own, before[stop:], after.removesuffix(rest)):
            return SystemTurn(left_out=own, start=start)
    raise MidsightError(
        Option("system"),
        " is '', and it cannot be told whether the chat template adds a system turn on its own; leave it out, or give ",
        Option("prompt_template"),
        " a file without one.",
    )


def ends_of_fixed_text(default: str, start: int, before: str, after: str) -> Iterator[int]:
    """Where the text may end that a template writes before every conversation, and before a system turn too.

    `before` and `after` stand around the user's system text in a prompt that has such a turn.
    """
    for stop in range(start + 1, len(default)):
        if before.startswith(default[:stop]) and after.endswith(default[stop:]) and before[stop:].strip():
            yield stop


def is_system_turn(own: str, opening: str, closing: str) -> bool:
    """Whether a text begins and ends like a system turn, which has these around its own text."""
    return own.startswith(opening.rstrip()) and own.endswith(closing)


def end_of_turn(head: str, after: str) -> int | None:
    """How many characters of `after`, which follows a system text, still belong to its turn; None if that is not known.

    `head` begins the turn: it names the role, as in `<|im_start|>system`, and the user's turn begins alike; or it is a
    mark that is closed, as in `[SYSTEM_PROMPT]`.
    """
    user_head, closing = head.replace("system", "user"), f"{head[:1]}/{head[1:]}"
    if user_head != head and user_head in after:
        return after.index(user_head)
    return len(closing) if len(head) > 1 and after.startswith(closing) else None


def begins_with_user(processor: Any, declaration: FamilyPrompt, template: ChatTemplate, prompt: str) -> bool:
    """Whether a prompt, without its first token, begins with the user's turn.

    If so, the same text stands before the user's text later in a conversation, after an assistant's turn.
    """
    head = before_content(declaration, prompt)
    for content in CONTENTS:
        said = "A" if content == "text" else [{"type": "text", "text": "A"}]
        asked = "Q" if content == "text" else [{"type": "text", "text": "Q"}]
        earlier: list[Message] = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        try:
            later = render(processor, declaration, template, MARK, before=earlier)
        except Exception:  # noqa: S112  (a template may raise anything, and may take the other form)
            continue
        if later.count(MARK) == 1 and not any(printed in later for printed in PRINTED_LIST):
            return before_content(declaration, later).endswith(head)
    return False


def after_special_tokens(tokenizer: Any, prompt: str, other: str, start: int) -> Iterator[int]:
    """Where two prompts go on after the special tokens, from `start`, that both begin with: one, two and more."""
    special = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    while found := [token for token in special if prompt.startswith(token, start) and other.startswith(token, start)]:
        start += len(max(found, key=len))
        yield start


def before_content(declaration: FamilyPrompt, prompt: str) -> str:
    """What stands before the image and the text of the only or last user's turn with an image."""
    image = declaration.image_markup if declaration.image_markup in prompt else declaration.image_in_template
    return prompt[: min(place for place in (prompt.find(image), prompt.index(MARK)) if place >= 0)]
