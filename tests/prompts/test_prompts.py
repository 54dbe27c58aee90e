"""From a question to tokens: where it lies among them, and what it may not spell."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import Phi4MultimodalFeatureExtractor, Phi4MultimodalImageProcessor, Phi4MultimodalProcessor

from midsight.errors import MidsightError, SampleError
from midsight.families.phi4_multimodal import FAMILY
from midsight.prompts.chat_template import ChatTemplate, find_template
from midsight.prompts.control_tokens import control_tokens
from midsight.prompts.prompt import find_control_text, find_question, make_prompt_format, tokenise_prompt
from midsight.prompts.user_text import describe_unused_columns, parse_user_text
from midsight.samples.columns import ColumnSource
from midsight.samples.extras import ExtraType
from midsight.samples.placeholders import PLACEHOLDER, chat_markup
from midsight.samples.sample import Sample
from midsight.testing.phi4_multimodal import CHAT_TEMPLATE, IMAGE_ID, make_tokenizer

TOKENIZER = make_tokenizer()
PROCESSOR: Any = Phi4MultimodalProcessor(
    Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor(), TOKENIZER, chat_template=CHAT_TEMPLATE
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
CONTROLS = control_tokens(PROCESSOR, FAMILY.prompt, ChatTemplate("folder", CHAT_TEMPLATE, "text"))
HARMLESS = TEXT.filter(
    lambda text: (
        (find_control_text(text, CONTROLS, FAMILY.prompt) or chat_markup(text) or PLACEHOLDER.search(text)) is None
    )
)
"""Hypothesis also draws strings from the code under test, such as control tokens, markup and placeholders."""


def make_format(processor=PROCESSOR, *, user="{question}", system=None, prompt_template="auto", columns=None):
    return make_prompt_format(
        processor,
        FAMILY.prompt,
        user=user,
        system=system,
        prompt_template=prompt_template,
        own=find_template(processor, FAMILY.prompt),
        folder="the folder",
        columns=columns or {},
    )


def tokenise(question, image_tokens=(3,), processor=PROCESSOR, **options):
    made = make_format(processor, **options)
    turn = made.turn(Sample("s", 0, (b"",) * len(image_tokens), question))
    return tokenise_prompt(processor, FAMILY.prompt, made, turn, image_tokens)


@given(HARMLESS, st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([None, "Look."]))
def test_the_spans_are_where_the_parts_are(question, image_tokens, system):
    prompt = tokenise(question, image_tokens, user="Q: {question} A.", system=system)
    layout, ids = prompt.layout, list(prompt.token_ids)
    assert len(layout.prompt) == len(ids)
    assert [i for i, token in enumerate(ids) if token == IMAGE_ID] == list(layout.image_indices())
    assert layout.image_tokens == sum(image_tokens)
    assert question in TOKENIZER.decode(ids[layout.question.start : layout.question.stop])
    assert ids[layout.query_token] == TOKENIZER.convert_tokens_to_ids("<|assistant|>")
    turn = f"<|system|>{system}<|end|>" if system else ""
    images = "<|endoftext10|>" * sum(image_tokens)
    assert TOKENIZER.decode(ids) == f"{turn}<|user|>{images}Q: {question} A.<|end|><|assistant|>"


@given(TEXT, st.sampled_from([*TOKENIZER.get_added_vocab(), "<|audio_23|>"]), TEXT)
def test_no_question_spells_a_control_token(before, token, after):
    with pytest.raises(SampleError, match="control token"):
        tokenise(f"{before}{token}{after}")


@pytest.mark.parametrize(("user", "question"), [("<|{question}|>", "end"), ("{question}audio_1|>", "<|")])
def test_no_control_token_is_spelled_by_template_and_question_together(user, question):
    make_format(user=user)
    with pytest.raises(SampleError, match="control token"):
        tokenise(question, user=user)


@pytest.mark.parametrize("option", ["user", "system"])
def test_no_control_token_is_spelled_by_an_option(option):
    with pytest.raises(MidsightError, match=r"contains the control token '<\|end\|>'; leave it out"):
        make_format(**{option: "{question}<|end|>"})


@pytest.mark.parametrize("user", ["", "{question}{question}", "{question?}", "Say yes.", "{{question}}"])
def test_the_users_text_holds_the_question_once(user):
    with pytest.raises(MidsightError, match=r"^prompt is .*\{question\} exactly once"):
        make_format(user=user)


@given(TEXT, TEXT, TEXT)
def test_the_question_is_found_where_a_template_trims_the_users_text(before, question, after):
    head, tail = "<s>user ", " </s>"
    trimmed = (before + question + after).strip()
    start, stop = find_question(f"{head}{trimmed}{tail}", f"{head}MIDSIGHTMARK{tail}", before, question)
    found = f"{head}{trimmed}{tail}"[start:stop]
    assert found.strip() == question.strip() or found == trimmed


def test_a_template_that_changes_the_text_leaves_all_of_it_as_the_question():
    text, marked = "user WHAT? end", "user MIDSIGHTMARK end"
    assert text[slice(*find_question(text, marked, "", "what?"))] == "WHAT?"


class TestTemplates:
    """Which template makes the prompt."""

    PARTS = (
        "{% for m in messages %}[{{ m['role'] }}]{% for p in m['content'] %}"
        "{{ '<|endoftext10|>' if p['type'] == 'image' else p['text'] | trim }}{% endfor %}{% endfor %}[assistant]"
    )

    def processor(self, template, **tokenizer: Any) -> Any:
        tokens = make_tokenizer()
        tokens.chat_template = None
        for name, value in tokenizer.items():
            setattr(tokens, name, value)
        return Phi4MultimodalProcessor(
            Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor(), tokens, chat_template=template
        )

    def test_the_folders_own_is_used(self):
        processor = self.processor(self.PARTS)
        assert make_format(processor).template.source == "folder"
        assert tokenise("What?  ", processor=processor).text == "[user]<|endoftext10|>What?[assistant]"

    def test_of_several_the_default_is_used(self):
        processor = self.processor({"default": self.PARTS, "tool_use": "{{ raise_exception('no') }}"})
        assert tokenise("What?", processor=processor).text == "[user]<|endoftext10|>What?[assistant]"

    def test_a_tokenizers_template_is_used_where_the_processor_has_none(self):
        processor = self.processor(None, chat_template=self.PARTS)
        assert tokenise("What?", processor=processor).text == "[user]<|endoftext10|>What?[assistant]"
        parts = SimpleNamespace(tokenizer=processor.tokenizer, image_processor=processor.image_processor)
        assert tokenise("What?", processor=parts) == tokenise("What?", processor=processor)

    @pytest.mark.parametrize("template", [None, "no images: {{ messages[0]['content'] }}", "{{ 1 / 0 }}", "{% if %}"])
    def test_without_a_usable_one_the_familys_is_used(self, template):
        """A template that prints a message's content as text shows the image token, and so is usable."""
        processor = self.processor(template)
        found = make_format(processor).template
        if template and template.startswith("no images"):
            assert (found.source, found.content) == ("folder", "text")
            assert tokenise("What?", processor=processor).text == "no images: <|endoftext10|>What?"
        else:
            assert found.source == "family"
            assert tokenise("What?", processor=processor) == tokenise("What?")

    def test_raw_is_images_and_text_alone(self):
        assert tokenise("What?", (2, 3), prompt_template="raw").text == "<|endoftext10|><|endoftext10|>What?"

    def test_a_file_gives_its_template(self, tmp_path):
        path = tmp_path / "mine.jinja"
        path.write_text(self.PARTS)
        prompt = tokenise("What?", prompt_template=path)
        assert prompt.text == "[user]<|endoftext10|>What?[assistant]"
        assert make_format(prompt_template=str(path)).template.source == str(path)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("plain text", "it renders 0 images and the text 0 times"),
            ("{{ messages[0]['content'][1]['text'] * 2 }}", "it renders 0 images and the text 2 times"),
            ("{{ raise_exception('not today') }}", "not today"),
        ],
    )
    def test_a_file_that_renders_no_prompt_is_refused(self, tmp_path, content, said):
        path = tmp_path / "mine.jinja"
        path.write_text(content)
        with pytest.raises(MidsightError, match=f"^prompt_template is .*{said}; correct the file"):
            make_format(prompt_template=path)

    def test_a_file_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(MidsightError, match=r"^prompt_template is .* cannot be read .*; give auto, raw, or a file"):
            make_format(prompt_template=tmp_path / "nothing.jinja")

    def test_a_template_that_refuses_a_question_fails_that_sample_alone(self):
        template = self.PARTS.replace("{% for m", "{% if 'bad' in messages | string %}{{ raise_exception('bad word') }}"
                                      "{% endif %}{% for m")  # fmt: skip
        processor = self.processor(template)
        assert tokenise("What?", processor=processor).text.endswith("What?[assistant]")
        with pytest.raises(SampleError, match="The chat template refuses 1 image and this question: bad word"):
            tokenise("bad?", processor=processor)


class TestSystemTurns:
    """The template's own system turn, one of the user's, and none."""

    CHATML = (
        "{% if messages[0]['role'] != 'system' %}<im>system|Be good.<end>|{% endif %}"
        "{% for m in messages %}<im>{{ m['role'] }}|{% for p in m['content'] %}"
        "{{ '<|endoftext10|>' if p['type'] == 'image' else p['text'] }}{% endfor %}<end>|{% endfor %}<im>assistant|"
    )

    def text(self, template, system):
        processor = TestTemplates().processor(template)
        return tokenise("What?", processor=processor, system=system).text

    @pytest.mark.parametrize(
        ("system", "turn"),
        [(None, "<im>system|Be good.<end>|"), ("Hi.", "<im>system|Hi.<end>|"), ("", "")],
    )
    def test_a_templates_own_system_turn_can_be_replaced_and_left_out(self, system, turn):
        assert self.text(self.CHATML, system) == f"{turn}<im>user|<|endoftext10|>What?<end>|<im>assistant|"

    def test_what_begins_the_text_is_kept_where_the_system_turn_is_left_out(self):
        template = "{{ bos_token }}" + self.CHATML
        assert self.text(template, "") == "<|endoftext|><im>user|<|endoftext10|>What?<end>|<im>assistant|"

    def test_without_a_default_empty_text_changes_nothing(self):
        assert self.text(CHAT_TEMPLATE, "") == self.text(CHAT_TEMPLATE, None)
        assert self.text(TestTemplates.PARTS, "") == self.text(TestTemplates.PARTS, None)

    def test_a_default_turn_that_cannot_be_told_from_the_users_is_refused(self):
        template = self.CHATML.replace("<im>system|Be good.<end>|", "Be good. ").replace(
            "<im>{{ m['role'] }}|", "{{ '<im>' if m['role'] == 'user' else '' }}"
        ).replace("<end>|{% endfor %}", "{{ ' ' if m['role'] == 'system' else '<end>' }}{% endfor %}")  # fmt: skip
        assert self.text(template, "Be nice.") == "Be nice. <im><|endoftext10|>What?<end><im>assistant|"
        with pytest.raises(
            MidsightError, match=r"^system is '', and it cannot be told .*or give prompt_template a file"
        ):
            self.text(template, "")

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            ("{% if messages | length > 1 %}{{ raise_exception('no system') }}{% endif %}" + TestTemplates.PARTS,
             "it says: no system"),
            (TestTemplates.PARTS.replace("for m in messages", "for m in messages[-1:]"), "it leaves the turn out"),
        ],
    )  # fmt: skip
    def test_a_template_without_a_system_turn_refuses_one(self, template, said):
        with pytest.raises(MidsightError, match=rf"^system is 'Hi\.', .*\({said}\); put its words into prompt\."):
            self.text(template, "Hi.")

    LLAMA = (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "[system]{{ system }}{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for p in m['content'] %}{{ '<|endoftext10|>' if p['type'] == 'image' else p['text'] }}"
        "{% endfor %}{% endif %}{% endfor %}[assistant]"
    )

    def test_a_template_that_takes_the_system_text_as_one_text_gets_it_so(self):
        """Parts would be printed as a Python list."""
        assert self.text(self.LLAMA, "Hi.") == "[system]Hi.[user]<|endoftext10|>What?[assistant]"
        assert self.text(self.LLAMA, None) == "[system][user]<|endoftext10|>What?[assistant]"

    @pytest.mark.parametrize("own", ["<im>system|<end>|", "<im>system|Be good.<end>|"])
    def test_an_empty_system_turn_that_a_template_always_prints_is_left_out(self, own):
        template = self.CHATML.replace("<im>system|Be good.<end>|", own)
        assert self.text(template, None).startswith(own)
        assert self.text(template, "") == "<im>user|<|endoftext10|>What?<end>|<im>assistant|"

    FIXED = (
        "Be good. {% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
        "{{ '<|endoftext10|>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}assistant:"
    )

    def test_a_turn_that_a_template_writes_before_every_conversation_is_left_out(self):
        """Before a system turn too, as Ovis2's does."""
        template = "<im>system|Be good.<end>|" + self.CHATML.partition("{% endif %}")[2]
        assert self.text(template, "Hi.").startswith("<im>system|Be good.<end>|<im>system|Hi.<end>|<im>user|")
        assert self.text(template, "") == "<im>user|<|endoftext10|>What?<end>|<im>assistant|"

    def test_a_text_that_is_no_turn_is_left_out_where_it_is_clear_where_it_ends(self):
        """As DeepSeek-VL's."""
        assert self.text(self.FIXED, "Hi.") == "Be good. system: Hi.user: <|endoftext10|>What?assistant:"
        assert self.text(self.FIXED, "") == "user: <|endoftext10|>What?assistant:"
        without_mark = self.FIXED.replace("{{ m['role'] }}: ", "{{ 'system: ' if m['role'] == 'system' }}")
        with pytest.raises(MidsightError, match="it cannot be told"):
            self.text(without_mark, "")

    def test_special_tokens_that_begin_a_conversation_are_no_turn(self):
        """As GLM-4.1V's."""
        template = "<|endoftext11|>" + TestTemplates.PARTS
        assert self.text(template, "Hi.").startswith("<|endoftext11|>[system]Hi.[user]")
        assert self.text(template, "") == self.text(template, None)

    def test_a_header_that_differs_before_an_image_is_still_the_users(self):
        template = (
            "{% for m in messages %}{{ 'User:' if m['role'] == 'user' else 'Assistant:' }}"
            "{{ '' if m['content'][0]['type'] == 'image' else ' ' }}{% for p in m['content'] %}"
            "{{ '<|endoftext10|>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}Assistant:"
        )
        assert self.text(template, "") == self.text(template, None) == "User:<|endoftext10|>What?Assistant:"

    def test_it_is_said_where_it_cannot_be_told_whether_there_is_a_system_turn(self):
        template = "USER: <|endoftext10|>{{ messages[0]['content'][1]['text'] }} ASSISTANT:"
        assert self.text(template, None) == "USER: <|endoftext10|>What? ASSISTANT:"
        with pytest.raises(MidsightError, match=r"^system is '', and it cannot be told whether .*; leave it out, or"):
            self.text(template, "")

    def test_a_template_that_prints_no_text_of_the_system_turn_is_refused(self):
        template = self.LLAMA.replace("messages[0]['content'] | trim", "messages[0]['content'] | list")
        with pytest.raises(MidsightError, match="the chat template takes no system turn"):
            self.text(template, "Hi.")

    def test_a_default_turn_that_changes_fails_its_samples_alone(self):
        template = self.CHATML.replace("Be good.", "{{ messages | string | length }} characters.")
        assert "What?" in self.text(template, None)
        with pytest.raises(SampleError, match=r"^The chat template changes its own system turn from prompt to prompt"):
            self.text(template, "")

    @pytest.mark.parametrize("role", ["{{ raise_exception('no system') }}", ""])
    def test_empty_text_changes_nothing_where_a_template_takes_no_system_turn(self, role):
        template = "{% if messages[0]['role'] == 'system' %}" + role + "{% endif %}" + TestTemplates.PARTS
        template = template.replace("for m in messages", "for m in messages if m['role'] != 'system'")
        assert self.text(template, "") == "[user]<|endoftext10|>What?[assistant]"

    def test_empty_text_changes_nothing_where_the_system_text_joins_the_users(self):
        template = (
            "{% set lead = messages[0]['content'][0]['text'] if messages[0]['role'] == 'system' else '' %}"
            "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ lead if loop.first else '' }}"
            "{% for p in m['content'] %}{{ '<|endoftext10|>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
            "{% endfor %}[assistant]"
        )
        assert self.text(template, "Hi.") == "[user]Hi.<|endoftext10|>What?[assistant]"
        assert self.text(template, "") == self.text(template, None) == "[user]<|endoftext10|>What?[assistant]"

    def test_raw_has_no_system_turn(self):
        with pytest.raises(MidsightError, match=r"there is no template"):
            make_format(system="Hi.", prompt_template="raw")
        assert tokenise("What?", prompt_template="raw", system="").text == "<|endoftext10|>What?"


class TestColumns:
    """`{NAME}` in the option `prompt` is any column."""

    COLUMNS: ClassVar[dict[str, ColumnSource]] = {
        **dict.fromkeys(("A", "B", "hint", "n", "is it?"), "extra"), "label": "answer", "who": "id",
    }  # fmt: skip

    def text(self, user, question="Which?", answers=(), **extras):
        sample = Sample("s7", 0, (b"",), question, "a.png", answers, extras)
        return parse_user_text(user, self.COLUMNS).fill(sample).text

    @pytest.mark.parametrize(
        ("user", "extras", "text"),
        [
            ("{question}\nA. {A}\nB. {B}", {"A": "dog", "B": "None"}, "Which?\nA. dog\nB. None"),
            ("{question}\nA. {A}\nB. {B?}\nEnd", {"A": "dog", "B": None}, "Which?\nA. dog\nEnd"),
            ("{hint?}\n{question}", {"hint": " "}, "Which?"),
            ("{question}\n{hint?} {A?}", {"hint": "look"}, "Which?"),
            ("{hint?}\n{question}\nA. {A}\nB. {B?}", {"hint": "nan", "A": "dog", "B": "nan"}, "Which?\nA. dog"),
            ("{question} {n}", {"n": 3.0}, "Which? 3"),
            ("{question} {n}", {"n": 0.5}, "Which? 0.5"),
            ("{question} {n}", {"n": 0}, "Which? 0"),
            ('{{"a": {n}}} {question}', {"n": 1}, '{"a": 1} Which?'),
            ("{question} {is it?}", {"is it?": "yes"}, "Which? yes"),
            ("{who}: {question}", {}, "s7: Which?"),
        ],
    )
    def test_they_are_filled(self, user, extras, text):
        assert self.text(user, **extras) == text

    def test_braces_in_cells_are_text(self):
        assert self.text("{A} {question}", question="{B}?", A="{{x}}") == "{{x}} {B}?"

    def test_a_column_of_another_role_is_filled_too(self):
        assert self.text("{question} Not {label}.", answers=("no",)) == "Which? Not no."
        with pytest.raises(SampleError, match=r"'label', which is a list"):
            self.text("{question} Not {label}.", answers=("no", "none"))

    @pytest.mark.parametrize("missing", [None, "", "  ", float("nan"), "nan"])
    def test_without_a_value_the_sample_fails(self, missing):
        with pytest.raises(SampleError, match=r"^The prompt uses the column 'A', .*no value.*write \{A\?\} to leave"):
            self.text("{question} {A}", A=missing)
        with pytest.raises(SampleError, match=r"'A'"):
            self.text("{question} {A}")

    def test_the_line_of_the_question_is_never_left_out(self):
        assert self.text("{question} {A?}\n{B?}", A="x") == "Which? x"
        with pytest.raises(
            SampleError, match=r"'A', .* on the line of \{question\}, which is never left out; put \{A\?\} on"
        ):
            self.text("{question} {A?}", A=None)

    @pytest.mark.parametrize("value", [["a"], {"a": 1}])
    def test_a_list_is_not_text(self, value):
        with pytest.raises(SampleError, match=r"'A', which is (a list|an object)"):
            self.text("{question} {A?}", A=value)

    @pytest.mark.parametrize(
        ("user", "said"),
        [
            ("{question} {C}", r"contains \{C\}, and the data have 'A', 'B', .*write \{\{ and \}\} for braces"),
            ("{question} {a?}", r"contains \{a\?\}"),
            ("{question} {}", r"contains \{\}"),
            ("{question} }", r"write \}\} for a \}"),
            ("{question", r"write \{\{ for a \{"),
        ],
    )
    def test_what_is_unknown_is_refused(self, user, said):
        with pytest.raises(MidsightError, match=f"^prompt .*{said}"):
            parse_user_text(user, self.COLUMNS)


class TestMultipleChoice:
    """`mcq` is VLMEvalKit's prompt, written down here from its `ImageMCQDataset.build_prompt`."""

    ENDING = "Please select the correct answer from the options above. \n"

    def text(self, **extras):
        return parse_user_text("mcq", {"A": "extra"}).fill(Sample("s", 0, (b"",), "Which?", extras=extras))

    @pytest.mark.parametrize(
        "choices",
        [
            {"A": "dog", "B": "", "C": "None", "D": float("nan"), "hint": ""},
            {"choices": {"A": "dog", "C": "None"}, "hint": None},
        ],
    )
    def test_letters_are_kept_and_choices_without_text_left_out(self, choices):
        assert self.text(**choices).text == f"Question: Which?\nOptions:\nA. dog\nC. None\n{self.ENDING}"

    @pytest.mark.parametrize("options", [["2", "3"], "['2', '3']", '["2", "3"]'])
    def test_lists_get_letters(self, options):
        filled = self.text(options=options, hint="Look.")
        assert filled.text == f"Hint: Look.\nQuestion: Which?\nOptions:\nA. 2\nB. 3\n{self.ENDING}"
        assert filled.text[slice(*filled.question)] == "Which?"

    @pytest.mark.parametrize("options", ["[]", [], None, "", "nan"])
    def test_an_open_question_has_no_choices(self, options):
        assert self.text(options=options).text == "Question: Which?\n"

    @pytest.mark.parametrize("options", ["[broken", "[__import__('os')]", 3, "(a) open (b) closed"])
    @pytest.mark.parametrize("column", ["options", "Choices"])
    def test_choices_that_are_not_a_list_are_never_left_out(self, column, options):
        with pytest.raises(
            SampleError, match=rf"^The choices in the column '{column}' are .*, not a list; .* or use \{{{column}\}} in"
        ):
            self.text(**{column: options})
        ending = f"Question: Which?\nOptions:\nA. x\n{self.ENDING}"
        assert self.text(**{column: options, "A": "x"}).text == ending

    def test_columns_may_begin_with_a_capital(self):
        filled = self.text(Hint="Look.", Options=["2", "3"])
        assert filled.text == f"Hint: Look.\nQuestion: Which?\nOptions:\nA. 2\nB. 3\n{self.ENDING}"

    def test_choices_without_a_letter_fail_the_sample(self):
        assert "Z. 25\n" in self.text(options=list(range(26))).text
        with pytest.raises(SampleError, match=r"^The sample has 27 choices, more than there are letters; leave some"):
            self.text(options=list(range(27)))

    def test_it_needs_a_column_of_choices(self):
        with pytest.raises(MidsightError, match=r"^prompt='mcq' needs choices in columns A, B, .*the data have 'a'\."):
            parse_user_text("mcq", {"a": "extra"})


class TestNotes:
    """What the data have and the prompt has not."""

    EXTRAS: ClassVar[dict[str, ExtraType]] = dict.fromkeys(("Options", "context", "hint", "system"), "string")
    CHOICES = "'Options' look like choices, which are not part of the prompt; the prompt mcq has them."
    CONTEXT = (
        "'context', 'hint' may belong to the question, and the prompt leaves it out; the prompt may have {context?}."
    )
    SYSTEM = "'system' may hold system turns, which are left out; the option system gives all prompts the same one."

    @pytest.mark.parametrize(
        ("prompt", "notes"),
        [
            ("{question}", (CHOICES, CONTEXT, SYSTEM)),
            ("{question}\nAnswer yes or no.", (CHOICES, CONTEXT, SYSTEM)),
            ("{hint?}\n{context}\n{question}\n{Options}", (SYSTEM,)),
            ("mcq", ("'context' may belong to the question, and the prompt leaves it out.", SYSTEM)),
        ],
    )
    def test_they_name_what_is_left_out(self, prompt, notes):
        assert describe_unused_columns(prompt, self.EXTRAS) == notes
        assert describe_unused_columns(prompt, {"level": "int64"}) == ()


class TestImagePlaces:
    """Placeholders of images inside questions, as datasets write them."""

    LISTING = (
        "{% for m in messages %}{% for p in m['content'] if p['type'] == 'image' %}<|endoftext10|>{% endfor %}"
        "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{% endfor %}|"
    )
    """A template that cannot interleave: it prints all images first, then all texts."""

    def turn(self, template, question, images):
        return tokenise(question, (1,) * images, processor=TestTemplates().processor(template)).text.replace(
            "<|endoftext10|>", "#"
        )

    @pytest.mark.parametrize(
        ("question", "images", "kept", "first"),
        [
            ("What is it?", 1, "#What is it?", "#What is it?"),
            ("<image>\nWhat is it?", 1, "#What is it?", "#What is it?"),
            ("<|image_1|>\nWhat is it?", 1, "#What is it?", "#What is it?"),
            ("What is it?\n<image>", 1, "What is it?\n#", "#What is it?"),
            ("<IMAGE> Look: <Image>", 2, "# Look: #", None),
            ("See <image 1> here.", 1, "See # here.", None),
            ("<image 1> and <image 2>: which?", 2, "# and #: which?", None),
            ("<image><image_placeholder>\nSame?", 2, "##Same?", "##Same?"),
            ("Is <image_2> like <image1>?", 2, "Is # like #?", None),
            ("<image_0>, <image_1>: same?", 2, "#, #: same?", None),
            ("[IMG] and [IMAGE]: same?", 2, "# and #: same?", None),
            ("[img_2][img_1] Same?", 2, "##Same?", "##Same?"),
            ("Picture 1: <img>dir/a.png</img>\nWhat?", 1, "Picture 1: #\nWhat?", None),
            ("<img>my dog.png</img>\nIs it a dog?", 1, "#Is it a dog?", "#Is it a dog?"),
            ("<image>my dog.jpeg</image>\nIs it a dog?", 1, "#Is it a dog?", "#Is it a dog?"),
            ("(<image>./</image>)\nWhat?", 1, "#What?", "#What?"),
            ("<image></image>What?", 1, "#What?", "#What?"),
            ("<img>\nWhat?", 1, "#What?", "#What?"),
            ("{image}\nWhat?", 1, "#What?", "#What?"),
            ("What is in <img>?", 1, "What is in #?", None),
            ("<im_start><image><im_end>\nWhat?", 1, "#What?", "#What?"),
            ("<Img><ImageHere></Img> What?", 1, "#What?", "#What?"),
            ("<|vision_start|><|image_pad|><|vision_end|>What?", 1, "#What?", "#What?"),
            ("<start_of_image> What?", 1, "#What?", "#What?"),
            ("<image_soft_token><IMG_CONTEXT>What?", 2, "##What?", "##What?"),
            ("Is <img> like <img>?", 2, "Is # like #?", None),
            ("(image 1: <Image><image></Image>) What?", 1, "(image 1: #) What?", None),
            ("<image/>\n<|image|>\n[<IMG_PLH>] What?", 3, "###What?", "###What?"),
            ("&lt;image&gt; \\<image\\> What?", 2, "##What?", "##What?"),
            ("&lt;image 1&gt;<image_2/> What?", 2, "##What?", "##What?"),
            ("<image 1:> What?", 1, "#What?", "#What?"),
            ("<|media_start|>image<|media_content|><|media_pad|><|media_end|>What?", 1, "#What?", "#What?"),
            ("<|begin_of_image|><|image|><|end_of_image|>What?", 1, "#What?", "#What?"),
            ("Why is `<img>` in it?", 1, "#Why is `<img>` in it?", "#Why is `<img>` in it?"),
            (
                "Which <img> tag and which {image} in it?",
                1,
                "#Which <img> tag and which {image} in it?",
                "#Which <img> tag and which {image} in it?",
            ),
            ("Is x[image] in ![a](b.png)?", 1, "#Is x[image] in ![a](b.png)?", "#Is x[image] in ![a](b.png)?"),
        ],
    )
    def test_they_become_images(self, question, images, kept, first):
        assert self.turn(TestTemplates.PARTS.replace(" | trim", ""), question, images) == f"[user]{kept}[assistant]"
        if first is not None:
            assert self.turn(self.LISTING, question, images) == f"{first}|"
            return
        with pytest.raises(
            SampleError, match=r"^The text needs its image placeholders \(.*\) where they are, .*; begin"
        ):
            self.turn(self.LISTING, question, images)

    def test_their_numbers_order_the_images(self):
        made = make_format()
        turn = made.turn(Sample("s", 0, (b"0", b"1", b"2"), "<image 3>, <image 1>, <image 2> or <image 1>?"))
        assert (turn.images, turn.places[0]) == ((2, 0, 1, 0), None)
        listing = replace(made, interleaves=False).turn(Sample("s", 0, (b"0", b"1"), "<image 2> <image 1>\nSame?"))
        assert listing.parts == (1, 0, "Same?")

    @pytest.mark.parametrize(
        ("question", "images"),
        [
            ("<image><image> Same?", 1),
            ("<image> Same?", 2),
            ("<image 2>?", 1),
            ("<image 1>?", 2),
            ("<image 0>?", 2),
            ("[IMG] [IMG]?", 1),
            ("<img>a.png</img> Same?", 2),
            ("<|image_1|> <image>?", 2),
            ("<image 1> <image 3>?", 2),
        ],
    )
    def test_those_that_do_not_fit_fail_the_sample(self, question, images):
        with pytest.raises(SampleError, match=rf"^The text has .* and the sample {images} images?; give one for each"):
            tokenise(question, (1,) * images)

    @pytest.mark.parametrize("question", ["<image>", "  <|image_1|>\n"])
    def test_a_question_of_placeholders_alone_is_empty(self, question):
        with pytest.raises(SampleError, match="question is empty"):
            tokenise(question)

    @pytest.mark.parametrize(
        "question",
        [
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n", "[INST] <image>\nWhat? [/INST]",
            "<start_of_turn>user\nWhat?<end_of_turn>", "<s>What?", "<|start_header_id|>user<|end_header_id|>What?",
            "What?</s>",
        ],
    )  # fmt: skip
    def test_the_chat_template_of_another_model_fails_the_sample(self, question):
        with pytest.raises(
            SampleError, match=r"^The question contains '.*', .* of another model .*; give the question"
        ):
            tokenise(question)
        assert "[INST] What? [/INST]" in tokenise("What?", user="[INST] {question} [/INST]").text

    def test_what_is_left_may_not_spell_a_control_token(self):
        with pytest.raises(SampleError, match="control token"):
            tokenise("<|<image>end|>")

    @pytest.mark.parametrize("option", ["user", "system"])
    def test_an_option_may_not_spell_one(self, option):
        with pytest.raises(MidsightError, match=r"contains the control token '<image>'; leave it out"):
            make_format(**{option: "<image> {question}"})

    @given(HARMLESS, HARMLESS, st.booleans())
    def test_the_question_is_found_around_its_images(self, before, after, mid):
        question = f"{before}<image>{after}" if mid else f"{before} {after}<image>"
        found = PLACEHOLDER.search(question)
        assume(found and found.group() == "<image>")  # words like `<vision_start>` before it belong to the placeholder
        prompt = tokenise(question, (2,), user="Q: {question} A.")
        ids = list(prompt.token_ids)[prompt.layout.question.start : prompt.layout.question.stop]
        assert before.strip() in TOKENIZER.decode(ids)
        assert after.strip() in TOKENIZER.decode(ids)

    @pytest.mark.parametrize(
        ("user", "question", "text"),
        [
            ("{question}", "What is it? <image>", "What is it?"),
            ("{question}", 'Say "what?" <image 1>', 'Say "what?"'),
            ("{question}", "what colour is it <image>", "what colour is it"),
            ("{question}", "Describe <image>", None),
            ("{question}", "What is shown in <image>", None),
            ("{question}", "What is shown <image 1>", None),
            ("{question}", "Look at this: <image>", None),
            ("{question}", "Look at this:\n<image>", None),
            ("{question}", "See Fig. <image 1>", None),
            ("{question}", "Like which?\nA. <image>", None),
            ("{question}", "Read this.\n<image>\nWhat is it?", None),
            ("{question}", "<image>: what is it?", ": what is it?"),
            ("Q: {question} Be brief.\n", "<image 1>\nWhat is it?", "Q: What is it? Be brief.\n"),
            ("Q: {question} Be brief.\n", "[IMG] what is it?", "Q: what is it? Be brief.\n"),
            ("Q: {question} Be brief.\n", "What is it?\n<image 1> ", "Q: What is it? Be brief.\n"),
            ("Q: {question} Be brief.\n", "<image 1> shows what?", None),
            ("Q: {question} Be brief.\n", "[IMG], what is it?", None),
            ("Q: {question} Be brief.\n", "Describe <image 1>", None),
            ("{question}\nA. {A}\n", "Which?", None),
            ("mcq", "<image 1> Who?", "Question: Who?\nOptions:\nA. x\n" + TestMultipleChoice.ENDING),
        ],
    )
    def test_images_first_never_leaves_a_gap_between_words(self, user, question, text):
        """Where the template cannot keep places, only placeholders that no sentence needs are moved."""
        made = replace(make_format(user=user, columns={"A": "extra"}), interleaves=False)
        sample = Sample("s", 0, (b"0",), question, extras={"A": "x" if "{A}" not in user else "<image 1>"})
        if text is None:
            with pytest.raises(SampleError, match=r"begin the question with them, or give prompt_template a file with"):
                made.turn(sample)
            return
        turn = made.turn(sample)
        assert turn.parts == (0, text)
        words = question.replace("<image 1>", "").replace("<image>", "").replace("[IMG]", "").strip()
        assert turn.text[slice(*turn.question)].strip() == words

    def test_choices_may_hold_images(self):
        made = make_format(user="mcq", columns={"options": "extra"})
        sample = Sample("s", 0, (b"0", b"1"), "Like <image 1>?", extras={"options": "['<image 2>', 'none']"})
        assert made.turn(sample).parts == (
            "Question: Like ", 0, "?\nOptions:\nA. ", 1,
            "\nB. none\nPlease select the correct answer from the options above. \n",
        )  # fmt: skip
