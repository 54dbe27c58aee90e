"""Why samples failed, in one sentence for many of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from midsight.samples.sample import Failure

OWN_PARTS = re.compile(r"""'[^']*'|"[^"]*"|\S*[/\\]\S*|\S*\d\S*""")
"""The parts of a reason that belong to one sample: quoted texts, paths, and words with digits."""


def commonest_reason(failures: Sequence[Failure]) -> tuple[Failure, int]:
    """The first of those failures that are most alike, and how many these are; there must be at least one."""
    kinds = [OWN_PARTS.sub("", failure.reason) for failure in failures]
    kind, count = Counter(kinds).most_common(1)[0]
    return failures[kinds.index(kind)], count


def describe_reasons(failures: Sequence[Failure]) -> str:
    """The commonest reason, without its full stop, and how many of the failures are like it."""
    example, count = commonest_reason(failures)
    reason = example.reason.rstrip(".")
    if len(failures) == 1:
        return reason
    among = f"all {count:,}" if count == len(failures) else f"{count:,} of {len(failures):,}"
    return f"{reason} ({among} {'is' if count == 1 else 'are'} like this)"
