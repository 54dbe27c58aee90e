import pytest
from hypothesis import given
from hypothesis import strategies as st

from midsight.errors import MidsightError, Option
from midsight.taps.tap import POSITIONS, Tap, choose_layers, choose_positions, choose_taps

taps = st.builds(Tap, st.sampled_from(POSITIONS), st.integers(0, 500), st.sampled_from(["layer", "residual"]))


@given(taps)
def test_a_tap_parses_from_its_own_spelling(tap):
    assert Tap.parse(str(tap)) == Tap.parse_or_none(str(tap)) == tap


@given(taps, taps)
def test_two_taps_never_share_a_spelling(a, b):
    assert (str(a) == str(b)) == (a == b)


@given(st.text())
def test_parse_accepts_nothing_that_it_would_print_otherwise(text):
    tap = Tap.parse_or_none(text)
    assert tap is None or str(tap) == text


@pytest.mark.parametrize(
    "text",
    [
        "query_token_representation.layer_07",
        "query_token_representation.layer_-1",
        "query_token_representation.layer_3_residual_residual",
        "query_token.layer_3",
        "somewhere_representation.layer_3",
        "query_token_representation.layer_3\n",
    ],
)
def test_near_misses_are_refused_with_the_spelling(text):
    with pytest.raises(MidsightError, match="is not the name of a tap; write POSITION_representation"):
        Tap.parse(text)
    assert Tap.parse_or_none(text) is None


def test_spelling_is_the_column_name_of_the_contract():
    assert str(Tap("vision_token", 16)) == "vision_token_representation.layer_16"
    assert str(Tap("query_token", 31, "residual")) == "query_token_representation.layer_31_residual"


def test_the_default_layers_of_32_and_40():
    assert choose_layers("default", 32) == (0, 8, 16, 24, 31)
    assert choose_layers("default", 40) == (0, 10, 20, 30, 39)


@given(st.integers(1, 200))
def test_default_layers_are_the_formula_of_the_contract(n):
    assert choose_layers("default", n) == tuple(sorted({0, n // 4, n // 2, 3 * n // 4, n - 1}))
    assert choose_layers("all", n) == tuple(range(n))


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(-n, n - 1), min_size=1))))
def test_lists_and_text_mean_the_same_and_negatives_count_from_the_end(case):
    n, chosen = case
    as_text = ",".join(map(str, chosen))
    assert choose_layers(chosen, n) == choose_layers(as_text, n) == tuple(sorted({i % n for i in chosen}))
    assert choose_layers(chosen[0], n) == (chosen[0] % n,)


RANGE = "and the model has the layers 0 to 31; give one of them."
NOT_A_NUMBER = "which is not a number; give default, all, or numbers like 0,8,16."


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("32", f"layers contains 32, {RANGE}"),
        ("-33", f"layers contains -33, {RANGE}"),
        ("0,99", f"layers contains 99, {RANGE}"),
        (32, f"layers contains 32, {RANGE}"),
        ("two", f"layers contains 'two', {NOT_A_NUMBER}"),
        ("", f"layers contains '', {NOT_A_NUMBER}"),
        ("1.5", f"layers contains '1.5', {NOT_A_NUMBER}"),
        ([1.5], f"layers contains 1.5, {NOT_A_NUMBER}"),
        (4.0, f"layers contains 4.0, {NOT_A_NUMBER}"),
        ([None], f"layers contains None, {NOT_A_NUMBER}"),
        ([], "layers names no layer; give default, all, or numbers like 0,8,16."),
    ],
)
def test_layers_that_do_not_exist_are_refused_by_name(choice, sentence):
    with pytest.raises(MidsightError) as caught:
        choose_layers(choice, 32)
    assert str(caught.value) == sentence
    assert caught.value.args[0] == Option("layers")


def test_positions_come_in_the_fixed_order_and_once():
    assert choose_positions("query_token,vision_token,query_token") == ("vision_token", "query_token")


@pytest.mark.parametrize(
    ("choice", "said"), [("query_token,middle", "contains 'middle'"), ("", "contains ''"), ([], "is empty")]
)
def test_positions_that_do_not_exist_are_refused_by_name(choice, said):
    with pytest.raises(MidsightError) as caught:
        choose_positions(choice)
    assert str(caught.value) == f"positions {said}; choose from vision_token, query_token, image_mean."
    assert caught.value.args[0] == Option("positions")


def test_the_residual_comes_only_with_the_last_layer():
    assert choose_taps(("query_token",), (0, 3), 4, residual=True)[-1] == Tap("query_token", 3, "residual")
    assert all(tap.stage == "layer" for tap in choose_taps(("query_token",), (0, 2), 4, residual=True))
    assert all(tap.stage == "layer" for tap in choose_taps(("query_token",), (0, 3), 4))
