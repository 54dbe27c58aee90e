"""How the HDF5 parts are laid out: names of groups, datasets and attributes, and how texts and ids are written.

A part has one group for each sample, named by its `question_id`. It holds four texts, the dataset
`vision_only_representation` [d], and two groups with a dataset `layer_{k}` [hidden size] for each layer. Attributes
whose names begin with `midsight` are only in parts that midsight wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

SAMPLES_PER_PART = 1000
IMAGE, QUESTION, TRUTH, ANSWER = TEXTS = ("image_id", "question", "ground_truth_answer", "answer")
"""The texts of a sample; `image_id` is the name of its image file."""

FILE_ATTRIBUTES = ("model_name", "model_type", "device", "dtype", "created_at", "num_samples")
"""What a part says about itself; two of the scripts write none of it."""
VERSION, RUN_ID, VISION_ONLY_IS, LAST_LAYER, STORE_DTYPE, IDS, LAYERS = OWN_ATTRIBUTES = (
    "midsight_version", "midsight_run_id", "midsight_vision_only", "midsight_last_layer", "midsight_store_dtype",
    "midsight_ids", "midsight_decoder_layers",
)  # fmt: skip
"""What a part by midsight says besides."""
INPUT_INDEX = "midsight_input_index"
"""Attribute of a sample's group: its row in the dataset."""
AFTER_NORM, BEFORE_NORM = "after the final norm", "before the final norm"
PERCENT_ENCODED = "percent-encoded"
UNKNOWN = "unknown"
"""What midsight writes for a device or a dtype that an imported run does not know."""

_LAYER = re.compile(r"layer_(0|[1-9][0-9]{0,3})")
_ERROR_ANSWER = re.compile(r"\s*(\[Generation failed: |Error generating response: )")
_NO_TRUTH = ("", "nan", "N/A")
_ASSISTANT = "Assistant:"


def layer_name(layer: int) -> str:
    """The name of a layer's dataset."""
    return f"layer_{layer}"


def parse_layer(name: str) -> int | None:
    """The layer of a dataset; None if its name is not that of a layer."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def part_name(model_type: str, number: int) -> str:
    """The file name of a part, from 1."""
    return f"{re.sub(r'[^a-z0-9]+', '_', model_type.casefold()).strip('_')}_embeddings_part_{number:03d}.h5"


def part_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts `part_1000` behind `part_999`."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"([0-9]{1,18})", name)]


def needs_encoding(ids: Iterable[str]) -> bool:
    """Whether one of the ids cannot be the name of a group."""
    return any("/" in one or "\0" in one or one in ("", ".") for one in ids)


def group_name(sample_id: str, *, encoded: bool) -> str:
    """The name of a sample's group.

    >>> group_name("val/12.", encoded=True), group_name(".", encoded=True), group_name("50%", encoded=False)
    ('val%2F12.', '%2E', '50%')
    """
    if not encoded:
        return sample_id
    name = quote(sample_id, safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def sample_id_of(name: str, attributes: Mapping[str, str]) -> str:
    """The id that a group's name stands for."""
    return unquote(name) if attributes.get(IDS) == PERCENT_ENCODED else name


def truth_text(references: Sequence[str]) -> str:
    """Reference answers as one text: the only one as it is, anything else as a JSON list, none as an empty text.

    >>> truth_text(["a dog"]), truth_text(["a", "b"]), truth_text(["nan"]), truth_text([])
    ('a dog', '["a", "b"]', '["nan"]', '')
    """
    if not references:
        return ""
    plain = len(references) == 1 and references[0] not in _NO_TRUTH and not references[0].startswith("[")
    return references[0] if plain else json.dumps(list(references), ensure_ascii=False)


def references_of(text: str | None, *, by_midsight: bool) -> tuple[str, ...]:
    """The reference answers that a text stands for.

    >>> references_of('["a", "b"]', by_midsight=True), references_of("nan", by_midsight=False)
    (('a', 'b'), ())
    """
    if text is None or text in _NO_TRUTH:
        return ()
    if by_midsight and text.startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            return (text,)
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return tuple(found)
    return (text,)


def is_error_answer(answer: str) -> bool:
    """Whether a script stored an error message in place of an answer."""
    return _ERROR_ANSWER.match(answer) is not None


def without_prompt(answer: str, question: str) -> str | None:
    r"""What follows the prompt in a text that may begin with it; None if the prompt's end is not found.

    >>> without_prompt("User:\n\nIs it red?\nAssistant: Yes.", "Is it red?")
    'Yes.'
    """
    start = answer.find(question.strip())
    if start < 0 or not question.strip():
        return answer if _ASSISTANT not in answer else answer.partition(_ASSISTANT)[2].strip()
    _, found, said = answer[start + len(question.strip()) :].partition(_ASSISTANT)
    return said.strip() if found else None


def numeric_ids(ids: Collection[str]) -> list[str]:
    """The ids that pandas reads as numbers, so that look-ups by text miss them; the first three."""
    found = []
    for one in ids:
        try:
            float(one)
        except ValueError:
            continue
        found.append(one)
        if len(found) == 3:
            break
    return found
