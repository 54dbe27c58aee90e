"""A folder's chat template in `midsight check`: the published one, a changed one, none, and prompts gone wrong."""

import json

import pytest
from typer.testing import CliRunner

from midsight import load
from midsight.check import proof
from midsight.check.facts import EXAMPLE_QUESTION, read_facts
from midsight.check.family_checks import check_family
from midsight.checkpoints.loading import load_model
from midsight.cli import app
from midsight.families.qwen2_5_vl import FAMILY
from midsight.prompts import prompt
from midsight.samples.sample import Sample
from midsight.testing import write_mllama, write_qwen2_5_vl
from support.folders import copy_folder, let_tokenizer_add, replace_file
from support.pictures import picture

TEMPLATE = "chat_template.jinja"
SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER_TURN = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{EXAMPLE_QUESTION}<|im_end|>\n"
PROMPT = f"{USER_TURN}<|im_start|>assistant\n"
PROMPTS_DIFFER = "prompts whose token ids differ from the processor's own"
SAMPLES = tuple(Sample(str(i), i, (picture((64, 64 + i), i),), "What is it? " * (i + 1)) for i in range(2))


def check(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def squeezed(text):
    """Without white space, which a terminal puts where lines end."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_qwen2_5_vl(tmp_path_factory.mktemp("qwen") / "published", layers=2)


@pytest.fixture(scope="module")
def changed(published, tmp_path_factory):
    """The folder with a template that adds no system turn."""
    folder = copy_folder(published, tmp_path_factory.mktemp("qwen") / "changed")
    text = (folder / TEMPLATE).read_text(encoding="utf-8")
    start, stop = text.index("{%- if messages[0]"), text.index("{%- for message")
    replace_file(folder / TEMPLATE, (text[:start] + text[stop:]).encode())
    return folder


@pytest.fixture(scope="module")
def without(published, tmp_path_factory):
    """The folder without a chat template."""
    folder = copy_folder(published, tmp_path_factory.mktemp("qwen") / "without")
    (folder / TEMPLATE).unlink()
    return folder


@pytest.fixture
def small_images(monkeypatch):
    monkeypatch.setattr(proof, "shipped_samples", lambda: SAMPLES)


def note_of(folder):
    rendered = PROMPT.replace(EXAMPLE_QUESTION, "{question}")
    return (
        f"The chat template of {folder} is not that of the published Qwen2.5-VL; it is used, and renders {rendered!r}."
    )


def test_the_published_template_needs_no_note(published):
    facts = read_facts(published)
    assert (facts.chat_template, facts.prompt_notes) == ("folder", ())
    assert facts.example_prompt == SYSTEM_TURN + PROMPT
    said = check(published).output
    assert squeezed("chat template  the folder's own") in squeezed(said)
    assert squeezed(f"example prompt {SYSTEM_TURN}{PROMPT}") in squeezed(said)
    assert "is not that of the published" not in said


class TestAChangedTemplate:
    """The folder's own template renders another prompt than the published one."""

    def test_the_facts_have_the_prompt_that_it_renders_and_a_note(self, changed):
        facts = read_facts(changed)
        assert (facts.chat_template, facts.prompt_notes) == ("folder", (note_of(changed),))
        assert facts.example_prompt == PROMPT
        tokenizer = load_model(changed, device="cpu", weights=False).tokenizer
        assert tokenizer.decode(facts.example_token_ids) == PROMPT

    def test_the_command_says_so(self, changed):
        done = check(changed)
        assert done.exit_code == 0
        said = squeezed(done.output)
        assert squeezed("chat template  the folder's own") in said
        assert squeezed(note_of(changed)) in said
        assert squeezed(f"example prompt {PROMPT}") in said
        told = json.loads(check(changed, "--json").output)["model"]
        assert (told["chat_template"], told["example_prompt"]) == ("folder", PROMPT)
        assert told["prompt_notes"] == [note_of(changed)]

    def test_a_note_at_load_says_so(self, changed):
        assert load(changed, device="cpu").loaded.notes == (note_of(changed),)

    @pytest.mark.slow
    def test_every_check_passes_on_it(self, changed, small_images):
        checks = check_family(load(changed, device="cpu"), SAMPLES, max_new_tokens=3)
        assert [check for check in checks if not check.passed] == []
        assert PROMPTS_DIFFER in {check.name for check in checks}
        proved = proof.prove(changed, device="cpu")
        assert proved.passed
        assert proved.notes == (note_of(changed), proof.PIXELS)
        assert proved.prompt == PROMPT.replace(EXAMPLE_QUESTION, SAMPLES[0].question)


class TestWithoutATemplate:
    """Neither folder nor family has a chat template, so the user has to name one."""

    def test_the_facts_have_no_prompt(self, without):
        facts = read_facts(without)
        assert facts.chat_template == "none"
        (note,) = facts.prompt_notes
        assert note == (
            f"{without} has no chat template for an image and a text (it brings none), "
            "so its prompt has to be chosen with the option prompt_template."
        )
        assert (facts.example_prompt, facts.example_token_ids) == ("", ())

    def test_the_command_says_so(self, without):
        done = check(without)
        assert done.exit_code == 0
        expected = "chat template none for an image and a text; give --prompt-template a file with one, or raw"
        assert squeezed(expected) in squeezed(done.output)
        assert "example prompt" not in done.output

    def test_the_proof_names_the_option(self, without):
        done = check(without, "--run", "--device", "cpu")
        assert done.exit_code == 2
        (sentence,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
        assert sentence == (
            f"Error: {without} has no chat template for an image and a text (it brings none); give "
            "--prompt-template a file with one, or raw for the images and the user's text alone."
        )

    def test_the_option_goes_with_run(self, without):
        done = check(without, "--prompt-template", "raw")
        assert done.exit_code == 2
        assert "--prompt-template raw goes with --run; add it, or leave both out." in done.output.replace("\n", " ")

    @pytest.mark.slow
    @pytest.mark.parametrize("choice", ["raw", "a file"])
    def test_the_proof_runs_with_the_option(self, without, changed, choice, small_images):
        named = changed / TEMPLATE if choice == "a file" else choice
        done = check(without, "--run", "--device", "cpu", "--prompt-template", named, "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        expected = PROMPT if choice == "a file" else FAMILY.prompt.image_markup + EXAMPLE_QUESTION
        assert told["loaded"]["prompt"] == expected.replace(EXAMPLE_QUESTION, SAMPLES[0].question)
        assert PROMPTS_DIFFER in {check["name"] for check in told["checks"]}
        assert all(check["passed"] for check in told["checks"])


def failing(folder):
    checks = check_family(load(folder, device="cpu"), SAMPLES, max_new_tokens=2, sections=["prompts"])
    return {check.name for check in checks if not check.passed}


def test_a_first_token_added_twice_is_caught(tmp_path, monkeypatch):
    """The tokenizer adds the token that Llama's template has already written."""
    folder = write_mllama(tmp_path / "model", layers=3)
    let_tokenizer_add(folder, "<|begin_of_text|>")
    assert failing(folder) == set()
    monkeypatch.setattr(prompt, "adds_special_tokens", lambda tokenizer, text: True)
    assert failing(folder) == {PROMPTS_DIFFER}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.removesuffix("<|im_start|>assistant\n"),
        lambda text: text.replace("What is it?", "What is it? "),
        lambda text: text.replace(SYSTEM_TURN, ""),
    ],
    ids=["no assistant turn", "a space more", "no system turn"],
)
def test_a_prompt_that_is_rendered_differently_is_caught(published, monkeypatch, damage):
    render = prompt.render_places
    monkeypatch.setattr(prompt, "render_places", lambda *args, **options: damage(render(*args, **options)))
    assert failing(published) == {PROMPTS_DIFFER}
