"""docs/reliability.md lists exactly the existing experiments, at their full counts, all passed."""

from faults import experiment, page
from faults.catalogue import EXPERIMENTS


def test_the_page_names_the_experiments_that_exist():
    assert [row.name for row in page.read_page()] == [one.name for one in EXPERIMENTS]


def test_every_experiment_on_the_page_passed_at_its_full_count():
    for row, one in zip(page.read_page(), EXPERIMENTS, strict=True):
        assert row.passed == row.tried, row
        assert row.tried == one.full or (row.tried == 1 and row.note.startswith(f"{one.full:,} rows: ")), row


def test_names_are_unique_and_fit_a_table():
    names = [one.name for one in EXPERIMENTS]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "|" in name or "\n" in name]


def test_a_failure_is_counted_and_described(tmp_path, monkeypatch):
    def fail_the_second(folder, random, number):
        experiment.require(number != 1, "the second attempt fails")
        return {"things": 2}

    outcome = experiment.attempts(3, 0, fail_the_second)
    assert outcome == experiment.Outcome(3, 2, "attempt 1: ExperimentError: the second attempt fails")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.PAGE.write_text(f"before\n{page.BEGIN}\n### Group\n\nformer\n{page.END}\nafter\n")
    one = experiment.Experiment("Group", "a name", lambda count, seed: outcome, 3, 1)
    page.write_page("Group", page.render("Group", [(one, outcome)], 0, 1.0), ["Group"])
    assert page.read_page() == [page.ReadRow("a name", 3, 2, outcome.note)]
    text = page.PAGE.read_text()
    assert ", in 1 minute, with midsight" in text
    assert (text.startswith("before\n"), text.endswith("\nafter\n"), "former" in text) == (True, True, False)


def test_a_group_replaces_its_own_table_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.PAGE.write_text(f"before\n{page.BEGIN}\n{page.END}\nafter\n")
    for group in ("Second", "First", "Second"):
        name, outcome = f"of {group.lower()}", experiment.Outcome(1, 1, "")
        one = experiment.Experiment(group, name, lambda count, seed, outcome=outcome: outcome, 1, 1)
        page.write_page(group, page.render(group, [(one, outcome)], 0, 1.0), ["First", "Second"])
    assert [row.name for row in page.read_page()] == ["of first", "of second"]
    assert page.PAGE.read_text().count("`make faults SEED=0 ONLY=") == 2
