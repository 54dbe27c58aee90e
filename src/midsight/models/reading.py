"""Stored tensors, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from midsight.errors import MidsightError
from midsight.models.headers import Headers


@contextmanager
def tensor_reader(headers: Headers) -> Iterator[Callable[[str], Tensor]]:
    """Stored name -> tensor, as stored, in main memory; files stay open until the end.

    The reader raises MidsightError for a file that cannot be read.
    """
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = headers[name].file
            try:
                if path not in opened:
                    # read, not mapped: pages of a mapped file count as memory, and would change with the file
                    opened[path] = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
                return opened[path].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise MidsightError(f"{path} cannot be read ({error}); download it again.") from error

        yield read
