"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

from midsight.demo.seeing import write_seeing_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(import midsight\n.*?)```\n\n```\n(.*?)```", README, re.DOTALL)


def test_the_python_example_prints_what_is_printed_below_it(tmp_path):
    assert EXAMPLE is not None
    folder = write_seeing_model(tmp_path / "model")
    program = EXAMPLE[1].replace('"demo-model"', f'"{folder}", device="cpu"')
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {})  # noqa: S102  (our own text)
    assert printed.getvalue() == EXAMPLE[2]
