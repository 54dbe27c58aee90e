"""From a question to token ids: the rendered prompt, its tokens, and where its parts lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from midsight.errors import MidsightError, Option, SampleError, counted, first_line
from midsight.prompts.chat_template import MARK, ChatTemplate, can_interleave, choose_template, render_places
from midsight.prompts.control_tokens import control_tokens
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.image_places import UserTurn, place_images
from midsight.prompts.system_turn import NO_SYSTEM_TURN, SystemTurn, make_system_turn
from midsight.prompts.token_layout import Span, TokenLayout, runs_of
from midsight.prompts.user_text import QUESTION_ALONE, UserText, parse_user_text
from midsight.samples.columns import ColumnSource
from midsight.samples.placeholders import PLACEHOLDER, chat_markup
from midsight.samples.sample import Sample


@dataclass(frozen=True)
class PromptFormat:
    """How a question becomes a prompt; the same for a whole run."""

    template: ChatTemplate
    """Renders the turn."""
    user: UserText = QUESTION_ALONE
    """The user's text, with places for the question and for other columns."""
    system: str | None = None
    """Text of a system turn before the user's; None is the template's own choice, empty text no system turn."""
    system_turn: SystemTurn = NO_SYSTEM_TURN
    """What that means for the template."""
    interleaves: bool = False
    """Whether the template keeps the places of images between texts; else all images come first."""
    controls: tuple[str, ...] = ()
    """Added tokens that no text of the user's may spell."""

    def turn(self, sample: Sample) -> UserTurn:
        """The user's turn for a sample: its text, and where its images are. Raises SampleError."""
        return place_images(self.user.fill(sample), len(sample.images), interleave=self.interleaves)

    def render(self, processor: Any, declaration: FamilyPrompt, places: Sequence[str | None]) -> str:
        """The prompt of a turn, each image one image token; raises whatever the template raises.

        `places` are the turn's texts, and None for each image.
        """
        before = self.system_turn.messages
        text = render_places(processor, declaration, self.template, places, before=before)
        return self.system_turn.leave_out(text)


@dataclass(frozen=True)
class PromptTokens:
    """A tokenised prompt, its image tokens repeated."""

    token_ids: tuple[int, ...]
    """Without padding."""
    layout: TokenLayout
    """Where its parts lie."""
    text: str
    """The prompt as text, each image still one image token."""


def make_prompt_format(
    processor: Any,
    declaration: FamilyPrompt,
    *,
    user: str,
    system: str | None,
    prompt_template: str | Path,
    own: ChatTemplate | None,
    folder: str,
    columns: Mapping[str, ColumnSource] = MappingProxyType({}),
    time: str | None = None,
) -> PromptFormat:
    """How a run's questions become prompts; raises MidsightError for a text or a template that cannot be used.

    `folder` names the model in errors; `columns` are those that the user's text may use. `time` is what a template that
    asks for it is told in all prompts, None for now.
    """
    user_text = parse_user_text(user, columns)
    template = choose_template(processor, declaration, prompt_template, own=own, folder=folder).at(time)
    controls = control_tokens(processor, declaration, template)
    validate_texts(user, system, lambda text: find_control_text(text, controls, declaration))
    return PromptFormat(
        template,
        user_text,
        system,
        make_system_turn(processor, declaration, template, system),
        can_interleave(processor, declaration, template),
        controls,
    )


def validate_texts(user: str, system: str | None, find_control: Callable[[str], str | None]) -> None:
    """Raises MidsightError if one of these options spells an image placeholder, or what `find_control` finds."""
    for option, text in (("prompt", user), ("system", "" if system is None else system)):
        if not isinstance(text, str):
            raise MidsightError(Option(option), f" is {text!r}; give a text.")
        found = [one.group() for one in PLACEHOLDER.finditer(text)]
        placeholder = next((one for one in found if not one.startswith("{")), None)  # {image} is a column
        control = placeholder or find_control(text)
        if control:
            raise MidsightError(
                Option(option), f" contains the control token {control!r}; leave it out: midsight places it."
            )


def find_control_text(text: str, controls: Sequence[str], declaration: FamilyPrompt) -> str | None:
    """The first of the control tokens `controls`, or image placeholder, that `text` spells out, if any."""
    placeholder = re.search(declaration.placeholder, text) if declaration.placeholder else None
    if placeholder:
        return placeholder.group()
    return next((token for token in controls if token in text), None)


def tokenise_prompt(
    processor: Any,
    declaration: FamilyPrompt,
    prompt_format: PromptFormat,
    turn: UserTurn,
    image_tokens: Sequence[int],
    image_texts: Sequence[str] = (),
) -> PromptTokens:
    """The prompt for a turn whose images take `image_tokens[i]` tokens each, in the order of the prompt.

    `image_texts[i]` is what the processor writes for the image; without it, the image token is repeated.

    The token ids equal those of the processor's `apply_chat_template(..., tokenize=True)`. Text that spells a control
    token is refused: a question with another tool's template in it would otherwise become another prompt. Raises
    SampleError.
    """
    question = turn.text[slice(*turn.question)]
    if not question.strip():
        raise SampleError("The question is empty; give one, or leave the sample out.")
    # the whole text: its question and the text around it, each harmless, may spell a token together
    control = find_control_text(turn.text, prompt_format.controls, declaration)
    if control:
        raise SampleError(f"The question contains the control token {control!r}; leave it out: midsight places it.")
    if markup := chat_markup(question):
        raise SampleError(
            f"The question contains {markup!r}, in which the chat template of another model writes turns; give the "
            "question alone."
        )
    before, marked_places = mark_question(turn)
    try:
        text = prompt_format.render(processor, declaration, turn.places)
        marked = prompt_format.render(processor, declaration, marked_places)
    except MidsightError as error:
        raise SampleError(*error.args) from error
    except Exception as error:  # a template may raise anything
        raise SampleError(
            f"The chat template refuses {counted(len(image_tokens), 'image')} and this question: {first_line(error)}."
        ) from error
    tokenizer = processor.tokenizer
    # decided before the text is completed, as the processor does
    special_tokens = adds_special_tokens(tokenizer, text)
    text, marked = (declaration.complete_text(each, tokenizer) for each in (text, marked))
    question_chars = find_question(text, marked, before, question)
    written, repeated = text, image_tokens
    if any(image_texts):
        written, question_chars = write_images(text, declaration.image_in_template, image_texts, question_chars)
        repeated = [1] * sum(image_tokens)
    encoded = tokenizer(written, return_offsets_mapping=True, add_special_tokens=special_tokens)
    return expand_image_tokens(
        encoded["input_ids"],
        encoded["offset_mapping"],
        text,
        question_chars=question_chars,
        image_token_id=tokenizer.convert_tokens_to_ids(declaration.image_token),
        image_tokens=repeated,
    )


def write_images(
    text: str, token: str, image_texts: Sequence[str], chars: tuple[int, int]
) -> tuple[str, tuple[int, int]]:
    """The prompt with the text of each image in place of its `token`, and where the range `chars` is then.

    Raises SampleError if there is not one token per image.
    """
    first, *rest = text.split(token)
    if len(rest) != len(image_texts):
        raise SampleError(f"The prompt has {len(rest)} image tokens for {len(image_texts)} images.")
    written, place, moves = first, len(first), list[tuple[int, int]]()
    for image_text, piece in zip(image_texts, rest, strict=True):
        moves.append((place, len(image_text) - len(token)))
        written += image_text + piece
        place += len(token) + len(piece)
    start, stop = (char + sum(move for place, move in moves if place < char) for char in chars)
    return written, (start, stop)


def adds_special_tokens(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer may add its own special tokens to a prompt: not if the prompt has the first one already.

    The rule of transformers' `ProcessorMixin.apply_chat_template`.
    """
    return tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)


def mark_question(turn: UserTurn) -> tuple[str, tuple[str | None, ...]]:
    """What stands before the question in its text, and the turn's places with MARK for that text.

    A question with images inside has several texts; MARK then stands for all from the first to the last.
    """
    start, stop = turn.question
    begin, touched = 0, dict[int, int]()
    for index, part in enumerate(turn.places):
        end = begin + len(part or "")
        if begin < stop and end > start:
            touched.setdefault(index, begin)
        begin = end
    first, last = min(touched), max(touched)
    places = turn.places
    return (places[first] or "")[: max(0, start - touched[first])], (*places[:first], MARK, *places[last + 1 :])


def find_question(text: str, marked: str, before: str, question: str) -> tuple[int, int]:
    """Start and stop of the question in a prompt, in characters.

    `marked` is the same prompt with MARK for the text that holds the question, `before` what stands before the question
    in that text.
    A template may trim the user's text; if it changes the text in another way, all of it counts as the question.
    """
    head, _, tail = marked.partition(MARK)
    start, stop = len(head), len(text) - len(tail)
    user_text = text[start:stop]
    for spelled in (question, question.rstrip(), question.lstrip(), question.strip()):
        for offset in (len(before), len(before.lstrip())):
            if user_text[offset : offset + len(spelled)] == spelled:
                return start + offset, start + offset + len(spelled)
    return start, stop


def expand_image_tokens(
    token_ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    *,
    question_chars: tuple[int, int],
    image_token_id: int,
    image_tokens: Sequence[int],
) -> PromptTokens:
    """Repeats each image token as often as its image needs, and finds the layout of the result.

    `offsets` are the tokens' character ranges in the text that `question_chars` counts. Raises SampleError if there is
    not one image token per image.
    """
    found = list(token_ids).count(image_token_id)
    if found != len(image_tokens):
        raise SampleError(f"The prompt has {counted(found, 'image token')} for {counted(len(image_tokens), 'image')}.")
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
