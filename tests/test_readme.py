"""The README's examples print what the README shows."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from midsight.demo.seeing import write_seeing_model
from midsight.demo.show import write_questions

CARD = (Path(__file__).parents[1] / "docs" / "demo_model.md").read_text(encoding="utf-8")
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OUTPUT = re.search(r"```python\nimport midsight\n.*?```\n\n```\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def first_example(tmp_path_factory):
    """The variables of the first Python example, and what it printed."""
    folder = write_seeing_model(tmp_path_factory.mktemp("readme") / "model")
    program = PROGRAMS[0].replace('"demo-model"', f'"{folder}", device="cpu"')
    variables, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), variables)  # noqa: S102  (our own text)
    return variables, printed.getvalue()


def test_the_first_example_prints_what_is_shown_below_it(first_example):
    assert OUTPUT is not None
    assert first_example[1] == OUTPUT[1]


def test_the_dataset_example_runs(first_example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "questions.jsonl", scenes=2)
    variables = dict(first_example[0])
    assert len(PROGRAMS) == 2
    exec(compile(PROGRAMS[1], "README.md", "exec"), variables)  # noqa: S102  (our own text)
    rows = len((tmp_path / "questions.jsonl").read_text().splitlines())
    assert variables["X"].shape == (rows, 64)
    assert np.isfinite(variables["X"]).all()
    assert variables["table"].num_rows == rows > 6


def test_the_torch_for_a_cpu_is_one_that_midsight_takes():
    (command,) = re.findall(r'pip install ("torch<.+?) --index-url', README)
    dependencies = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = dict(re.findall(r"'(torch|torchvision)>=[\d.]+,<([\d.]+)'", repr(dependencies)))
    assert command == " ".join(f'"{name}<{bound}"' for name, bound in bounds.items())


def test_every_linked_page_exists():
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (root / link).is_file()] == []


def test_the_readme_has_the_figures_of_the_demo_models_card():
    scenes = CARD[CARD.index("<!-- figures of scenes -->") : CARD.index("<!-- end of figures of scenes -->")]
    cells = next(line for line in scenes.splitlines() if line.startswith("| all |")).split(" | ")
    asked, right, question_alone, lora_off = cells[1], cells[2], cells[3], cells[6].removesuffix(" |")
    figures = README[README.index("<!-- figures of the demo") : README.index("<!-- end of figures of the demo")]
    said = " ".join(figures.split())
    assert f"Of {asked} questions" in said
    assert f"it answers {right} correctly" in said
    assert f"gives {question_alone}, the model without its LoRA {lora_off}." in said
