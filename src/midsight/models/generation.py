"""How a model ends its answers: the folder's generation config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from midsight.errors import MidsightError, first_line
from midsight.models.headers import read_json

FILE = "generation_config.json"


def read_generation(folder: Path, tokenizer: Any, vocab_size: int) -> tuple[GenerationConfig, tuple[int, ...]]:
    """The folder's generation config, and the ids in it that end an answer, ascending.

    Raises MidsightError where transformers does not take it, or an id is no token.
    """
    ids = read_stop_ids(folder)
    check_stop_ids(ids, tokenizer, vocab_size, str(folder / FILE))
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True), ids
    except Exception as error:  # transformers checks values, each with an error of its own
        raise MidsightError(f"{folder / FILE} is not usable ({first_line(error)}); download it again.") from error


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """Token ids that end an answer, from the folder's generation config; raises MidsightError without one.

    The ids of tokenizer and config end a text, not a turn: Phi-4-multimodal would answer on and on.
    """
    return as_ids(read_json(folder / FILE).get("eos_token_id"), str(folder / FILE))


def as_ids(eos: Any, source: str) -> tuple[int, ...]:
    """One token id or several, ascending; raises MidsightError for anything else."""
    ids = eos if isinstance(eos, list) else [eos]
    if not ids or not all(type(one) is int and one >= 0 for one in ids):
        raise MidsightError(f"{source} says {eos!r} for eos_token_id; give the ids of the tokens that end an answer.")
    return tuple(sorted(ids))


def check_stop_ids(ids: tuple[int, ...], tokenizer: Any, vocab_size: int, source: str) -> None:
    """Raises MidsightError for an id that no answer can contain."""
    tokens = set(tokenizer.get_vocab().values())
    for one in ids:
        if one not in tokens or one >= vocab_size:
            raise MidsightError(
                f"{source} says {one} for eos_token_id, which is no token of this tokenizer and model; "
                "give the ids of the tokens that end an answer."
            )
