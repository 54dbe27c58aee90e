"""Why samples failed, in one sentence for many of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from midsight.samples.sample import Failure

OWN_PARTS = re.compile(r"""'[^']*'|"[^"]*"|\S*[/\\]\S*|\S*\d\S*""")
"""The parts of a reason that belong to one sample: quoted texts, paths, and words with digits."""


def kinds_of_failures(failures: Sequence[Failure]) -> list[tuple[Failure, int]]:
    """The first failure of each kind, and how many are like it, commonest first."""
    kinds = [OWN_PARTS.sub("", failure.reason) for failure in failures]
    return [(failures[kinds.index(kind)], count) for kind, count in Counter(kinds).most_common()]


def commonest_reason(failures: Sequence[Failure]) -> tuple[Failure, int]:
    """The first of those failures that are most alike, and how many these are; there must be at least one."""
    return kinds_of_failures(failures)[0]


def describe_reasons(failures: Sequence[Failure]) -> str:
    """The commonest reason, without its full stop, and how many of the failures are like it."""
    example, count = commonest_reason(failures)
    reason = example.reason.rstrip(".")
    if len(failures) == 1:
        return reason
    among = f"all {count:,}" if count == len(failures) else f"{count:,} of {len(failures):,}"
    return f"{reason} ({among} {'is' if count == 1 else 'are'} like this)"
