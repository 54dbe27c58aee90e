"""How a model ends its answers: the folder's generation config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from midsight.checkpoints.headers import read_json
from midsight.errors import MidsightError, ModelFileError, first_line

FILE = "generation_config.json"


def read_generation(folder: Path, tokenizer: Any, vocab_size: int) -> tuple[GenerationConfig, tuple[int, ...]]:
    """The folder's generation config, and its token ids that end an answer, ascending.

    Raises MidsightError if transformers does not take the file, or if an id is not a token.
    """
    ids = read_stop_ids(folder)
    validate_stop_ids(ids, tokenizer, vocab_size, str(folder / FILE))
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True), ids
    except Exception as error:  # transformers validates values, each with its own type of error
        raise ModelFileError(f"{folder / FILE} is not usable ({first_line(error)})", folder / FILE) from error


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """Token ids that end an answer, from the folder's generation config; raises MidsightError if it has none.

    The ids in tokenizer and config end a text, not a turn: with them Phi-4-multimodal would not stop.
    """
    return as_ids(read_json(folder / FILE).get("eos_token_id"), str(folder / FILE))


def as_ids(eos: Any, source: str) -> tuple[int, ...]:
    """`eos_token_id` as a tuple, ascending; raises MidsightError unless it is a token id or a list of them."""
    ids = eos if isinstance(eos, list) else [eos]
    if not ids or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise MidsightError(f"{source} says {eos!r} for eos_token_id; give the ids of the tokens that end an answer.")
    return tuple(sorted(ids))


def validate_stop_ids(ids: tuple[int, ...], tokenizer: Any, vocab_size: int, source: str) -> None:
    """Raises MidsightError for an id that no answer can contain."""
    tokens = set(tokenizer.get_vocab().values())
    for token_id in ids:
        if token_id not in tokens or token_id >= vocab_size:
            raise MidsightError(
                f"{source} says {token_id} for eos_token_id, which is not a token of this tokenizer and model; "
                "give the ids of the tokens that end an answer."
            )
