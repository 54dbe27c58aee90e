"""Images that are objects in a bucket: names stay below the root that the user gave, and sizes are bounded."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from midsight.buckets.path import BucketPath, is_bucket_address
from midsight.errors import Option, RefusedError, SampleError

LONGEST_KEY = 1_024
"""Bytes of the longest name that stores have."""


def object_below(root: BucketPath, reference: str, shown: str) -> BucketPath:
    """The object that a dataset's `reference` names, relative to `root` or as an address; the store is not asked.

    `shown` is the reference for messages. Raises SampleError for a name that leaves the root, because a dataset must
    not choose what else is read with the user's credentials.
    """
    name = reference
    if is_bucket_address(reference):
        if not reference.startswith(f"{root}/"):
            raise _outside(root, shown)
        name = reference.removeprefix(f"{root}/")
    elif reference.startswith("/"):
        raise _outside(root, shown, "; if it is in it, leave out the first /")
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        raise SampleError(f"{shown} is not a usable name: it has control characters.")
    bucket_and_folder = f"{root.root.partition('://')[2]}/{root.key}".strip("/")
    normal = posixpath.normpath(f"{bucket_and_folder}/{name}")
    if not normal.startswith(f"{bucket_and_folder}/"):
        raise _outside(root, shown)
    path = root / normal.removeprefix(f"{bucket_and_folder}/")
    if len(path.key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise SampleError(f"{shown} is not a usable name: it has more than {LONGEST_KEY:,} bytes.")
    return path


def _outside(root: BucketPath, shown: str, hint: str = "") -> SampleError:
    return SampleError(
        f"{shown} lies outside the image folder {root}{hint}; name the folder that holds all images with the option ",
        Option("images"),
        ".",
    )


def forms_of(path: BucketPath) -> Iterable[BucketPath]:
    """The path, and the same name in other Unicode forms, in which it may exist."""
    keys = (path.key, unicodedata.normalize("NFC", path.key), unicodedata.normalize("NFD", path.key))
    return [replace(path, key=key) for key in dict.fromkeys(keys)]


def read_object(path: BucketPath, name: str, max_bytes: int, hint: str) -> bytes:
    """The object's bytes.

    Args:
        path: The object.
        name: Begins the sentence of an error.
        max_bytes: Largest size; a larger object is not read to its end.
        hint: What may be wrong with the name of an object that does not exist.

    Returns:
        The bytes.

    Raises:
        SampleError: The object is too large, does not exist, or is not for these credentials.
        UnreachableError: The store does not answer, which says nothing about the sample.
    """
    for form in forms_of(path):
        try:
            content = form.read_at_most(max_bytes)
        except FileNotFoundError:
            continue
        except RefusedError:
            raise SampleError(f"{name} cannot be read: the store denies access to it.") from None
        if content is None:
            raise SampleError(f"{name} has more than {max_bytes:,} bytes; make it smaller.")
        return content
    raise SampleError(f"{name} does not exist{hint}.")
