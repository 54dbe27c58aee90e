"""From a question to tokens: where it lies among them, and what it may not spell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midsight.errors import MidsightError, SampleError
from midsight.models.phi4_multimodal import ADAPTER
from midsight.models.prompts import PromptTemplate, check_template, tokenise_prompt
from midsight.testing.phi4_multimodal import IMAGE_ID, make_tokenizer

TOKENIZER = make_tokenizer()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())


def tokenise(question, image_tokens=(3,), **template):
    return tokenise_prompt(TOKENIZER, ADAPTER, PromptTemplate(**template), question, image_tokens)


@given(TEXT, st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([None, "Look."]))
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


@given(TEXT, st.sampled_from([*TOKENIZER.get_added_vocab(), "<|image_1|>", "<|audio_23|>"]), TEXT)
def test_no_question_spells_a_control_token(before, token, after):
    with pytest.raises(SampleError, match="control token"):
        tokenise(f"{before}{token}{after}")


@pytest.mark.parametrize(("user", "question"), [("<|{question}|>", "end"), ("{question}image_1|>", "<|")])
def test_no_control_token_is_spelled_by_template_and_question_together(user, question):
    check_template(PromptTemplate(user), TOKENIZER, ADAPTER)
    with pytest.raises(SampleError, match="control token"):
        tokenise(question, user=user)


@pytest.mark.parametrize("user", ["", "{question}{question}", "{}", "Say yes."])
def test_a_template_holds_the_question_once(user):
    with pytest.raises(MidsightError, match=r"\{question\} exactly once"):
        PromptTemplate(user)
