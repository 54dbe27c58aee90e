"""What a Python session and a notebook show of a model, a run, a record, a sample and a failure."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import midsight
from midsight.store import RunWriter
from support.made_up import QUERY_0, make_failure, make_record, make_spec

VECTORS = """\
  vision_only_representation: [6]
  query_token_representation, layers 0, 1, 1 residual: [8]"""


def loaded(**changes) -> Any:
    """What midsight knows of a loaded model, as far as its repr shows it."""
    vision = SimpleNamespace(width=lambda _: 64)
    facts = {"name": "demo-model", "family": SimpleNamespace(name="Phi-4-multimodal", vision=vision), "config": None}
    given = {"dtype": "torch.float32", "device": "cpu", "lora": "merged", "has_weights": True, "n_layers": 4}
    return SimpleNamespace(**{**facts, **given, "hidden_size": 96, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "Model('demo-model')\n  Phi-4-multimodal, float32 on cpu, LoRA merged\n"
            "  4 layers of width 96, vision encoder of width 64",
        ),
        (
            {"has_weights": False, "n_layers": 1},
            "Model('demo-model')\n  Phi-4-multimodal, float32 on cpu, LoRA merged, without weights\n"
            "  1 layer of width 96, vision encoder of width 64",
        ),
    ],
)
def test_a_model_says_what_it_is_and_how_it_was_loaded(changes, text):
    assert repr(midsight.Model(loaded(**changes))) == text


@pytest.fixture
def run(tmp_path):
    """Two rows and a failure."""
    spec = make_spec()
    with RunWriter(tmp_path / "run", replace(spec, dataset=replace(spec.dataset, rows=3))) as writer:
        writer.add(make_record(0))
        writer.add(make_record(1))
        writer.fail(make_failure(2))
    return midsight.open_run(tmp_path / "run")


def test_a_run_says_what_it_holds(run):
    assert repr(run) == (
        f"Run({str(run.path)!r})\n  samples: 2 stored, of 3 rows\n  failed, now or earlier: 1\n  data: made-up.jsonl\n"
        f"  model: made-up (phi4_multimodal), float32\n{VECTORS}"
    )


def test_a_record_says_what_was_asked_and_answered():
    assert repr(make_record(1)) == (
        "Record('s1')\n  image: '0.png'\n  question: 'What is in row 1?'\n  answer: 'answer 1'\n"
        f"  tokens: 41 of the prompt, 30 of them for images\n{VECTORS}"
    )
    bare = make_record(1, image="", answer=None, question="x" * 200, vectors={QUERY_0: np.zeros(8, np.float32)})
    assert repr(bare) == (
        f"Record('s1')\n  image: 'in memory'\n  question: '{'x' * 76}...\n"
        "  tokens: 41 of the prompt, 30 of them for images\n  query_token_representation, layer 0: [8]"
    )


def test_failures_and_samples_are_one_line_each_without_the_bytes_of_images():
    assert repr([make_failure(2)]) == "[Failure('s2', row 2: The image is not an image.)]"
    one = midsight.Sample("a", 3, (b"x" * 1_000_000,), "What?")
    assert repr(one) == "Sample('a', row 3 on 1 image: 'What?')"
    assert repr(replace(one, image="a.png")) == "Sample('a', row 3 on a.png: 'What?')"


def rows_of(html):
    """The rows of a table with two columns, as text."""
    cell = "<td style='text-align:left'>"
    rows = html.split("<tr>")[1:]
    return [tuple(part.removeprefix(cell).split("</td>")[0] for part in row.split(cell)[1:]) for row in rows]


def test_a_notebook_shows_runs_and_records_as_tables_of_facts_and_shapes(run):
    shown = run._repr_html_()
    assert f"<caption style='text-align:left'>Run {run.path}</caption>" in shown
    assert rows_of(shown) == [
        ("samples", "2 stored, of 3 rows"),
        ("failed, now or earlier", "1"),
        ("data", "made-up.jsonl"),
        ("model", "made-up (phi4_multimodal), float32"),
        ("vision_only_representation", "[6]"),
        ("query_token_representation, layers 0, 1, 1 residual", "[8]"),
    ]
    record = make_record(1, question="<script>alert(1)</script>")
    assert rows_of(record._repr_html_())[1] == ("question", "&#x27;&lt;script&gt;alert(1)&lt;/script&gt;&#x27;")
    assert rows_of(record._repr_html_())[-2:] == rows_of(shown)[-2:], "shapes, no numbers"
    assert "<script>" not in record._repr_html_()


def test_a_position_without_its_layer_says_which_layers_there_are(run):
    with pytest.raises(midsight.MidsightError) as raised:
        run.matrix("query_token_representation")
    has = f"{run.path} has query_token_representation at the layers 0, 1"
    assert str(raised.value) == f"{has}; choose one with layer=1."
    with pytest.raises(midsight.MidsightError) as raised:
        run.to_pandas(["query_token_representation"])
    assert str(raised.value) == (
        f"{has}, each in a column of its own; write query_token_representation.layer_0 and so on."
    )
