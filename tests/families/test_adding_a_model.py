"""docs/adding-a-model.md is true: its Python is the file of LLaVA 1.5, which the family suite proves."""

import re
from pathlib import Path

import pytest

import midsight
from midsight.families.catalogue import FAMILIES
from midsight.testing import write_llava

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
FILE = (ROOT / "src" / "midsight" / "families" / "llava.py").read_text(encoding="utf-8")
ARCHITECTURE = "LlavaForConditionalGeneration"


def test_the_page_shows_the_whole_file():
    assert "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)) == FILE


def test_the_page_shows_the_line_of_the_catalogue():
    assert f'    "{ARCHITECTURE}": "{FAMILIES[ARCHITECTURE]}",\n' in PAGE


def test_the_declaration_is_short():
    (declaration,) = re.findall(r"^FAMILY = Family\(.*?^\)", FILE, re.DOTALL | re.MULTILINE)
    assert len(declaration.splitlines()) <= 25


def test_without_its_line_in_the_catalogue_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, ARCHITECTURE)
    with pytest.raises(midsight.MidsightError, match=rf"{ARCHITECTURE}, which is not known; .*Adding a model"):
        midsight.load(write_llava(tmp_path / "model"), device="cpu")
