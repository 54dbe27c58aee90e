"""The page as text: its policy, its size, and that nothing from data can become markup."""

import json
import re
from dataclasses import replace

import pytest

from midsight.reports.page.html.charts import ticks
from midsight.reports.page.html.packing import LARGEST_PAGE_BYTES, as_script_json, pack
from midsight.reports.page.html.page import SCRIPTS, STYLE, asset, content_hash, page_of, without_controls
from midsight.reports.page.summary.choice import ReportOptions
from midsight.reports.page.summary.collect import report_of
from support.reported import HOSTILE_ANSWER, HOSTILE_NAMES, HOSTILE_QUESTION, many_samples, write_reported


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Hostile questions, answers and names; labelled."""
    run = write_reported(tmp_path_factory.mktemp("hostile"), hostile=True, failures=2)
    run.label("exact", undecided="wrong")
    return report_of(run, ReportOptions())


@pytest.fixture(scope="module")
def page(report):
    return page_of(report)


def test_the_policy_permits_this_style_and_script_and_nothing_else(page):
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    style, script = (
        re.findall(r"<style>(.*?)</style>", page, re.DOTALL),
        re.findall(r"<script>(.*?)</script>", page, re.DOTALL),
    )
    assert policy == [
        f"default-src 'none'; img-src data:; style-src '{content_hash(style[0])}'; "
        f"script-src '{content_hash(script[0])}'; base-uri 'none'; form-action 'none'"
    ]
    assert len(style) == len(script) == 1
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script>")
    assert re.findall(r"<[^>]*\s(?:style|on\w+)=", page.partition('<script type="application/json"')[0]) == []
    assert re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page) == []


def test_the_script_makes_no_markup_from_text():
    script = "".join(map(asset, SCRIPTS))
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|setHTML|fetch\(|http"
    )
    assert re.findall(forbidden, script) == []
    assert len(script.splitlines()) < 600


def test_hostile_data_stay_text(page):
    markup, _, rest = page.partition('<script type="application/json" id="data">')
    data, _, after = rest.partition("</script>")
    assert re.findall(r"</?(?:script|td|b)\b", data) == []
    assert after.lstrip().startswith("<script>")
    assert page.count("<script") == page.count("</script>") == 2
    read = json.loads(data)
    columns = {one["key"]: one["values"] for one in read["columns"]}
    assert HOSTILE_QUESTION in columns["question"]
    assert HOSTILE_ANSWER in columns["answer"]
    assert "x" * 1_000_000 in columns["answer"]
    assert {*HOSTILE_NAMES} <= {*columns["image"]}
    assert HOSTILE_QUESTION not in markup
    assert "&lt;/td&gt;&lt;/tr&gt;" in markup


def test_every_text_from_data_is_isolated(page, report):
    markup = page.partition('<script type="application/json"')[0]
    assert f"<bdi>{report.spec['model']['name']}</bdi>" in markup
    assert without_controls("a\u202eb\u2066c\n") == "abc"


def test_script_json_has_nothing_that_ends_the_element():
    text = "</script><!-- \u2028\u2029 & >"
    written = as_script_json([text])
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == [text]


@pytest.mark.slow
def test_20000_samples_with_500_pictures_stay_below_15_mb(report):
    whole = page_of(many_samples(report, 120))
    assert len(whole.encode()) < 15_000_000
    assert 'id="shortened"' not in whole
    cut = page_of(many_samples(report, 5000))
    assert len(cut.encode()) < 15_000_000
    (limit,) = re.findall(r'id="shortened">Texts are cut after ([\d,]+) characters', cut)
    assert 100 <= int(limit.replace(",", "")) < 5000


@pytest.mark.slow
def test_texts_are_cut_where_they_would_be_too_large(report):
    answer = tuple(f"{row}" + "<" * 400_000 for row in range(90))
    packed = pack(replace(report, samples=replace(report.samples, answer=answer)))
    assert packed.cut_after == 20_000
    assert len(packed.json) < LARGEST_PAGE_BYTES
    read = json.loads(packed.json)
    (answers,) = [one["values"] for one in read["columns"] if one["key"] == "answer"]
    assert answers[0] == "0" + "<" * 19_999 + "…"
    assert len(read["pictures"]) == 30


def test_ticks_are_round():
    assert [text for _, text in ticks(0, 1)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [text for _, text in ticks(0.45, 1)] == ["0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]


def colours():
    """Light and dark colours of the style sheet by name."""
    light, dark = re.findall(r":root \{(.*?)\}", asset(STYLE), re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w{6})", scheme)) for scheme in (light, dark)]


def contrast(first, second):
    """WCAG's ratio of two colours."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_texts_and_marks_have_contrast(scheme):
    of = colours()[scheme]
    for text in ("text", "quiet", "accent", "good", "bad"):
        for back in ("back", "panel", "hover"):
            assert contrast(of[text], of[back]) >= 4.5, (text, back)
    assert contrast(of["text"], of["note"]) >= 4.5
    for mark in [f"c{number}" for number in range(8)]:
        assert contrast(of[mark], of["panel"]) >= 3, mark
