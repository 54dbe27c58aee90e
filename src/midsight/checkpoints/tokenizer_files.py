"""Control tokens, read from the files of a tokenizer in less than a second, because loading it takes several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from midsight.checkpoints.headers import read_json, read_text
from midsight.errors import MidsightError
from midsight.prompts.control_tokens import MARK_LIKE

ROLE_TOKEN = re.compile(r"(\W+)(?:system|user|assistant)(\W+)")
"""A token that a template puts together from the name of a role."""


def declared_control_tokens(folder: Path) -> frozenset[str]:
    """Tokens of a model folder that a question must not spell, as far as its files tell; empty if there are none.

    These are the tokenizer's own, and added tokens of the chat template. All of them, which also depend on the
    family, are known when the tokenizer is loaded.
    """
    settings = _json(folder / "tokenizer_config.json")
    named = {*_own_tokens(settings), *_own_tokens(_json(folder / "special_tokens_map.json"))}
    template = settings.get("chat_template")
    texts = [template] if isinstance(template, str) else []
    with suppress(OSError, ValueError):
        texts.append(read_text(folder / "chat_template.jinja"))
    text = "\n".join(texts)

    def is_control(token: str, special: bool) -> bool:
        is_mark = special or MARK_LIKE.fullmatch(token) is not None
        return token in named or (is_mark and (token in text or _is_of_role(token, text)))

    added = _added_tokens(_json(folder / "tokenizer.json"))
    return frozenset(token for token, special in added if is_control(token, special))


def _is_of_role(token: str, template: str) -> bool:
    found = ROLE_TOKEN.fullmatch(token)
    return found is not None and all(part in template for part in (*found.groups(), "role"))


def _own_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str) and content:
            yield content


def _added_tokens(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each added token, and whether it is declared special."""
    described = tokenizer.get("added_tokens")
    for token in described if isinstance(described, list) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and content:
            yield content, token.get("special") is True


def _json(path: Path) -> Mapping[str, Any]:
    """The file's object; empty if it cannot be read, which is said when the folder is opened."""
    with suppress(MidsightError):
        return read_json(path)
    return {}
