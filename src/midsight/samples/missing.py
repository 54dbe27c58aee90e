"""Image files that a dataset names and that do not exist, found before the model is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from midsight.buckets.path import BucketPath, Place
from midsight.errors import Option, RefusedError, counted
from midsight.samples.objects import forms_of
from midsight.samples.sample import ImageSource

MOST_FILES = 100_000
"""Files that are looked for; of more, as many are looked for at equal distances."""
MOST_OBJECTS = 1_000
"""The same for objects, each of which takes a request."""
LOOKING = 16
"""Threads that look, because a network disk answers slowly."""
MOST_FOLDERS = 1_000
"""Folders in which a missing file is looked for."""


@dataclass(frozen=True)
class MissingImages:
    """What was found when image files were looked for."""

    files: int
    """Image files of the samples to do."""
    checked: int
    """How many of them were looked for."""
    missing: int
    """How many of those do not exist."""
    first: Place
    """The first that does not exist."""
    likely: Path | None
    """A folder that holds that file under the same name; None if none was found."""

    def describe(self) -> tuple[str | Option, ...]:
        """One sentence, as the parts of a MidsightError."""
        looked = f"{self.missing:,} of {counted(self.checked, 'image file')}"
        if self.checked < self.files:
            looked += f" that were looked for, of {self.files:,},"
        looked += " is missing" if self.missing == 1 else " are missing"
        found = (f"; a file of this name is below {self.likely}, so try ", Option("images", str(self.likely)))
        first = ":" if self.missing == 1 else ", the first is"
        return (f"{looked}{first} {self.first}", *(found if self.likely else ()), ".")


def find_missing(images: Iterable[ImageSource], root: Place) -> MissingImages | None:
    """Looks for those of the images that are files; None if all that were looked for exist.

    `root` is the folder that paths start from.
    """
    chosen, count, step = list[Place](), 0, 1
    for image in images:
        if isinstance(image, Path | BucketPath):
            if count % step == 0:
                chosen.append(image)
            count += 1
        if chosen and len(chosen) > (MOST_FILES if isinstance(chosen[0], Path) else MOST_OBJECTS):
            chosen, step = chosen[::2], 2 * step
    if step == 1:  # of more, each would take memory for its hash
        chosen = [*dict.fromkeys(chosen)]
        count = len(chosen)
    with ThreadPoolExecutor(LOOKING) as pool:
        missing = [*itertools.compress(chosen, pool.map(does_not_exist, chosen))]
    if not missing:
        return None
    return MissingImages(count, len(chosen), len(missing), missing[0], likely_folder(missing[0], root))


def does_not_exist(file: Place) -> bool:
    """Whether there is no such file; one that cannot be asked about counts as there, and fails with its own reason."""
    if isinstance(file, BucketPath):
        return not any(map(_may_exist, forms_of(file)))
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _may_exist(file: BucketPath) -> bool:
    try:
        return file.is_file()
    except RefusedError:
        return True


def likely_folder(missing: Place, root: Place) -> Path | None:
    """The folder near `root` or the current one from which the missing file's name leads to a file.

    None in a bucket, where nothing is looked for.
    """
    if not isinstance(missing, Path) or not isinstance(root, Path):
        return None
    root = root.resolve()
    if not missing.is_relative_to(root):
        return None
    name = missing.relative_to(root)
    near = dict.fromkeys((root, Path.cwd(), root.parent))
    folders = itertools.chain(near, *(subfolders(folder) for folder in near))
    return next((folder for folder in itertools.islice(folders, MOST_FOLDERS) if (folder / name).is_file()), None)


def subfolders(folder: Path) -> Iterator[Path]:
    """The folders inside a folder, by name; none if it cannot be read."""
    try:
        yield from sorted(inside for inside in folder.iterdir() if inside.is_dir() and not inside.name.startswith("."))
    except OSError:
        return
