"""From a file to the text of its prompts, without a model: `#` stands for an image, and nothing is around the turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midsight.prompts.chat_template import ChatTemplate
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.prompt import PromptFormat
from midsight.prompts.user_text import parse_user_text
from midsight.samples.columns import prompt_columns
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import Sample
from midsight.samples.tables import Dataset, read_table

DECLARATION = FamilyPrompt(image_token="#")  # noqa: S106  (a token of a vocabulary)


def read_good(path: Path, **options: Any) -> Dataset:
    """The dataset, in which every row is a sample."""
    dataset = read_table(path, DatasetOptions(**options))
    assert dataset.failures == ()
    return dataset


def prompts(dataset: Dataset, prompt: str = "{question}") -> list[str]:
    """The user's turn of each sample, as a template that keeps the places of images renders it."""
    user = parse_user_text(prompt, prompt_columns(dataset.extras, dataset.options))
    made = PromptFormat(ChatTemplate("raw", None), user, interleaves=True)

    def render(sample: Sample) -> str:
        return made.render(None, DECLARATION, made.turn(sample).places)

    return list(map(render, dataset.samples))
