"""What a store or the network refuses, as one sentence, without queries of addresses, which may hold a signature."""

from __future__ import annotations

import errno
import re

from midsight.errors import RefusedError, UnreachableError, first_line, quoted

_ANSWER = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_QUERY = re.compile(r"\?[^\s\"')]*")
_DENIED = frozenset(("AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch"))
"""What stores call the denial of one object, or of one kind of request."""
_OTHER_REGION = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|incorrectly configured region")


def explained(error: Exception, name: str) -> OSError | UnreachableError:
    """The error to raise for one of obstore's.

    Args:
        error: What obstore raised.
        name: The address.

    Returns:
        FileNotFoundError, FileExistsError where a condition does not hold, RefusedError or UnreachableError.
    """
    from obstore import exceptions

    answer = _ANSWER.search(str(error))
    code = answer[1] if answer else ""
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "it is not there", name)
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return FileExistsError(errno.EEXIST, "another one was written in its place", name)
    if code in _DENIED or (isinstance(error, exceptions.PermissionDeniedError) and not code):
        return RefusedError(
            f"{name} cannot be reached: the store denies access to it; see to what your credentials may do there, and "
            "run the same command again."
        )
    reason = _QUERY.sub("", first_line(error))
    if answer:
        reason = quoted(": ".join(filter(None, (code, (answer[2] or "").strip().rstrip(".")))))
    region = ", set AWS_REGION to the region of the bucket" if _OTHER_REGION.search(str(error)) else ""
    clock = ", and the clock of this machine" if "TimeTooSkewed" in str(error) else ""
    return unreachable(name, reason, f"check the address, the network and your credentials{region}{clock}")


def unreachable(name: str, reason: str, then: str = "check the network and your credentials") -> UnreachableError:
    """The error for a store that does not do what it is asked; `then` is what to do before the next try."""
    return UnreachableError(
        f"{name} cannot be reached: {reason}; what was committed is intact, so {then}, and run the same command again."
    )
