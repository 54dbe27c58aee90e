"""The process for programs of strangers: what it gives back, what it ends, and what happens afterwards."""

import json
import os
import threading

import pytest

from midsight import bounded_process
from midsight.bounded_process import BoundedProcess, RaisedError, TooMuchError, do_bounded


def render(template, seconds=5.0, **variables):
    return do_bounded("render", seconds=seconds, template=template, variables=variables)


def test_it_gives_back_results_and_what_was_raised():
    assert render("{{ a }} is {{ b | length }}\n", a="Öl\ud800\n", b=[1, 2]) == "Öl\ud800\n is 2"
    with pytest.raises(RaisedError, match=r"^no image$"):
        render("{{ raise_exception('no image') }}")
    with pytest.raises(RaisedError, match="unexpected"):
        render("{% if")


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a number": "{{ 10 ** (10 ** 9) }}",
    "a long text": "{{ 'a' * 10 ** 11 }}",
    "a text that doubles": (
        "{% set all = namespace(x='a') %}{% for i in range(99) %}{% set all.x = all.x ~ all.x %}{% endfor %}"
    ),
    "a filter": "{{ 'a' | center(10 ** 10) }}",
    "a list that doubles": (
        "{% set all = namespace(x=[1]) %}{% for i in range(99) %}{% set all.x = all.x + all.x %}{% endfor %}"
    ),
    "macros": "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_without_end_is_ended(kind):
    with pytest.raises(TooMuchError):
        render(ENDLESS[kind], seconds=0.3)
    assert render("{{ 1 + 1 }}") == "2"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 2 * 10 ** 7 }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{% set all = namespace(_x=1) %}",
    ],
    ids=["range", "recursion", "long text", "parentheses", "classes", "underscore"],
)
def test_what_the_sandbox_or_a_bound_refuses_is_raised(template):
    with pytest.raises(RaisedError):
        render(template)


def test_time_on_the_clock_is_bounded_too(monkeypatch):
    """For work that does not use the CPU."""
    monkeypatch.setattr(bounded_process, "LONGEST_WAIT_S", 0.3)
    with pytest.raises(TooMuchError):
        render(ENDLESS["loops"], seconds=1000)
    assert render("a") == "a"


def test_memory_is_bounded_where_the_system_does_not_limit_it(monkeypatch):
    process = BoundedProcess()
    monkeypatch.setattr(bounded_process, "LOOK_EVERY_S", 0.01)
    process.do("render", 5, {"template": "a", "variables": {}})
    monkeypatch.setattr(bounded_process, "MOST_MEMORY", 1000)
    with pytest.raises(TooMuchError):
        process.do("render", 5, {"template": ENDLESS["loops"], "variables": {}})


def test_an_answer_that_nobody_waited_for_is_not_the_next_one(monkeypatch):
    process = BoundedProcess()

    def interrupted(_self, running, request):
        running.stdin.write(request)
        running.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BoundedProcess, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.do("render", 1, {"template": "first", "variables": {}})
    assert process.do("render", 1, {"template": "second", "variables": {}}) == {"result": "second"}
    process.end()


def test_threads_and_forks_get_their_own_answers():
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: [render("{{ n }}", n=n) for _ in range(20)]}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [str(n)] * 20 for n in range(4)}
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sending, json.dumps([render("{{ n }}", n="fork"), render("b")]).encode())
        os._exit(0)
    assert render("{{ n }}", n="parent") == "parent"
    assert json.loads(os.read(receiving, 1000)) == ["fork", "b"]
    os.waitpid(child, 0)
    os.close(receiving)
    os.close(sending)
    assert render("c") == "c"
