"""Reads stored tensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from midsight.checkpoints.headers import Headers
from midsight.errors import ModelFileError, first_line


@contextmanager
def tensor_reader(headers: Headers) -> Iterator[Callable[[str], Tensor]]:
    """A function from a stored name to its tensor, in the stored dtype and in main memory.

    Files stay open until the block ends. The function raises ModelFileError for a file that cannot be read.
    """
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = headers[name].file
            try:
                if path not in opened:
                    # not memory-mapped: mapped pages count as memory, and would change with the file
                    opened[path] = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
                return opened[path].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ModelFileError(f"{path} cannot be read ({first_line(error)})", path) from error

        yield read
