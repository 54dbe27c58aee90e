"""Trains the small tokenizer of the random Phi-4-multimodal checkpoint on our own text.

Run `python scripts/train_tokenizer.py` after changing the text; the same text gives the same file. The vocabulary is
small and the special tokens have Phi-4's published ids, so the ids in between have no token.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "scripts" / "tokenizer_text.txt"
TOKENIZER = ROOT / "src" / "midsight" / "testing" / "assets" / "tokenizer.json"
VOCABULARY_SIZE = 1536
"""Number of byte-level and merged tokens, without special tokens."""

SPECIAL_TOKENS = {
    199999: "<|endoftext|>",
    200010: "<|endoftext10|>",
    200011: "<|endoftext11|>",
    200018: "<|endofprompt|>",
    200019: "<|assistant|>",
    200020: "<|end|>",
    200021: "<|user|>",
    200022: "<|system|>",
    200023: "<|tool|>",
    200024: "<|/tool|>",
    200025: "<|tool_call|>",
    200026: "<|/tool_call|>",
    200027: "<|tool_response|>",
    200028: "<|tag|>",
}
FIRST_CHAT_TOKEN = 200019
"""From this id on, a special token strips the white space after it."""
TOOL_TOKENS = range(200023, 200028)
"""Added tokens that are not special: decoding keeps them when special tokens are skipped."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "teal")
SHAPES = ("circle", "triangle", "square", "rectangle", "star", "oval", "cube", "cone", "ring", "cross")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = ("to the left of", "to the right of", "above", "below", "behind", "next to")


def questions() -> list[str]:
    """Questions and answers about shapes, colours, counts and positions."""
    lines = []
    for colour, shape in itertools.product(COLOURS, SHAPES):
        lines += [
            f"Is there a {colour} {shape} in the image? Yes, there is a {colour} {shape}.",
            f"Does the image contain a {shape}? No, it does not contain a {shape}.",
            f"What color is the {shape}? The {shape} is {colour}.",
            f"What shape is {colour}? The {shape} is {colour}.",
            f"Is the {shape} {colour}? Answer yes or no.",
        ]
    for number, shape in itertools.product(NUMBERS, SHAPES):
        lines.append(f"How many {shape}s are in the picture? There are {number} {shape}s in the picture.")
    for place, shape, other in itertools.product(PLACES, SHAPES, reversed(SHAPES)):
        lines.append(f"Is the {shape} {place} the {other}? What is {place} the {other}?")
    return lines


def train(text: str) -> Tokenizer:
    """A byte-level BPE tokenizer without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return tokenizer


def with_special_tokens(tokenizer: Tokenizer) -> str:
    """The JSON of the tokenizer with Phi-4's special tokens at their ids.

    An added token keeps its id only if the model's vocabulary has it too, so it gets both entries.
    """
    content = json.loads(tokenizer.to_str())
    for token_id, token in SPECIAL_TOKENS.items():
        content["model"]["vocab"][token] = token_id
        content["added_tokens"].append(
            {
                "id": token_id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": token_id >= FIRST_CHAT_TOKEN,
                "normalized": False,
                "special": token_id not in TOOL_TOKENS,
            }
        )
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Trains the tokenizer and writes it into the package."""
    text = TEXT.read_text(encoding="utf-8") + "\n".join(questions())
    TOKENIZER.parent.mkdir(parents=True, exist_ok=True)
    TOKENIZER.write_text(with_special_tokens(train(text)), encoding="utf-8")


if __name__ == "__main__":
    main()
