"""Conversations of LLaVA, ShareGPT and OpenAI: the first question, its images, and the reply to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from midsight.errors import SampleError, counted
from midsight.samples.placeholders import PLACEHOLDER
from midsight.samples.rows import shortened_json
from midsight.samples.written_lists import written_value

CONVERSATION_COLUMNS = ("conversations", "messages", "conversation")
"""Columns that hold a conversation: LLaVA's and ShareGPT's, OpenAI's."""
_REQUESTS = ("body", "params")
"""Columns of requests in files for batches of OpenAI, vLLM and Anthropic, which have a column `custom_id`."""
_TURNS = ("messages", "conversations", "conversation", "input")
"""Where an object, such as a request, holds its turns."""
_SYSTEM = ("system", "instructions")
"""Where an object holds its system turn, beside the others."""

_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_NAMED_IN_TEXT = re.compile(r"<img>([^<>\n]+)</img>")
"""An image that the text of a turn names, as Qwen-VL's data have it."""


def conversation_column(columns: Collection[str]) -> str | None:
    """The column that holds a conversation, by its name and those of the others; None if there is none."""
    found = next((name for name in CONVERSATION_COLUMNS if name in columns), None)
    if found is None and "custom_id" in columns:
        found = next((name for name in _REQUESTS if name in columns), None)
    if found is None and "texts" in columns and {"images", "image"} & {*columns}:  # the Cauldron, Docmatix
        found = "texts"
    return found


def first_exchange(cell: Any, images: int | None) -> tuple[str, str | None]:
    """The first question of a conversation, with `<image>` for each image inside it, and the reply to it.

    Raises SampleError if the cell is not a conversation that begins with the user, after system turns, or if the
    question has placeholders `<image>` and not one for each of the sample's `images`; None if they are not known.
    """
    turns = [turn for turn in _turns(cell) if turn[0] != "system"]
    if not turns or turns[0][0] != "user":
        raise SampleError(
            f"the conversation is {shortened_json(cell)}; it must begin with a turn from 'human' or 'user'."
        )
    question = "".join(_text_of_part(part) for part in _parts(turns[0][1]))
    if not PLACEHOLDER.search(question) and any(
        speaker == "user" and PLACEHOLDER.search(_shown(content)) for speaker, content in turns[1:]
    ):
        raise SampleError("the first question is about no image, a later turn is; midsight asks the first question.")
    placeholders = question.count("<image>")
    if images is not None and placeholders not in (0, images):
        raise SampleError(
            f"the first question has {counted(placeholders, 'placeholder')} <image>, but the sample has "
            f"{counted(images, 'image')}."
        )
    replies = turns[1:2] if turns[1:] and turns[1][0] == "assistant" else []
    return question, "".join(_text_of_part(part) for _, content in replies for part in _parts(content)) or None


def images_of_conversation(cell: Any) -> list[Any] | None:
    """The images that the first question has in it, in order; None if the cell is not a conversation."""
    turns = [turn for turn in _turns(cell) if turn[0] != "system"]
    if not turns:
        return None
    sources: list[Any] = []
    for part in _parts(turns[0][1]):
        if _is_image(part):
            sources.append(_source_of_part(part))
        else:
            sources += _NAMED_IN_TEXT.findall(_text_of_part(part))
    return [source for source in sources if source is not None]


def has_system_turn(cell: Any) -> bool:
    """Whether the cell is a conversation in which the system speaks."""
    beside = isinstance(cell, Mapping) and any(cell.get(name) for name in _SYSTEM)
    return beside or any(speaker == "system" for speaker, _ in _turns(cell))


def has_later_questions(cell: Any) -> bool:
    """Whether the cell is a conversation in which the user speaks more than once."""
    return sum(speaker == "user" for speaker, _ in _turns(cell)) > 1


def is_conversation(cell: Any) -> bool:
    """Whether the cell holds turns with speakers that are known."""
    return any(speaker for speaker, _ in _turns(cell))


def _turns(cell: Any) -> Iterator[tuple[str, Any]]:
    """Speaker and content of each turn; of an object that holds turns, those."""
    if isinstance(cell, str):
        cell = written_value(cell)
    if isinstance(cell, Mapping):
        inner = next((cell[name] for name in _TURNS if cell.get(name) is not None), None)
        if isinstance(inner, str):
            yield "user", inner
            return
        cell = inner if inner is not None else _as_list_of_turns(cell)
    for turn in cell if isinstance(cell, list) else ():
        if not isinstance(turn, Mapping):
            return
        speaker = turn.get("from") or turn.get("role")
        if speaker is None and "user" in turn:
            yield "user", turn["user"]
            if turn.get("assistant") is not None:
                yield "assistant", turn["assistant"]
            continue
        name = "value" if turn.get("from") and "value" in turn else "content"
        yield _SPEAKERS.get(str(speaker).casefold(), ""), turn[name] if name in turn else turn.get("value")


def _as_list_of_turns(fields: Mapping[str, Any]) -> list[Any]:
    """The turns of an object with a list for each field, which `datasets` makes of a list of turns."""
    if not fields.keys() & {"from", "role", "user"} or not all(isinstance(each, list) for each in fields.values()):
        return []
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=False)]


def _shown(content: Any) -> str:
    """A turn as text; empty if it is not one."""
    try:
        return "".join(_text_of_part(part) for part in _parts(content))
    except SampleError:
        return ""


def _parts(content: Any) -> list[Any]:
    if not isinstance(content, str | list):
        raise SampleError(f"a turn of the conversation is {shortened_json(content)}, not text or a list of parts.")
    return [content] if isinstance(content, str) else content


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if _is_image(part):
        return "<image>"
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise SampleError(f"a part of the conversation is {shortened_json(part)}, not a text or an image.")
    return text


def _is_image(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    if kind := part.get("type"):
        return kind in ("image", "image_url", "input_image")
    return all(part.get(name) is None for name in ("text", "video", "audio"))


def _source_of_part(part: Mapping[str, Any]) -> Any:
    """Path, address, bytes or base64 of an image part; None if it only marks the place of another column's image."""
    for name in ("image", "image_url", "url", "path", "source"):
        value = part.get(name)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if value is not None:
            return value
    return None
