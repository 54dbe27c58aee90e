"""The report in Chromium: no refusal and no error in the console, and what a user does with mouse and keyboard."""

import json
from dataclasses import replace

import pytest

from midsight.reports.page.html.page import page_of
from midsight.reports.page.summary.choice import ReportOptions
from midsight.reports.page.summary.collect import report_of
from support.browser import Page, find_chromium, running_browser
from support.planted import QUERY
from support.reported import HOSTILE_ANSWER, HOSTILE_NAMES, HOSTILE_QUESTION, MANY, many_samples, write_reported

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which `make test` installs as root on Debian"),
]
ROW = "#body tr[data-place='{}']"


@pytest.fixture(scope="module")
def browser():
    with running_browser(str(CHROMIUM)) as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = write_reported(tmp_path_factory.mktemp("browser"), hostile=True, failures=30)
    run.label("exact", undecided="wrong")
    run.probe(columns=[QUERY.format(0), QUERY.format(1), "vision_token"], permutations=9, strata=["kind"])
    return report_of(run, ReportOptions())


@pytest.fixture(scope="module")
def file(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(report), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """The page on a usual screen; it must leave nothing in the console."""
    page = Page(browser, file, 1280, 900, dark=False)
    yield page
    assert page.problems() == []
    page.close()


def choose(page, select, value):
    page.run(
        f"(() => {{ const found = document.getElementById('{select}'); found.value = '{value}'; "
        "found.dispatchEvent(new Event('change')); })()"
    )


def visible_rows(page):
    return page.run("[...document.querySelectorAll('#body tr[data-place]')].map((line) => line.innerText)")


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_on_every_screen_without_a_problem(browser, file, width, dark):
    page = Page(browser, file, width, 900, dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('#body tr[data-place]').length") > 5
    back = page.run("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    painted = (
        "(() => { const canvas = document.getElementById('canvas'); const all = canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data; return all.some((value) => value > 0); })()"
    )
    assert page.run(painted)
    assert page.run("document.querySelectorAll('svg.chart').length") == 3
    controls = "[...document.querySelectorAll('button, select, input')].filter((one) => one.offsetParent)"
    assert min(page.run(f"{controls}.map((one) => one.offsetHeight)")) >= 24
    assert page.problems() == []
    page.close()


def test_a_refused_style_is_noticed(browser, file, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(file.read_text(encoding="utf-8").replace("<h1>", '<h1 style="color: red">'), encoding="utf-8")
    page = Page(browser, broken, 800, 600, dark=False)
    assert any("Content Security Policy" in problem for problem in page.problems())
    page.close()


def test_confident_errors_come_first_and_columns_sort(opened, report):
    samples = report.samples
    wrong = [row for row, label in enumerate(samples.label) if label is False]
    surest = max(wrong, key=lambda row: samples.confidence[row])
    opened.run(f"document.querySelector({json.dumps(ROW.format(0))}).click()")
    assert opened.text("#details-title") == f"Sample {samples.sample_id[surest]}"
    opened.press("Escape")
    opened.click("th.risk button")
    risks = opened.run("[...document.querySelectorAll('#body td.risk')].map((cell) => Number(cell.textContent))")
    assert len(risks) > 8
    assert risks == sorted(risks)
    assert opened.run("document.querySelector('th.risk').getAttribute('aria-sort')") == "ascending"
    opened.click("th.risk button")
    assert opened.run("Number(document.querySelector('#body td.risk').textContent)") == round(max(samples.risk), 3)
    assert opened.run("document.querySelector('th.risk').getAttribute('aria-sort')") == "descending"


def test_search_and_values_filter_and_clear(opened):
    opened.run("document.getElementById('search').focus()")
    opened.type("cat 29")
    rows = visible_rows(opened)
    assert len(rows) == 1
    assert "Is there a cat in picture 29?" in rows[0]
    assert opened.text("#status") == "1 of 90 samples that match the search"
    opened.click("#clear")
    assert opened.text("#status") == "90 of 90 samples"
    choose(opened, "column", "extra:kind")
    choose(opened, "value", "1")
    assert opened.text("#status") == "30 of 90 samples of the chosen value"


def test_hovering_shows_the_sample_and_dragging_selects(opened):
    x, y = opened.middle("#canvas")
    place = opened.run("(() => { const box = canvas.getBoundingClientRect(); const row = plane.rows[5]; "
                       "return [box.x + plane.x[row], box.y + plane.y[row], row]; })()")  # fmt: skip
    opened.mouse((place[0], place[1]))
    assert opened.run("!document.getElementById('tip').hidden")
    assert "question: " in opened.text("#tip")
    opened.mouse((place[0] - 40, place[1] - 40), (x, y), (place[0] + 40, place[1] + 40), press=True)
    selected = opened.run("[...filters.selection]")
    assert place[2] in selected
    assert 0 < len(selected) < 90
    assert opened.text("#status") == f"{len(selected)} of 90 samples in the selection"
    assert len(visible_rows(opened)) <= len(selected)


def test_a_colour_of_the_map_filters_and_other_columns_colour_it(opened):
    opened.click("#legend button")
    assert opened.text("#status").endswith("of the chosen value")
    assert opened.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    opened.click("#legend button")
    assert opened.text("#status") == "90 of 90 samples"
    choose(opened, "colour", "risk")
    assert 2 <= opened.run("document.querySelectorAll('#legend button').length") <= 6


def test_the_keyboard_moves_through_rows_and_opens_details(opened):
    opened.run("document.getElementById('scroll').focus()")
    opened.press("ArrowDown")
    opened.press("ArrowDown")
    assert opened.run("document.activeElement.dataset.place") == "1"
    opened.press("End")
    assert opened.run("document.activeElement.dataset.place") == "89"
    opened.press("Enter")
    last = opened.text("#details-title")
    assert opened.run("document.getElementById('details').open")
    opened.click("#previous")
    assert opened.text("#details-title") != last
    opened.press("Escape")
    assert opened.run("document.activeElement.dataset.place") == "88"
    opened.press("Home")
    assert opened.run("document.activeElement.dataset.place") == "0"


def test_the_keyboard_selects_in_the_map(opened):
    opened.run("canvas.focus()")
    opened.press("ArrowRight")
    first = opened.run("[...filters.selection]")
    opened.press("ArrowDown", shift=True)
    opened.press("ArrowRight", shift=True)
    assert {*first} <= {*opened.run("[...filters.selection]")}
    assert "in the selection" in opened.text("#status")
    opened.press("Escape")
    assert opened.text("#status") == "90 of 90 samples"


def test_every_control_has_a_name_and_the_tree_has_its_roles(opened):
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    roles = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "combobox", "searchbox", "region", "application", "link"):
        assert roles[role], role
        assert all(roles[role]), role
    assert {"main", "banner", "navigation", "status", "table", "columnheader"} <= {*roles}
    assert roles["heading"][0]


def test_hostile_data_are_shown_as_text(opened, report):
    samples = report.samples
    for row in range(3):
        opened.run(f"(() => {{ filterBy('', -1); sortBy('row', false); openDetails({row}); }})()")
        shown = opened.run("[...document.querySelectorAll('#details dd')].map((one) => one.textContent)")
        assert HOSTILE_QUESTION in shown
        assert samples.answer[row] in shown
        assert samples.image[row] in shown
        isolation = "[...document.querySelectorAll('#details dd bdi')].map((one) => getComputedStyle(one).unicodeBidi)"
        assert {*opened.run(isolation)} == {"isolate"}
        opened.press("Escape")
    assert (samples.answer[0], len(samples.answer[1])) == (HOSTILE_ANSWER, 1_000_000)
    assert samples.image[0] in HOSTILE_NAMES
    assert opened.run("document.scripts.length") == 2
    assert opened.run("document.querySelectorAll('b').length") == opened.run(
        "document.querySelectorAll('.cards b').length"
    )


def test_20000_samples_have_few_rows_in_the_document(browser, report, tmp_path):
    path = tmp_path / "many.html"
    path.write_text(page_of(many_samples(report, 120)), encoding="utf-8")
    page = Page(browser, path, 1280, 900, dark=False)
    for place in (0, MANY // 2, MANY - 1):
        page.run(f"moveTo({place})")
        assert page.run("document.activeElement.dataset.place") == str(place)
        assert 10 < page.run("document.querySelectorAll('#body tr').length") < 60
    assert page.run("document.querySelectorAll('*').length") < 3000
    page.run("document.getElementById('search').focus()")
    page.type("sample-19999")
    assert page.text("#status") == "1 of 20,000 samples that match the search"
    assert page.problems() == []
    page.close()


def without(report):
    """Reports that lack something, each with a sentence that its page has."""
    samples = report.samples
    columns = ("sample_id", "input_index", "image", "question", "answer", "references", "label", "risk", "confidence",
               "picture")  # fmt: skip
    one = replace(samples, total=1, extras={}, **{name: getattr(samples, name)[:1] for name in columns})
    none = replace(samples, total=0, extras={}, **{name: getattr(samples, name)[:0] for name in columns})
    unlabelled = replace(samples, label=None, risk=None, risk_source="")
    bare = replace(report, label=None, finding=None)
    empty = replace(bare, answers=None, map=None, counts=replace(report.counts, stored=0))
    failed = "30 failed (25.0\u00a0%)"
    return {
        "answers": (
            replace(bare, answers=None, samples=replace(unlabelled, answer=None, confidence=None)),
            "The run has no answers.",
        ),
        "labels": (replace(bare, samples=unlabelled), "The run has no label"),
        "findings": (
            replace(report, finding=None, samples=replace(samples, risk=None, risk_source="")),
            "There are none about the label",
        ),
        "risk": (replace(report, finding=replace(report.finding, curves=())), failed),
        "pictures": (replace(report, samples=replace(samples, picture=(None,) * 90, pictures=())), failed),
        "all but one": (replace(report, map=None, samples=one), failed),
        "samples": (replace(empty, samples=none), "The run holds no samples."),
    }


@pytest.mark.parametrize("missing", ["answers", "labels", "findings", "risk", "pictures", "all but one", "samples"])
def test_a_page_of_less_makes_sense(browser, report, tmp_path, missing):
    changed, sentence = without(report)[missing]
    path = tmp_path / "less.html"
    path.write_text(page_of(changed), encoding="utf-8")
    page = Page(browser, path, 1280, 900, dark=True)
    assert sentence in page.text("main")
    assert (page.run("document.querySelectorAll('#body tr[data-place]').length") > 0) == (missing != "samples")
    assert page.problems() == []
    page.close()
