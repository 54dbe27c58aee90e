"""The rules of a GPU, on a machine without one: no operation mixes devices, and a decode step waits for it once."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from midsight import load
from midsight.check.full_forward import relative_error
from midsight.checkpoints.generation import AnswerSettings
from midsight.extraction import prefill
from midsight.extraction.calls import plan_whole
from midsight.extraction.extract_call import extract_call
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.records import Record
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from support.fake_device import DEVICE, fake_device
from support.parity import answer_ids, extract_records
from support.pictures import CASES

REQUEST = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=8)
LIMIT = 3e-6
PLAIN = AnswerSettings()
SAMPLES = [
    Sample(f"{image}-{question}", 2 * image + question, (CASES[case].image,), text)
    for image, case in enumerate((0, 8))
    for question, text in enumerate(("What is this?", "How many red things are there in it?"))
]


def requested(model, share, settings):
    """A request in which a token ends the first answer early, if it is not in all others too."""
    request = replace(resolve(REQUEST, model.loaded), share=share, answer_settings=settings)
    first, *others = [answer_ids(record) for record in extract_records(model, request, SAMPLES)]
    stops = [token_id for token_id in first[1:4] if any(token_id not in other for other in others)]
    return replace(request, answer_settings=replace(settings, stop_ids=tuple(stops[:1])))


def on_device(model, request):
    """The records of one call on the stand-in, and how often it had been waited for before each decode step."""
    items = [item for item in prepare(model.loaded, request, SAMPLES) if isinstance(item, PreparedSample)]
    (call,) = plan_whole(items, request)
    assert call.shares_prefixes == request.share
    waited: list[int] = []
    with fake_device() as synchronisations, torch.no_grad():  # inference mode takes no tensors made outside
        hf_model = copy.deepcopy(model.loaded.hf_model).to("cuda")
        moved = replace(model.loaded, hf_model=hf_model, device=DEVICE)
        decoder = hf_model.get_submodule(model.loaded.family.modules.decoder)
        decoder.register_forward_pre_hook(lambda *_: waited.append(synchronisations.count))
        outcomes = extract_call.__wrapped__(moved, request, call)  # pyright: ignore[reportFunctionMemberAccess]
    return {outcome.sample_id: outcome for outcome in outcomes}, waited[1 + request.share :]


def assert_rules_and_numbers(model, share, settings=PLAIN):
    request = requested(model, share, settings)
    records, waited = on_device(model, request)
    with sdpa_kernel(SDPBackend.MATH):  # as on the stand-in: kernels differ by 4e-6 on processors without AVX-512
        expected = extract_records(model, request, SAMPLES)
    for one in expected:
        record = records[one.sample_id]
        assert isinstance(record, Record), record.reason
        assert record.answer_token_ids == one.answer_token_ids
        for name, vector in one.vectors.items():
            assert relative_error(record.vectors[name], vector) <= LIMIT, name
    steps = max(len(answer_ids(one)) for one in expected)
    assert len(waited) == steps - 1 >= 3, "the last token is not fed to the decoder"
    assert {later - earlier for earlier, later in pairwise(waited)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, False])
def test_every_family_keeps_its_numbers_and_a_decode_step_waits_for_the_device_once(model, family, share):
    if share and not family.shares_prefix:
        pytest.skip("it shares no prefix")
    assert_rules_and_numbers(model, share)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
def test_so_does_a_lora_beside_the_weights(folder):
    assert_rules_and_numbers(load(folder, device="cpu", lora="unmerged"), share=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl"], indirect=True)
def test_so_does_the_penalty_in_the_published_generation_config(model):
    assert_rules_and_numbers(model, share=True, settings=AnswerSettings({"repetition_penalty": 1.05}))


@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
def test_tensors_left_on_the_host_are_refused(model, monkeypatch):
    pad_rows = prefill.pad_rows

    def on_host(*args, **options):
        return pad_rows(*args, **{**options, "device": torch.device("cpu")})

    monkeypatch.setattr("midsight.extraction.extract_call.pad_rows", on_host)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        on_device(model, replace(resolve(REQUEST, model.loaded), share=False))


def test_the_stand_in_refuses_what_cuda_refuses_and_counts():
    with fake_device() as synchronisations:
        here, there = torch.ones(3), torch.arange(3.0, device="cpu").to("cuda")
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(here, there)
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            there.numpy()
        assert ((there + there.sum()).device, synchronisations.count) == (DEVICE, 0)
        assert (there.cpu() + here).tolist() == [1, 2, 3]
        assert synchronisations.count == 1
        assert there.sum().item() == 3
        assert bool((there < 1).any())
        assert there[there > 0].tolist() == [1, 2]
        assert synchronisations.count == 5
