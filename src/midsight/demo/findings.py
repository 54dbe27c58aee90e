"""The end of the demo: what the run's vectors say, layer by layer, and what they do not say."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from midsight.errors import counted
from midsight.labels.label import label_from_file, label_run
from midsight.labels.yes_no import read_yes_no
from midsight.probes.finding import Finding, ScoreResult
from midsight.probes.study import StudyOptions, study
from midsight.probes.tables import conclude
from midsight.probes.write import write_study
from midsight.store.reader import Run

THERE, SAYS_YES, CORRECT = "there", "says_yes", "correct"
FEWEST_SCENES = 40
"""With fewer pictures, intervals are too wide to say anything."""
SHOWN_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PERMUTATIONS = 99


def show_findings(run: Run, console: Console) -> None:
    """Labels and probes the demo's run, and prints what follows."""
    images = len({*run.table()["image_id"].to_pylist()})
    if images < FEWEST_SCENES:
        few = counted(images, "picture is", "pictures are")
        console.print(f"{few} too few for probes; {FEWEST_SCENES} or more give intervals of use.")
        return
    label_run(run, "exact", name=CORRECT)
    verdicts = write_verdicts(run, Path(str(run.path)).parent / "verdicts.csv")
    for name in (THERE, SAYS_YES):
        label_from_file(run, verdicts, id_column="sample_id", column=name, name=name)
    there, says, correct = (_probe(run, name) for name in (THERE, SAYS_YES, CORRECT))
    console.print(_by_layer(there, says, correct))
    console.print(
        f"The first two columns are about {there.tested} questions like 'is there a red circle?'. The thing's presence "
        "and the answer enter the prompt's last token from layer to layer. Vectors of the image alone cannot know what "
        "is asked: each picture has one such question with yes and one with no, so they stay at 0.50.\n",
        markup=False,
    )
    console.print(f"Whether the answer is right, {correct.tested} questions:", markup=False)
    for sentence in conclude(correct):
        console.print(f"  {sentence}", markup=False)
    console.print(_abstention(correct))
    folder = run.path / "findings"
    console.print(
        f"Tables, figures and fitted probes: {folder}\nThe same by hand:\n\n"
        f"    midsight label {run.path} --judge exact\n"
        f"    midsight probe {run.path} --label correct --strata kind\n"
        f"    midsight report {run.path} --out report.html\n",
        markup=False,
        soft_wrap=True,
    )


def write_verdicts(run: Run, path: Path) -> Path:
    """Writes for each question about presence whether the thing is there, and whether the model says so."""
    rows = run.table().select(["sample_id", "kind", "reference_answers", "answer"]).to_pylist()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", THERE, SAYS_YES])
        for row in rows:
            said = read_yes_no(row["answer"])
            asked = row["kind"] == "presence"
            writer.writerow([
                row["sample_id"],
                row["reference_answers"][0] if asked else "",
                {True: "yes", False: "no"}.get(said, "") if asked and said is not None else "",
            ])  # fmt: skip
    return path


def _probe(run: Run, label: str) -> Finding:
    done = study(run, StudyOptions(label=label, permutations=PERMUTATIONS))
    write_study(run, done)
    return done.finding


def _by_layer(*findings: Finding) -> Table:
    table = Table(title="What linear probes read from the vectors: AUROC (95 %)")
    for heading in ("token, layer", "thing is there", "model says yes", "answer is right"):
        table.add_column(heading, no_wrap=True)
    by_column = [{one.column: one for one in finding.columns} for finding in findings]
    for column in _in_order(name for results in by_column for name in results):
        table.add_row(_named(column), *(_cell(results.get(column)) for results in by_column))
    confidence = [finding.baseline("confidence") for finding in findings]
    table.add_row("confidence", "", "", _cell(confidence[2]))
    return table


def _in_order(names: Iterable[str]) -> list[str]:
    """Image vectors first, then the prompt's last token, each by layer as the run stores them."""
    return sorted(dict.fromkeys(names), key=lambda name: name.startswith("query_token"))


def _named(column: str) -> str:
    words = {
        "vision_only_representation": "vision encoder",
        "vision_token_representation": "image's last",
        "query_token_representation": "prompt's last",
    }
    representation, _, layer = column.partition(".layer_")
    return words.get(representation, representation) + (f", {layer}" if layer else "")


def _cell(result: ScoreResult | None) -> str:
    if result is None:
        return "constant"
    low, high = result.auroc_interval
    return f"{result.auroc:.2f} ({low:.2f}-{high:.2f})"


def _abstention(finding: Finding) -> Table:
    table = Table("answered, surest first", "right", title="If the model answers only what it is sure of")
    points = {round(one.answered, 2): one.accuracy for one in finding.abstention}
    for share in SHOWN_SHARES:
        if share in points:
            table.add_row(f"{share:.0%}", f"{points[share]:.1%}")
    return table
