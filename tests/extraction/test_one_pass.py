"""Only what is asked is computed and kept: one prefill a batch, no full-length states or logits, no spare layers."""

import pytest
import torch

from midsight.extraction import prefill
from midsight.extraction.request import Request, resolve
from support.parity import answer_ids, extract_records, samples_of
from support.pictures import CASES

pytestmark = pytest.mark.usefixtures("rows_together")
SAMPLES = samples_of([CASES[0], CASES[8], CASES[7]])


@pytest.fixture
def calls(model):
    """Watches a module by path: a list of the shapes of its first input, one entry a call."""
    hooks = []

    def watch(path):
        shapes = []

        def note(_module, args, kwargs):
            first = args[0] if args else next(v for v in kwargs.values() if isinstance(v, torch.Tensor))
            shapes.append(tuple(first.shape))

        hooks.append(model.loaded.hf_model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True))
        return shapes

    yield watch
    for hook in hooks:
        hook.remove()


def extract(model, **options):
    plan = resolve(Request(**options), model.loaded)
    return extract_records(model, plan, SAMPLES)


def test_one_prefill_then_single_tokens(model, calls):
    layer = calls("model.layers.0")
    records = extract(model, max_new_tokens=6)
    longest = max(record.prompt_tokens for record in records)
    assert layer[0][:2] == (len(SAMPLES), longest)
    assert all(shape[1] == 1 for shape in layer[1:])
    assert len(layer) == max(len(answer_ids(record)) for record in records)


@pytest.mark.parametrize(("slice_tokens", "rows"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3])])
def test_on_a_cpu_few_rows_are_prefilled_together(model, calls, monkeypatch, slice_tokens, rows):
    longest = max(record.prompt_tokens for record in extract(model, answers=False))
    monkeypatch.setattr(prefill, "SLICE_TOKENS", (slice_tokens * longest + 1) / torch.get_num_threads())
    layer = calls("model.layers.0")
    records = extract(model, max_new_tokens=6)
    assert [shape[:2] for shape in layer[: len(rows)]] == [(n, longest) for n in rows]
    assert len(layer) == len(rows) - 1 + max(len(answer_ids(record)) for record in records)


def test_rows_that_stopped_leave_the_batch(model, calls):
    layer = calls("model.layers.0")
    records = extract(model, max_new_tokens=24)
    lengths = [len(answer_ids(record)) for record in records]
    assert len(set(lengths)) > 1
    assert [shape[0] for shape in layer[1:]] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_logits_are_computed_for_last_tokens_only(model, calls):
    lm_head = calls("lm_head")
    extract(model, max_new_tokens=4)
    assert lm_head
    assert all(len(shape) == 2 and shape[0] <= len(SAMPLES) for shape in lm_head)


def test_without_answers_there_is_one_call_and_no_logits(model, calls):
    layer, lm_head = calls("model.layers.0"), calls("lm_head")
    records = extract(model, answers=False)
    assert len(layer) == 1
    assert lm_head == []
    assert all(record.answer is None and record.first_token_entropy is None for record in records)


def test_the_tower_stops_after_its_feature_layer_and_sees_real_crops_only(model, calls):
    tower = "model.embed_tokens_extend.image_embed.img_processor"
    used, last, head = calls(f"{tower}.encoder.layers.2"), calls(f"{tower}.encoder.layers.3"), calls(f"{tower}.head")
    audio = calls("model.embed_tokens_extend.audio_embed")
    extract(model, answers=False)
    assert sum(shape[0] for shape in used) == 2 * len(SAMPLES)
    assert last == head == audio == []


def test_a_shared_image_is_encoded_once(model, calls):
    used = calls("model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0")
    image = CASES[0].image
    model.extract_many([(image, "one"), (image, "two"), (image, "three")], answers=False)
    assert sum(shape[0] for shape in used) == 2


def test_kept_states_hold_no_more_than_their_own_rows(model):
    """A row of a batch that kept a view would keep the whole sequence alive."""
    for record in extract(model, layers="all", answers=False):
        for vector in record.vectors.values():
            base = vector if vector.base is None else vector.base
            assert base.nbytes <= len(SAMPLES) * vector.nbytes


def test_hooks_are_gone_afterwards(model):
    extract(model, answers=False)
    assert all(not module._forward_hooks for module in model.loaded.hf_model.modules())
