"""Rows as a dataset of the Hub streams them, and a fake Hub."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from support.pictures import encoded, picture

ENCODED = [encoded(picture((12 + 4 * i, 9), i)) for i in range(3)]


def image_rows(order: list[int], images: list[bytes] = ENCODED) -> list[dict]:
    return [
        {"image": {"bytes": images[i], "path": "image.png"}, "question": f"What is {n}?", "n": n}
        for n, i in enumerate(order)
    ]


def iterable(datasets: Any, rows: list[dict], image_column: str = "image") -> Any:
    """The rows as an IterableDataset with an Image column, as the Hub streams them."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    built = datasets.Dataset.from_dict(columns).cast_column(image_column, datasets.Image())
    return built.to_iterable_dataset()


class Hub:
    """A fake Hub that keeps the arguments of all calls."""

    def __init__(self, source: Any):
        self.source = source
        self.commit = "c0ffee"
        self.asked: list[tuple] = []

    def dataset_info(self, repository, revision=None):
        self.asked.append((repository, revision))
        return SimpleNamespace(sha=self.commit)

    def load_dataset(self, repository, config, **options):
        self.asked.append((repository, config, options))
        return self.source


def stand_in(datasets: Any, source: Any, monkeypatch: Any) -> Hub:
    """Replaces the Hub behind `hf://` names for the rest of the test, and returns the fake."""
    hub = Hub(source)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return hub
