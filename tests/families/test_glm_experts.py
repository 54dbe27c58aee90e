"""GLM-4.5V's mixture of experts: transformers computes what is published, and the tests see every part of it."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from midsight import load, wrap
from midsight.check.full_forward import largest_error
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Failure
from support.damages import compare_cases
from support.family_reference import FamilyReference
from support.folders import assert_sentence, copy_folder, edit_json, replace_file, said_by
from support.glm_layer import layer_as_published, positions_as_published
from support.parity import LIMIT, rgb, samples_of
from support.pictures import CASES
from support.reference import relative_error

pytestmark = pytest.mark.parametrize("name", ["glm4v_moe"], indirect=True)
ROUTER = "mlp.gate."
BIAS = f"{ROUTER}e_score_correction_bias"


@pytest.mark.parametrize("case", [CASES[3], CASES[4]], ids=lambda case: case.name)
def test_every_layer_is_that_of_the_published_definition(folder, reference, case):
    """The first is dense; the last one's output is taken before the norm."""
    inputs = reference.inputs([rgb(case.image)], case.question)
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    token_ids = inputs["input_ids"][0]
    positions = positions_as_published(token_ids, reference.image_token_id, (rows // 2, columns // 2))
    weights = load_file(folder / "model.safetensors")
    forward = reference.forward(inputs)
    states = [*forward.hidden_states[:-1], forward.last_residual]
    for layer in range(len(states) - 1):
        ours = layer_as_published(weights, layer, torch.from_numpy(states[layer]).double(), positions)
        errors = [relative_error(*pair) for pair in zip(states[layer + 1], ours.numpy(), strict=True)]
        assert max(errors) <= LIMIT, f"layer {layer}"


def routers(model):
    return [layer.mlp.gate for layer in model.loaded.hf_model.model.language_model.layers[1:]]


def test_the_bias_of_the_router_stays_in_float32(folder):
    """Whatever the model's dtype: rounded it would choose other experts."""
    stored = load_file(folder / "model.safetensors")
    for number, router in enumerate(routers(load(folder, device="cpu", dtype="bfloat16")), start=1):
        bias = router.e_score_correction_bias
        assert bias.dtype == torch.float32
        assert torch.equal(bias, stored[f"model.language_model.layers.{number}.{BIAS}"])


def all_alike(experts):
    return experts[:1].expand_as(experts)


def halves_exchanged(experts):
    """The gates of all experts are in the first half, their inputs in the second."""
    return experts.roll(experts.shape[1] // 2, dims=1)


DAMAGES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "a bias rounded to bfloat16": (BIAS, lambda bias: bias.bfloat16().float()),
    "no bias": (BIAS, torch.zeros_like),
    "experts in another order": ("mlp.experts.down_proj", lambda experts: experts.roll(1, dims=0)),
    "experts that are all alike": ("mlp.experts.down_proj", all_alike),
    "gates and inputs of experts exchanged": (
        "mlp.experts.gate_up_proj",
        halves_exchanged,
    ),
    "no shared expert": ("mlp.shared_experts.down_proj.weight", torch.zeros_like),
}
"""What is changed, by the end of a tensor's name in transformers' class, and how."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_of_the_mixture_that_is_wrong(model, reference, damage):
    end, change = DAMAGES[damage]
    state = model.loaded.hf_model.state_dict()
    originals = {name: tensor.clone() for name, tensor in state.items() if name.endswith(end)}
    assert len(originals) == model.loaded.n_layers - 1
    for name, original in originals.items():
        state[name].copy_(change(original))
    try:
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)
    finally:
        for name, original in originals.items():
            state[name].copy_(original)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lora_of_experts_is_refused_and_wrap_takes_it(family, folder, tmp_path):
    """PEFT changes whole tensors then, because transformers joins the experts."""

    def tuned():
        torch.manual_seed(0)
        base = family.model.from_pretrained(folder, dtype=torch.float32)
        targets = ["q_proj", "down_proj"]
        return peft.get_peft_model(base, peft.LoraConfig(target_modules=targets, init_lora_weights=False)).eval()

    model: Any = tuned()
    model.save_pretrained(tmp_path)
    said = said_by(load, tmp_path, device="cpu")
    assert said is not None
    assert_sentence(said)
    assert "is more than a plain LoRA (target_parameters ['down_proj'])" in said
    assert "midsight.wrap" in said
    reference = FamilyReference(folder, family)
    reference.model = tuned().merge_and_unload()
    compare_cases(wrap(model, reference.processor), reference)


def test_thoughts_are_turned_off_by_a_template(folder, model, reference, tmp_path):
    """As the published template does where `enable_thinking` is false, which midsight does not set."""
    template = (folder / "chat_template.jinja").read_text()
    (tmp_path / "silent.jinja").write_text("{%- set enable_thinking = false %}" + template)
    request = Request(prompt_template=str(tmp_path / "silent.jinja"))
    (item,) = prepare(model.loaded, resolve(request, model.loaded), samples_of([CASES[0]]))
    assert not isinstance(item, Failure), item
    content = [{"type": "image"}, {"type": "text", "text": CASES[0].question}]
    silent = reference.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False
    )
    assert item.prompt.text == silent
    assert silent.endswith("/nothink<|assistant|>\n<think></think>\n")


def test_processors_of_glm_4_6v(folder, model, tmp_path):
    """GLM-4.6V has the same class of model, and processors of its own."""
    other = copy_folder(folder, tmp_path / "model")
    path = other / "processor_config.json"
    replace_file(path, path.read_text().replace("Glm4v", "Glm46V").encode())
    edit_json(other / "tokenizer_config.json", lambda config: config.update(processor_class="Glm46VProcessor"))
    loaded = load(other, device="cpu")
    assert type(loaded.loaded.processor).__name__ == "Glm46VProcessor"
    ours, theirs = (m.extract(CASES[3].image, "What is it?", layers="all", max_new_tokens=3) for m in (loaded, model))
    assert largest_error(ours, theirs) == 0
    assert ours.answer_token_ids == theirs.answer_token_ids
