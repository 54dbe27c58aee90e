"""Phi-4 as Microsoft's fine-tuning script saves it: no audio tower, no speech LoRA, fields of transformers 4."""

import pytest
from safetensors.torch import save_file

import midsight
from midsight.check.facts import read_facts
from support.folders import INDEX, edit_json, load_all, refuse, said_by
from support.pictures import picture
from support.reference import relative_error

IMAGE = picture((300, 200), 1)


def save_as_the_script_does(folder, keep=lambda name: ".audio_embed." not in name and ".speech." not in name):
    """One file without the tensors of sound."""
    tensors = {name: tensor for name, tensor in load_all(folder).items() if keep(name)}
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink(missing_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def tuned(folder, folder_format):
    save_as_the_script_does(folder)
    if folder_format == "published phi4mm":
        saved = {"_attn_implementation_autoset": True, "use_cache": False, "transformers_version": "4.48.2"}
        edit_json(folder / "config.json", lambda config: config.update(saved))
    return folder


def vectors(folder):
    return midsight.load(folder, device="cpu").extract(IMAGE, "What is this?", layers="all", answers=False).vectors


def test_its_numbers_are_those_of_the_whole_folder(tuned, folders, folder_format):
    ours, whole = vectors(tuned), vectors(folders[folder_format])
    assert max(relative_error(ours[name], vector) for name, vector in whole.items()) == 0


def test_check_takes_it_and_says_which_parts_it_has(tuned):
    assert not {"audio", "speech LoRA"} & set(read_facts(tuned).parameters)


def test_audio_is_refused_in_one_sentence(tuned):
    said = said_by(midsight.load, tuned, device="cpu", audio=True)
    assert said is not None
    assert said.endswith("has no audio tower; leave audio out.")


def test_half_of_the_sound_is_a_damaged_folder(folder, folder_format):
    """`check` and `load` agree."""
    lost = {"transformers": "up_proj_for_speech.weight", "published phi4mm": "audio_projection.speech.0.weight"}
    save_as_the_script_does(folder, keep=lambda name: not name.endswith(lost[folder_format]))
    refuse(folder, "up_proj_for_speech.weight")


def test_a_field_that_says_nothing_about_numbers_is_a_note(published):
    edit_json(published / "config.json", lambda config: config.update(_attn_implementation_autoset=True))
    (note,) = midsight.load(published, device="cpu").loaded.notes
    assert "_attn_implementation_autoset" in note
    assert read_facts(published).notes == (note,)


def test_a_field_that_could_say_something_is_an_error(published):
    edit_json(published / "config.json", lambda config: config.update(rope_scale_2=4.0))
    refuse(published, "rope_scale_2")


def test_the_name_of_the_dtype_in_newer_versions(published):
    edit_json(published / "config.json", lambda config: config.update(dtype=config.pop("torch_dtype")))
    assert midsight.load(published, device="cpu", dtype="auto").loaded.notes == ()
