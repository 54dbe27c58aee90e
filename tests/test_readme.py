"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

from midsight.demo.seeing import write_seeing_model

CARD = (Path(__file__).parents[1] / "docs" / "demo_model.md").read_text(encoding="utf-8")
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


def test_the_demo_model_has_the_figures_of_its_card():
    scenes = CARD[CARD.index("<!-- figures of scenes -->") : CARD.index("<!-- end of figures of scenes -->")]
    cells = next(line for line in scenes.splitlines() if line.startswith("| all |")).split(" | ")
    asked, seen, words, lora_off = cells[1], cells[2], cells[3], cells[6].removesuffix(" |")
    figures = README[README.index("<!-- figures of the demo") : README.index("<!-- end of figures of the demo")]
    said = " ".join(figures.split())
    assert f"Of {asked} questions" in said
    assert f"{seen} rightly; words alone give {words}, the model without its LoRA {lora_off}." in said
