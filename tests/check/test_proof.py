"""`midsight check --run`: the proof on the user's machine, and that it can fail."""

import dataclasses
import json
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from midsight import load
from midsight.check import proof
from midsight.check.check import Check
from midsight.check.facts import read_facts
from midsight.check.family_checks import check_family
from midsight.check.terminal import as_plain_data, render_proof
from midsight.cli import app
from midsight.commands.check import show_section
from midsight.samples.sample import Sample
from midsight.testing import write_published_phi4mm
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.folders import copy_folder, edit_json, edit_tensors
from support.once import checkpoint_of_the_run
from support.pictures import picture

PROVED = (
    "vision_token at every layer and transformers' full forward",
    "query_token at every layer and transformers' full forward",
    "vision features and transformers' tower",
    "one batch, padded left, and each sample alone",
    "one batch in reverse order, padded right, and each alone",
    "a question on the image's prefix and the whole prompt at once",
    "sdpa and eager attention",
    "answers that differ from transformers' generate",
    "prompts whose token ids differ from the processor's own",
    "LoRA off and on",
    "layers with LoRA and W x + alpha / rank B A x from the files",
    "stop ids that differ from those of the folder's generation config",
    "pixels, resized by transformers, and the processor's own",
    "log-probabilities of answers and those of generate's logits",
    "entropy and ten likeliest first tokens, and those of generate's logits",
    "questions on two images of one size in one call: states and transformers' full forward",
    "questions on two images of one size in one call: answers that differ from transformers' generate",
    "two images in one sample, in either order: states and transformers' full forward",
    "prompts on both sides of a longrope threshold set low: answers that differ from transformers' generate",
)


SMALL_SAMPLES = [Sample(str(i), i, (picture((64, 64), i),), "What is it? " * 4) for i in range(2)]


def check_run(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments), "--run", "--device", "cpu"])


@pytest.fixture(scope="module")
def small(run_folder):
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal, layers=2, vision_heads=16)


@pytest.fixture
def two_small_images(monkeypatch):
    samples = tuple(Sample(str(i), i, (picture((64, 64 + i), i),), "What is it? " * (i + 1)) for i in range(2))
    monkeypatch.setattr(proof, "shipped_samples", lambda: samples)
    monkeypatch.setattr(proof, "SECTIONS", ("declarations", "states", "answers", "LoRA"))


def test_shipped_images_fill_their_crops_and_do_not(model):
    from midsight.extraction.prepare import PreparedSample, prepare
    from midsight.extraction.request import Request, resolve

    prepared = prepare(model.loaded, resolve(Request(), model.loaded), proof.shipped_samples())
    images = [image for item in prepared if isinstance(item, PreparedSample) for image in item.images]
    assert [bool(image.patch_mask.all()) for image in images] == [False, True, False]
    assert len({image.grid for image in images}) > 1


@pytest.fixture(scope="module")
def demo(checkpoint, tmp_path_factory):
    """The demo checkpoint, eight layers, in both formats."""
    published = write_published_phi4mm(tmp_path_factory.mktemp("demo") / "published")
    return {"transformers": checkpoint, "published phi4mm": published}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder_format", "dtype", "lora"),
    [
        ("transformers", "float32", "merged"),
        ("published phi4mm", "float32", "merged"),
        ("published phi4mm", "bfloat16", "unmerged"),
    ],
)
def test_the_demo_checkpoint_keeps_every_limit_in_both_formats(demo, folder_format, dtype, lora):
    done = check_run(demo[folder_format], "--dtype", dtype, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["model"]["format"] == folder_format
    loaded = told["loaded"]
    assert loaded.pop("fixes")[0].endswith("(transformers marks it causal)")
    assert loaded.pop("prompt") == "<|user|><|endoftext10|>What is in the image?<|end|><|assistant|>"
    assert loaded == {"dtype": dtype, "device": "cpu", "attention": "sdpa", "lora": lora, "notes": [proof.PIXELS]}
    checks = {check["name"]: check for check in told["checks"]}
    assert [check for check in checks.values() if not check["passed"]] == []
    assert set(PROVED) <= set(checks)
    assert checks["LoRA off and on"]["must_differ"]
    assert checks["LoRA off and on"]["figure"] > 0.01
    assert checks["sdpa and eager attention"]["figure"] > 0


def test_how_the_model_was_loaded_stands_above_the_figures():
    notes, fixes = ("The weights need room.",), ("The tower was fixed.",)
    made_up = proof.Proof(
        "bfloat16", "cuda:1", "sdpa", "unmerged", "<user>\nWhat?", fixes, notes, (Check("one", 0.0, 1.0),)
    )
    console = Console(width=100)
    with console.capture() as shown:
        console.print(render_proof(made_up))
    first, *others = shown.get().splitlines()
    assert first == "Loaded in bfloat16 on cuda:1, attention sdpa, LoRA unmerged."
    assert others[:3] == [*notes, *fixes, r"Prompt: '<user>\nWhat?'."]
    assert others[-1] == "The limit is kept."


def test_a_section_is_shown_before_it_is_measured():
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured, show_section(console) as on_section:
        on_section("states [1]")
    assert captured.get() == "Measuring: states [1]\n"
    console = Console(width=80, force_terminal=True)
    with console.capture() as captured, show_section(console) as on_section:
        on_section("states")
    assert "Measuring: states" in captured.get()


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_missed_and_null(small, figure):
    checks = (Check("one", 0.0, 1.0), Check("two", figure, 1.0))
    made_up = proof.Proof("float32", "cpu", "sdpa", "off", "", (), (), checks)
    told = json.dumps(as_plain_data(read_facts(small), made_up), allow_nan=False)
    assert [(check["figure"], check["passed"]) for check in json.loads(told)["checks"]] == [(0.0, True), (None, False)]
    assert not made_up.passed


@pytest.mark.slow
def test_the_model_without_its_lora_has_the_dtype_of_the_one_with_it(small, two_small_images, monkeypatch):
    """With less memory free than at the first load, `auto` would choose another."""
    free, dtypes = iter([10**12]), []
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=next(free, 10)))

    def remember(*args, **options):
        model = load(*args, **options)
        dtypes.append((model.loaded.lora, model.loaded.dtype))
        return model

    monkeypatch.setattr(proof, "load", remember)
    sections = []
    assert proof.prove(small, device="cpu", on_section=sections.append).passed
    assert sections == ["loading the model", "full forwards", *proof.SECTIONS, "LoRA off and on"]
    assert dtypes == [("merged", torch.float32), ("off", torch.float32)]


@pytest.mark.slow
def test_a_model_over_main_memory_and_disk(small, two_small_images, monkeypatch):
    """Both models that are loaded, the second when the first has left memory."""
    loaded = []

    def remember(*args, **options):
        assert [one() for one in loaded] == [None] * len(loaded)
        model = load(*args, **options)
        loaded.append(weakref.ref(model.loaded.hf_model))
        assert any(parameter.is_meta for parameter in model.loaded.hf_model.parameters())
        return model

    monkeypatch.setattr(proof, "load", remember)
    found = proof.prove(small, device="cpu", lora="merged", device_map={1: "disk"})
    assert [check for check in found.checks if not check.passed] == []
    assert "LoRA off and on" in {check.name for check in found.checks}
    assert "cpu (0) and disk (1)" in " ".join(found.notes)
    assert len(loaded) == 2


@pytest.mark.slow
def test_the_command_takes_a_device_map(small, two_small_images):
    done = check_run(small, "--device-map", "auto")
    assert done.exit_code == 0
    assert "Decoder layers are on cpu" in " ".join(done.output.split())
    assert "--device-map" in " ".join(check_run(small, "--device-map", "balanced").output.split())


@pytest.mark.parametrize(
    "option", [("--dtype", "bfloat16"), ("--device", "cpu"), ("--lora", "off"), ("--device-map", "auto")]
)
def test_options_of_the_proof_are_refused_without_it(small, option):
    done = CliRunner().invoke(app, ["check", str(small), *option])
    assert done.exit_code == 2
    assert f"{' '.join(option)} goes with --run" in done.output.replace("\n", " ")
    assert "OK" not in done.output


def test_a_folder_that_asks_for_beams_and_penalties_is_compared_with_its_penalties_alone(small, tmp_path):
    other = copy_folder(small, tmp_path / "beams")
    asked = {"num_beams": 3, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "top_k": 3}
    edit_json(other / "generation_config.json", lambda config: config.update(asked))
    model = load(other, device="cpu")
    checks = {check.name: check for check in check_family(model, SMALL_SAMPLES, max_new_tokens=6, sections=["answers"])}
    assert checks["answers that differ from transformers' generate"].passed
    assert model.loaded.hf_model.generation_config.num_beams == 3


def test_a_missed_limit_exits_with_1_and_is_shown(small, two_small_images, monkeypatch):
    monkeypatch.setattr(proof, "LIMITS", {torch.float32: 1e-12})
    done = check_run(small, "--lora", "off")
    assert done.exit_code == 1
    assert "Loaded in float32 on cpu, attention sdpa, LoRA off." in done.output
    assert "MISSED" in done.output
    assert "limits missed" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_a_lora_without_effect_is_caught(small, two_small_images, tmp_path, lora):
    idle = copy_folder(small, tmp_path / "idle")
    edit_tensors(
        idle / "vision-lora" / "adapter_model.safetensors",
        lambda tensors: [tensor.zero_() for name, tensor in tensors.items() if "lora_B" in name],
    )
    missed = {check.name for check in proof.prove(idle, device="cpu", lora=lora).checks if not check.passed}
    assert missed == {"LoRA off and on"}


def test_a_sample_that_fails_is_one_sentence(small, two_small_images, monkeypatch):
    samples = (Sample("blank", 0, (picture((2000, 1), 0),), "What?"),)
    monkeypatch.setattr(proof, "shipped_samples", lambda: samples)
    done = check_run(small)
    assert done.exit_code == 2
    assert "blank" in done.output
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def crossing(tmp_path_factory):
    """The image's prefix is below the threshold and the whole prompt above it, so they use other rotary factors."""
    folder = tmp_path_factory.mktemp("threshold") / "model"
    return write_phi4_multimodal(folder, layers=2, original_max_position_embeddings=550)


PREFIX = "a question on the image's prefix and the whole prompt at once"


def test_a_prefix_with_other_rotary_factors_is_caught(crossing):
    model = load(crossing, device="cpu")
    decoder = dataclasses.replace(model.loaded.family.decoder, longrope_threshold=lambda config: None)
    family = dataclasses.replace(model.loaded.family, decoder=decoder)
    careless = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, family=family))
    (found,) = [
        check for check in check_family(careless, SMALL_SAMPLES, sections=["continued prefix"]) if check.name == PREFIX
    ]
    assert not found.passed


def test_a_prefix_with_other_rotary_factors_is_not_measured(crossing):
    checks = check_family(load(crossing, device="cpu"), SMALL_SAMPLES, sections=["states", "continued prefix"])
    assert PREFIX not in {check.name for check in checks}
    assert all(check.passed for check in checks)


@pytest.mark.slow
def test_a_proof_goes_on_if_nothing_can_be_extracted(small, two_small_images, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr("midsight.extraction.extract_call.prefill", broken)
    found = proof.prove(small, device="cpu", lora="merged")
    assert any("no kernel for this" in check.error for check in found.checks)
    assert any(check.name.startswith("layers with LoRA") and check.passed for check in found.checks)
