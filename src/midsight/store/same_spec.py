"""Whether another call may add to a run: its run.json, value by value, against what the call would write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from midsight.buckets.path import Place
from midsight.errors import Option, RunError, counted
from midsight.store.spec import RiskSpec, RunSpec
from midsight.store.typed_json import to_json


def require_same_run(path: Place, stored: RunSpec, asked: RunSpec) -> None:
    """Raise RunError that names the first thing by which `asked` would make other rows than `stored` did."""
    require_same_origin(path, stored, imported=asked.imported is not None)
    before, now = _decisive_values(stored), _decisive_values(asked)
    for option, value in before.items():
        if option in COMPARED_BY_DIGEST and value != now[option]:
            raise _other_content(path, option, COMPARED_BY_DIGEST[option](stored), COMPARED_BY_DIGEST[option](asked))
        _require_equal(path, value, now[option], partial(Option, option))
    for noun, detail, old, new in (
        ("vector column", "of width", stored.vectors, asked.vectors),
        ("input column", "of type", stored.extras, asked.extras),
    ):
        for name in dict.fromkeys((*old, *new)):
            _require_equal(path, old.get(name), new.get(name), partial(_spell_column, f"{noun} {name}", detail))


def require_same_origin(path: Place, stored: RunSpec, *, imported: bool) -> None:
    """Raise RunError if rows are to be imported into an extracted run, or the other way round."""
    if (stored.imported is not None) != imported:
        raise RunError(
            f"{path} was {'extracted' if imported else 'imported'}, and this call would "
            f"{'import' if imported else 'extract'} other rows into it; use another ", Option("out"), ".",
        )  # fmt: skip


@dataclass(frozen=True)
class _Content:
    """What an option stands for, in a message about its content."""

    name: str | None
    """The option's value, as a path or name; None for objects."""
    digest: str | None
    """SHA-256 of the content, hex."""
    rows: int | None = None
    """Number of rows of a dataset."""

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"{counted(self.rows, 'row')}, "
        return f"({rows}SHA-256 {self.digest[:DIGEST_CHARACTERS] if self.digest else 'none'})"


_NOTHING = _Content(None, None)
DIGEST_CHARACTERS = 16
"""Hex digits of a SHA-256 in a message: enough to see that two differ."""
COMPARED_BY_DIGEST: Mapping[str, Callable[[RunSpec], _Content]] = {
    "data": lambda spec: _Content(spec.dataset.path or "from Python", spec.dataset.sha256, spec.dataset.rows),
    "model": lambda spec: _Content(spec.model.name, spec.model.fingerprint),
    "family": lambda spec: _Content(spec.model.family_file or "none", spec.model.family_sha256),
    "prompt_template": lambda spec: _Content(spec.prompt.template, spec.prompt.template_sha256),
    "probe": lambda spec: _NOTHING if spec.risks is None else _Content(spec.risks.probe, spec.risks.probe_sha256),
}
"""Options whose content is compared, as a digest."""


def _other_content(path: Place, option: str, before: _Content, now: _Content) -> RunError:
    """The error for an option whose content is not the run's."""
    started = (f"{path} was started ", *_named(option, before, "with ", "without "))
    if before.name == now.name:
        return RunError(
            *started, f", and its content is now another {now}; restore it or use another ", Option("out"), "."
        )
    return RunError(
        *started,
        ", and this call ",
        *_named(option, now, "has ", "has no "),
        "; use the old one or another ",
        Option("out"),
        ".",
    )


def _named(option: str, content: _Content, there: str, absent: str) -> tuple[str | Option, ...]:
    """The content of an option after one of two words, as the parts of a sentence."""
    if content == _NOTHING:
        return absent, Option(option)
    return there, Option(option, content.name), f" {content}"


def _decisive_values(spec: RunSpec) -> dict[str, Any]:
    """Value by option of the call, for every field that decides the rows."""
    return {
        field_.metadata["option"]: to_json(getattr(part, field_.name))
        for part in (spec.request, spec.prompt, spec.model, spec.dataset)
        for field_ in fields(part)
        if "option" in field_.metadata
    } | {
        field_.metadata["option"]: None if spec.risks is None else to_json(getattr(spec.risks, field_.name))
        for field_ in fields(RiskSpec)
        if "option" in field_.metadata
    }


def _spell_column(name: str, detail: str, value: Any) -> str:
    return name if value is None else f"{name} {detail} {value}"


def _require_equal(path: Place, before: Any, now: Any, spell: Callable[[Any], str | Option]) -> None:
    """Raise RunError unless both are equal; `spell` names the thing with its value, None if it is absent."""
    if before != now:
        raise RunError(
            f"{path} was started {'without' if before is None else 'with'} ",
            spell(before),
            f", and this call has {'no ' if now is None else ''}",
            spell(now),
            "; use the old value or another ",
            Option("out"),
            ".",
        )
