"""The tests of Gemma 3n fail for each mistake that layers with four streams invite, and what their states are."""

from functools import partial

import pytest
import torch

from midsight import load
from midsight.extraction.request import resolve
from midsight.families import gemma3n
from midsight.families.family import logits_of_head
from midsight.families.inputs import DecoderInputs, insert_image_embeddings
from midsight.samples.sample import Sample
from support import damages
from support.damages import EVERYTHING, compare_cases, failing
from support.folders import assert_sentence, copy_folder, edit_json, said_by
from support.parity import LIMIT, extract_records, rgb
from support.pictures import CASES
from support.reference import relative_error

pytestmark = pytest.mark.parametrize("name", ["gemma3n"], indirect=True)


@pytest.fixture
def declaring(model):
    """The model with some of its family's declarations replaced."""
    return partial(damages.declaring, model)


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model):
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)

    return run


@torch.inference_mode()
def test_a_layers_state_is_the_active_stream_of_hidden_states(model, reference):
    """transformers gives four streams for each layer; the last layer's are before they are joined and normed."""
    case = CASES[0]
    (record,) = extract_records(
        model, resolve(EVERYTHING, model.loaded), [Sample("s", 0, (case.image,), case.question)]
    )
    output = reference.model(
        **reference.inputs([rgb(case.image)], case.question), output_hidden_states=True, return_dict=True
    )
    states, last = output.hidden_states, model.loaded.n_layers - 1
    assert [tuple(one.shape[:2]) for one in states] == [(4, 1)] * (last + 2)
    wanted = {f"layer_{layer}": states[layer + 1][0, 0, -1] for layer in range(last)}
    wanted[f"layer_{last}_residual"] = states[-1][0, 0, -1]
    for name, state in wanted.items():
        assert relative_error(record.vectors[f"query_token_representation.{name}"], state.numpy()) <= LIMIT
    head = reference.model.lm_head(torch.from_numpy(record.vectors[f"query_token_representation.layer_{last}"]))
    assert relative_error((head / 30).tanh().numpy() * 30, output.logits[0, -1].numpy()) <= LIMIT


@pytest.mark.parametrize("read", [lambda _, output: output[1], lambda _, output: output.mean(dim=0)])
def test_another_stream_or_their_mean(is_off_by, declaring, read):
    is_off_by(declaring(layer_state=read))


def test_the_end_of_an_image_from_the_table_of_words(is_off_by, declaring):
    def from_table(hf_model, token_ids, layouts, images):
        inputs = insert_image_embeddings(hf_model, token_ids, layouts, images)
        own = hf_model.model.language_model.get_per_layer_inputs(token_ids)
        return DecoderInputs({**inputs.prefill, "per_layer_inputs": own}, inputs.later)

    is_off_by(declaring(inputs=from_table))


def test_the_end_of_an_image_behind_the_prefix(declaring):
    assert failing(declaring(image_marks=lambda _: ()), "continued prefix") >= {
        "a question on the image's prefix and the whole prompt at once"
    }


def test_layers_without_embeddings_of_their_own(is_off_by, declaring):
    def without(*args):
        inputs = gemma3n.decoder_inputs(*args)
        return DecoderInputs({"inputs_embeds": inputs.prefill["inputs_embeds"]}, inputs.later)

    is_off_by(declaring(inputs=without))


@pytest.mark.parametrize(
    "changed",
    [{"architecture": "resnet18"}, {"model_args": {"checkpoint_path": "model.safetensors"}}],
)
def test_an_encoder_that_could_load_other_weights_is_refused(folder, tmp_path, changed):
    other = copy_folder(folder, tmp_path / "model")
    edit_json(other / "config.json", lambda config: config["vision_config"].update(changed))
    said = said_by(load, other)
    assert said is not None
    assert_sentence(said)
    assert "midsight knows Gemma 3n with gemma3n_vision mobilenetv5_300m_enc" in said


def test_logits_that_are_not_capped(declaring):
    assert "log-probabilities of answers and those of generate's logits" in failing(
        declaring(adjust_logits=logits_of_head), "answers"
    )
