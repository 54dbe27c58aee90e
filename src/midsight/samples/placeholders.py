"""What datasets write into questions for other tools: image placeholders and markup of turns."""

from __future__ import annotations

import re

from midsight.errors import SampleError

_OPENING = (
    r"<\|?(?:vision_start|image_start|img_start|im_start|start_of_image|begin_of_image|fake_token_around_image|img)\|?>"
)
_CLOSING = r"<\|?(?:vision_end|image_end|img_end|im_end|end_of_image|fake_token_around_image|/img|/image)\|?>"
_TAG = (
    r"<\|?\s?(?:image|img)[ _:#-]?(?P<number>\d+)\s?[:/]?\|?>|<\|?\s?image\s?/?\|?>|<\|img\|>|\\<image\\>"
    r"|&lt;image(?:[ _-]?(?P<escaped>\d+))?&gt;"
    r"|<\|?(?:ima?ge?_?(?:here|placeholder|plh|token|pad|soft_token|feature|features|context)|im_patch)\|?>"
)
_BRACKETS = r"(?<!\w)\[(?:image|img|<img_plh>)(?:[ _#-]{0,2}(?P<in_brackets>\d+))?\](?!\()"
_PATH = r"(?:[^<>\s]*|[^<>\n]+\.\w{3,4}\s?)"
"""A path or nothing; only a name with a suffix may have spaces in it."""
_WITH_PATH = (
    rf"<img>{_PATH}</img>|\(<image>\./</image>\)|<image>{_PATH}</image>|<image><image></image>"
    r"|<\|media_start\|>image<\|media_content\|><\|media_pad\|><\|media_end\|>"
)
_AT_THE_EDGE = r"(?:^|(?=\S+[^\S\n]*$))(?:\{\{?image(?:[ _]?(?P<in_braces>\d+))?\}?\}|<img>)"
"""Also words of questions about code, so a placeholder only where they begin or end a line."""
_IN_LINE = r"(?<![`'\"])<img>(?![`'\"]|\s*(?:html|tags?|elements?|attributes?|nodes?)\b)"
"""`<img>` between words, unless the words are about HTML."""

PLACEHOLDER = re.compile(
    rf"{_WITH_PATH}|(?:{_OPENING})?(?:{_TAG})(?:{_CLOSING})?|<start_of_image>(?:<end_of_image>)?|{_BRACKETS}"
    rf"|{_AT_THE_EDGE}|{_IN_LINE}",
    re.IGNORECASE | re.MULTILINE,
)
"""Text for one image: `<image>`, `<image 1>`, `<|image_1|>`, `[IMG]`, `<img>a.png</img>`, a model's own tokens."""

_BETWEEN_WORDS = re.compile(rf"\S[^\S\n]*{_IN_LINE}(?![^<>\n]*</img>)[^\S\n]*\S", re.IGNORECASE)
_LEADING_OF_ANY_KIND = re.compile(rf"\s*(?:{PLACEHOLDER.pattern})", PLACEHOLDER.flags)

_LOOKS_ALIKE = re.compile(
    r"<[^<>\n]{0,40}(?:image|img|picture|photo|vision|video|audio|media)[^<>\n]{0,200}>|!\[[^\]\n]*\]\([^)\n]+\)|\{image\w*\}|&lt;image",
    re.IGNORECASE,
)

_LEADING = re.compile(r"\s*(?:<image>(?![^<>\n]*</image>)(?!<image></image>)|<\|image_(?P<number>\d+)\|>)")

_CHAT_MARKUP = re.compile(
    r"<\|(?:im_start|im_end|im_sep|user|assistant|system|end|start_header_id|end_header_id|eot_id|eom_id|begin_of_text"
    r"|end_of_text|endoftext|end_of_turn|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN)\|>"
    r"|^<s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<end_of_utterance>|<[｜|](?:User|Assistant)[｜|]>|</s>$"
)
"""Markup of turns that chat templates of usual models write."""

_USER = re.compile(r"\s*(?:(?P<sure>###\s*(?:USER|User|Human|HUMAN)|USER|HUMAN)|User|Human)\s*:\s*")
_ASSISTANT = re.compile(r"\s*(?:###\s?)?(?<!\w)(?:ASSISTANT|Assistant|GPT)\s?:\s?(?:<answer>)?$")
_LONGEST_ENDING = 40
"""Characters in which `_ASSISTANT` is looked for."""
_INSIDE = re.compile(r"(?:^|\s)(?:###\s*)?(?P<speaker>USER|User|HUMAN|Human|ASSISTANT|Assistant|GPT)\s*:")
_AT_LINE_START = re.compile(
    r"^[^\S\n]*(?:(?:###\s*)?(?:User|Human|Assistant)|###\s*(?:Instruction|Response))\s*:", re.MULTILINE
)
_ASKED, _SAID = frozenset(("USER", "HUMAN")), frozenset(("ASSISTANT", "GPT"))


def number_of(placeholder: re.Match[str]) -> int | None:
    """The number in a placeholder, such as 1 in `<image 1>`; None if it has none."""
    return int(placeholder[placeholder.lastgroup]) if placeholder.lastgroup else None


def looks_alike(question: str) -> str | None:
    """The first text that may stand for an image, and may as well be words, so that it stays in the prompt."""
    found = _LOOKS_ALIKE.search(PLACEHOLDER.sub("", question))
    return found.group() if found else None


def has_tag_in_line(question: str) -> bool:
    """Whether `<img>` stands for an image between words, where it may as well be a word."""
    return _BETWEEN_WORDS.search(question) is not None


def chat_markup(text: str) -> str | None:
    """The first markup of turns in a text, such as `<|im_start|>` or `[INST]`, if any."""
    found = _CHAT_MARKUP.search(text)
    return found.group() if found else None


def role_inside(question: str) -> str | None:
    """The first text like `USER:` or, at the start of a line, `User:`, which may mark a turn, if any."""
    found = next((one for one in _INSIDE.finditer(question) if one["speaker"].isupper()), None)
    found = found or _AT_LINE_START.search(question)
    return found.group().strip() if found else None


def without_turns(question: str) -> str:
    """The question without `USER:` before it and `ASSISTANT:` after it, as prompts for LLaVA have them.

    `User:` may begin the words of a question, so it is left out only if `Assistant:` ends them. Raises SampleError if
    the text holds several turns; in capitals only, unless such a beginning or end says that it is a prompt.
    """
    begin = 0
    while leading := _LEADING_OF_ANY_KIND.match(question, begin):
        begin = leading.end()
    whole = question.rstrip()
    opening, closing = _USER.match(whole, begin), _ASSISTANT.search(whole, max(begin, len(whole) - _LONGEST_ENDING))
    if opening is not None and not (closing or opening["sure"]):
        opening = None
    start, stop = opening.end() if opening else begin, closing.start() if closing else len(question)
    is_prompt = opening is not None or closing is not None
    found = (one["speaker"] for one in _INSIDE.finditer(question, start, stop))
    speakers = {speaker.upper() for speaker in found if is_prompt or speaker.isupper()}
    if not is_prompt and not (speakers & _ASKED and speakers & _SAID):
        return question
    if speakers:
        raise SampleError(
            "the question holds several turns or a whole prompt (USER:, ASSISTANT:); give the first question alone."
        )
    return question[:begin] + ("\n" if begin and opening else "") + question[start:stop]


def without_leading(question: str, images: int) -> str:
    """The question without the placeholders before its text, if they are one for each image, in order, and all.

    They say what a prompt does anyway: all images come first. Any other question is returned as it is.
    """
    end = found = 0
    while leading := _LEADING.match(question, end):
        found, end = found + 1, leading.end()
        if leading["number"] not in (None, str(found)):
            return question
    rest = question[end:].lstrip()
    return rest if found == images and not PLACEHOLDER.search(rest) else question
