"""How the command line spells the arguments of a call."""

from __future__ import annotations

import shlex
from typing import Any

from midsight.errors import Option

ARGUMENTS = {"data": "DATA", "model": "--model"}
"""How the command line spells an argument, if it is not a flag of the same name."""
NEGATABLE = ("answers", "share")
"""Options that have a flag for False."""


def as_flag(option: Option) -> str:
    """An argument of the call as the command line spells it: `--max-new-tokens 20`, `--no-answers`."""
    flag = ARGUMENTS.get(option.name, f"--{option.name.replace('_', '-')}")
    if option.value is False:
        return flag.replace("--", "--no-") if option.name in NEGATABLE else f"no {flag}"
    if option.value is None or option.value is True:
        return flag
    return f"{flag} {shell_value(option.name, option.value)}"


def shell_value(name: str, value: Any) -> str:
    """An option's value as the command line takes it."""
    if isinstance(value, list | tuple):
        return ("/" if name == "shard" else ",").join(map(str, value))
    return shlex.quote(str(value))
