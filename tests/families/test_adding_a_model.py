"""docs/adding-a-model.md is true: its Python is the file of LLaVA 1.5, which the family suite proves."""

import re
import sys
import types
from pathlib import Path

import pytest

import midsight
from midsight.families.catalogue import FAMILIES, find_family
from midsight.families.lora_folders import LORA_FOLDERS
from midsight.testing import check_family, write_llava
from support.parity import samples_of
from support.pictures import CASES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
FILE = (ROOT / "src" / "midsight" / "families" / "llava.py").read_text(encoding="utf-8")
ARCHITECTURE = "LlavaForConditionalGeneration"
SHOWN = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def newcomer(monkeypatch):
    """A module that somebody makes of the page, in the catalogue in place of ours."""
    module = types.ModuleType("newcomer")
    exec(compile(SHOWN, "adding-a-model.md", "exec"), module.__dict__)  # noqa: S102  (our own page)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, ARCHITECTURE, module.__name__)
    return module


def test_the_page_shows_the_whole_file():
    assert SHOWN == FILE


@pytest.mark.slow
def test_what_a_newcomer_makes_of_the_page_is_proved(newcomer, tmp_path):
    model = midsight.load(write_llava(tmp_path / "model"), device="cpu")
    assert model.loaded.family is newcomer.FAMILY
    assert model.loaded.notes == (), "its template renders the published prompt"
    checks = check_family(model, samples_of([CASES[0], CASES[1], CASES[4]]))
    assert [check for check in checks if not check.passed] == []
    assert "prompts whose token ids differ from the processor's own" in {check.name for check in checks}
    assert len(checks) >= 15


def test_the_page_shows_the_line_of_the_catalogue():
    assert f'    "{ARCHITECTURE}": "{FAMILIES[ARCHITECTURE]}",\n' in PAGE


def test_the_declaration_is_short():
    (declaration,) = re.findall(r"^FAMILY = Family\(.*?^\)", FILE, re.DOTALL | re.MULTILINE)
    assert len(declaration.splitlines()) <= 25


@pytest.mark.slow
def test_the_loras_for_images_are_in_the_folders_that_are_known_without_a_familys_module():
    declared = {name: find_family([name], {}, "").stored.lora_folder for name in FAMILIES}
    assert {name: folder for name, folder in declared.items() if folder} == LORA_FOLDERS


def test_without_its_line_in_the_catalogue_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, ARCHITECTURE)
    with pytest.raises(midsight.MidsightError, match=rf"{ARCHITECTURE}, which is not known; .*Adding a model"):
        midsight.load(write_llava(tmp_path / "model"), device="cpu")
