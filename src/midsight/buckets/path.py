"""Objects and folders in object stores, used as pathlib's files and folders are."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from midsight.buckets.connect import import_obstore, open_store
from midsight.buckets.refusals import explained, unreachable
from midsight.errors import MidsightError

_ADDRESS = re.compile(r"(s3|gs|az)://([^/?#@:\s]+)(?:/([^?#]*))?", re.DOTALL)
_SECRET = re.compile(r"(?<=://)[^/]*:.*@|(?<=://)[^/]*@|\?.*", re.DOTALL)
"""What may hold a key or a signature in a text that is meant as an address."""
_SCHEME = re.compile(r"(s3|gs|az)://")
Version = Mapping[str, Any]
"""What a store calls one content of one object: its ETag, and its generation where it has one."""


@dataclass(frozen=True)
class Stored:
    """An object, as a listing has it."""

    size: int
    """Its size in bytes."""
    e_tag: str
    """Its ETag; empty if the store has none."""


@dataclass(frozen=True)
class _Status:
    """What of `os.stat_result` is known of an object."""

    st_size: int
    e_tag: str = ""
    """Its ETag; empty if the store has none."""
    st_mode: int = stat.S_IFREG


@dataclass(frozen=True, order=True)
class BucketPath:
    """An object, or the folder of objects whose names begin so, with the methods of a pathlib.Path that a run needs.

    All methods raise FileNotFoundError for an object that is not there, FileExistsError where a condition of `create`
    or `replace_if` does not hold, and UnreachableError if the store does not answer or refuses.
    """

    root: str
    """Scheme and bucket, as in `s3://bucket`."""
    key: str
    """Name in the bucket, without slashes at its ends."""
    content: bytes | None = field(default=None, compare=False, repr=False)
    """The object's bytes, if they were read already."""

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    def __truediv__(self, name: str | PurePosixPath) -> BucketPath:
        return BucketPath(self.root, f"{self.key}/{name}".strip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketPath, (self.root, self.key)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last suffix, with its dot."""
        return self._pure.suffix

    @property
    def parent(self) -> BucketPath:
        """The folder."""
        return BucketPath(self.root, self.key.rpartition("/")[0])

    @property
    def parents(self) -> tuple[BucketPath, ...]:
        """The folders around it, from the inside."""
        return () if not self.key else (self.parent, *self.parent.parents)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)

    @property
    def _store(self) -> Any:
        return open_store(self.root, os.getpid())

    def with_name(self, name: str) -> BucketPath:
        """Another one in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> BucketPath:
        """The same name with another suffix."""
        return self.with_name(self.stem + suffix)

    def absolute(self) -> BucketPath:
        """The path itself: it has no other form."""
        return self

    def resolve(self) -> BucketPath:
        """The path itself: buckets have no links."""
        return self

    def is_symlink(self) -> bool:
        """False: buckets have no links."""
        return False

    def relative_to(self, folder: BucketPath) -> PurePosixPath:
        """The name below `folder`; raises ValueError if it is not below."""
        if self.root != folder.root:
            raise ValueError(f"{self} is not in {folder}")
        return self._pure.relative_to(folder.key)

    def mkdir(self, **_: bool) -> None:
        """Does nothing: a folder is there once an object is in it."""

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        if not self.key:
            return False
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    exists = is_file

    def is_dir(self) -> bool:
        """Whether objects are in this folder."""
        return next(self._listed_keys(), None) is not None

    def stat(self) -> _Status:
        """Size and kind of the object."""
        if self.content is not None:
            return _Status(len(self.content))
        with self._reporting():
            found = import_obstore().head(self._store, self.key)
            return _Status(found["size"], found["e_tag"] or "")

    def open(self, mode: str = "rb") -> io.RawIOBase | io.BytesIO:
        """The object for reading, a range at a time."""
        if mode != "rb":
            raise ValueError(f"objects are opened with 'rb', not {mode!r}")
        return ObjectFile(self) if self.content is None else io.BytesIO(self.content)

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.read_with_version()[0] if self.content is None else self.content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def read_with_version(self) -> tuple[bytes, Version]:
        """The whole object, and its version for `replace_if`."""
        with self._reporting():
            got = import_obstore().get(self._store, self.key)
            return self._all_of(got.bytes().to_bytes(), got.meta["size"]), _version(got.meta)

    def read_at_most(self, most: int) -> bytes | None:
        """The whole object; None if it has more than so many bytes, and is then not read to its end."""
        if self.content is not None:
            return self.content if len(self.content) <= most else None
        with self._reporting():
            got = import_obstore().get(self._store, self.key)
            if got.meta["size"] > most:
                return None
            return self._all_of(got.bytes().to_bytes(), got.meta["size"])

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`, which must be there."""
        with self._reporting():
            content = import_obstore().get_range(self._store, self.key, start=start, end=stop).to_bytes()
            return self._all_of(content, stop - start)

    def _all_of(self, content: bytes, length: int) -> bytes:
        """The answer to a request; raises UnreachableError if it has not so many bytes."""
        if len(content) != length:
            raise unreachable(str(self), "its answer ends early")
        return content

    def fetched(self) -> BucketPath:
        """The same path with the object in memory, so that it is downloaded once."""
        return replace(self, content=self.read_bytes())

    def write_bytes(self, data: Any) -> None:
        """Put the object, in place of one of the same name."""
        self._put(data, "overwrite")

    def create(self, data: Any) -> Version:
        """Put the object unless one is there; an equal one counts as this one, because an answer may have been lost."""
        try:
            return self._put(data, "create")
        except FileExistsError:
            there, version = self.read_with_version()
            if there == memoryview(data).cast("B"):
                return version
            raise

    def replace_if(self, data: bytes, version: Version) -> Version:
        """Put the object in place of the one with this `version`; an equal one counts as this one, as in `create`."""
        try:
            return self._put(data, {key: value for key, value in version.items() if value is not None})
        except FileExistsError:
            there, now = self.read_with_version()
            if there == data:
                return now
            raise

    def _put(self, data: Any, mode: Any) -> Version:
        with self._reporting():
            # One request, so that the object is there whole or not at all, and no upload is left half done.
            return _version(
                import_obstore().put(self._store, self.key, memoryview(data).cast("B"), mode=mode, use_multipart=False)
            )

    def rename(self, name: str) -> None:
        """Give the object another name in its folder; a death in between leaves both."""
        self.with_name(name).write_bytes(self.read_bytes())
        self.unlink()

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete the object; stores do not say whether it was there."""
        with self._reporting():
            try:
                import_obstore().delete(self._store, self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def unlink_in(self, names: Iterable[str]) -> None:
        """Delete objects in this folder, by few requests where the store can do that; they need not be there."""
        files = [self / name for name in names]
        with self._reporting():
            try:
                import_obstore().delete(self._store, [file.key for file in files])
            except FileNotFoundError:  # some stores delete one after the other, and say so
                for file in files:
                    file.unlink()

    def iterdir(self) -> Iterator[BucketPath]:
        """The objects and folders in this folder."""
        objects, folders = self._listed_here()
        return (BucketPath(self.root, name) for name in (*objects, *folders))

    def files(self) -> list[BucketPath]:
        """The objects in this folder, without those in folders in it."""
        return [BucketPath(self.root, name) for name in self._listed_here()[0]]

    def _listed_here(self) -> tuple[list[str], list[str]]:
        """The names of the objects and of the folders in this folder."""
        with self._reporting():
            listed = import_obstore().list_with_delimiter(self._store, f"{self.key}/" if self.key else None)
        objects = [one["path"] for one in listed["objects"]]
        folders = [name.strip("/") for name in listed["common_prefixes"]]
        return [name for name in objects if name != self.key], [name for name in folders if name != self.key]

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """The objects whose name below this folder matches `pattern`, part by part; `**` is any number of parts."""
        parts = tuple(pattern.split("/"))
        below = self.rglob() if len(parts) > 1 or parts == ("**",) else iter(self.files())
        return (file for file in below if _matches(file.relative_to(self).parts, parts))

    def rglob(self, _: str = "*") -> Iterator[BucketPath]:
        """All objects below this folder."""
        return (BucketPath(self.root, key) for key, _ in self._listed_keys())

    def listing(self, start: str = "") -> dict[str, Stored]:
        """The objects in this folder by their names, of one listing; only those whose names begin with `start`."""
        found = {}
        folder = len(self.key) + 1 if self.key else 0
        for key, stored in self._listed_keys(start):
            name = key[folder:]
            if not name.startswith(start):
                break  # stores list in the order of names
            if "/" not in name:
                found[name] = stored
        return found

    def _listed_keys(self, start: str = "") -> Iterator[tuple[str, Stored]]:
        """The objects below this folder, from the one on whose name is after `start`."""
        folder = f"{self.key}/" if self.key else ""
        with self._reporting():
            for some in import_obstore().list(
                self._store, folder or None, offset=f"{folder}{start}" if start else None, chunk_size=1000
            ):
                for one in some:
                    yield one["path"], Stored(one["size"], one["e_tag"] or "")

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn the store's errors into those that `explained` gives."""
        from obstore import exceptions

        try:
            yield
        except (FileNotFoundError, exceptions.BaseError) as error:
            raise explained(error, str(self)) from None


Place = Path | BucketPath
"""A folder or file, on a disk or in a bucket."""


class ObjectFile(io.RawIOBase):
    """An object that is read a range at a time."""

    def __init__(self, path: BucketPath) -> None:
        super().__init__()
        self.path = path
        self._at = 0
        self._size: int | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next bytes are read."""
        return self._at

    def size(self) -> int:
        """Size of the object; asked for once."""
        if self._size is None:
            self._size = self.path.stat().st_size
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Say where the next bytes are read."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self.size() if whence == 2 else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` by one request; fewer bytes are read at the end of the object."""
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self.size())
        if stop <= self._at:
            return 0
        data = self.path.read_range(self._at, stop)
        view[: len(data)] = data
        self._at = stop
        return len(data)


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    if not patterns or patterns[0] != "**":
        here = bool(names and patterns) and fnmatchcase(names[0], patterns[0])
        return (here and _matches(names[1:], patterns[1:])) or not (names or patterns)
    return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))


def _version(meta: Mapping[str, Any]) -> Version:
    return {"e_tag": meta.get("e_tag"), "version": meta.get("version")}


def is_bucket_address(text: object) -> bool:
    """Whether `text` is meant as an address in an object store."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def to_place(path: str | Path | BucketPath) -> Place:
    """The folder or file that the text or path names, on a disk or in a bucket; raises MidsightError."""
    if isinstance(path, BucketPath):
        return path
    if not is_bucket_address(path):
        return Path(path)
    match = _ADDRESS.fullmatch(str(path))
    parts = (match[3] or "").removesuffix("/").split("/") if match else [""]
    if match is None or (parts != [""] and not all(part and part not in (".", "..") for part in parts)):
        shown = _SECRET.sub("", str(path))
        bare = "" if shown == str(path) else ", without credentials and without a query"
        raise MidsightError(f"{shown} is not an address in a bucket; write {shown[:2]}://BUCKET/FOLDER{bare}.")
    return BucketPath(f"{match[1]}://{match[2]}", "/".join(parts))


def fetched(path: Place) -> Place:
    """`path`; in a bucket, with the object in memory."""
    return path.fetched() if isinstance(path, BucketPath) else path
