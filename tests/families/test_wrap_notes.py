"""What `wrap` says about the model that it got: adapters that are on, and a LoRA for images that is missing."""

import json
from typing import Any

import peft
import pytest
import torch
from transformers import AutoProcessor

import midsight
from support.pictures import CASES

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LORA: Any = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
MISSING = "has no adapter for images that is on"


@pytest.fixture
def hf_model(family, folder) -> Any:
    return family.model.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
class TestNames:
    """Adapters that are on, by name."""

    def test_none(self, hf_model, processor):
        loaded = midsight.wrap(hf_model, processor).loaded
        assert loaded.adapters == ()
        assert not [note for note in loaded.notes if "dapter" in note]

    @pytest.mark.slow
    def test_those_of_a_peft_model_that_are_on(self, hf_model, processor, tmp_path):
        tuned: Any = peft.get_peft_model(hf_model, peft.LoraConfig(**LORA), adapter_name="medical")
        tuned.add_adapter("unused", peft.LoraConfig(**LORA))
        model = midsight.wrap(tuned, processor)
        assert model.loaded.adapters == ("medical",)
        assert "Adapters of the model that are on: medical." in model.loaded.notes
        midsight.extract([(CASES[0].image, "What?")], model=model, out=tmp_path / "run", layers=[0], answers=False)
        stored = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
        assert stored["adapters"] == ["medical"]
        assert "Adapters of the model that are on: medical." in stored["notes"]

    def test_none_while_they_are_off(self, hf_model, processor):
        tuned: Any = peft.get_peft_model(hf_model, peft.LoraConfig(**LORA))
        with tuned.disable_adapter():
            assert midsight.wrap(tuned, processor).loaded.adapters == ()
        assert midsight.wrap(tuned, processor).loaded.adapters == ("default",)

    def test_those_of_transformers_own_integration(self, hf_model, processor):
        try:
            hf_model.add_adapter(peft.LoraConfig(**LORA), adapter_name="medical")
        except ImportError as error:
            pytest.skip(f"transformers does not take this PEFT: {error}")
        assert midsight.wrap(hf_model, processor).loaded.adapters == ("medical",)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
class TestLoraForImages:
    """Phi-4 needs its LoRA, and the note of `load` says so."""

    def wrapped(self, folder, hf_model, processor, *on):
        for one in ("vision", "speech"):
            config = peft.PeftConfig.from_pretrained(str(folder / "vision-lora"))
            peft.inject_adapter_in_model(config, hf_model, adapter_name=one)
        for module in hf_model.modules():
            if hasattr(module, "set_adapter") and hasattr(module, "lora_A"):
                module.set_adapter(list(on))
        return midsight.wrap(hf_model, processor).loaded

    def test_without_it(self, hf_model, processor):
        loaded = midsight.wrap(hf_model, processor).loaded
        (note,) = [note for note in loaded.notes if MISSING in note]
        assert note.endswith("and gives another model's numbers if the LoRA is missing.")

    def test_with_it(self, folder, hf_model, processor):
        loaded = self.wrapped(folder, hf_model, processor, "vision")
        assert loaded.adapters == ("vision",)
        assert not [note for note in loaded.notes if MISSING in note]

    def test_with_that_for_speech_alone(self, folder, hf_model, processor):
        loaded = self.wrapped(folder, hf_model, processor, "speech")
        assert loaded.adapters == ("speech",)
        assert [note for note in loaded.notes if MISSING in note]
