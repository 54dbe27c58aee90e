"""Pixtral is LLaVA's class with another encoder, which alone decides that it is not LLaVA 1.5."""

import pytest

from midsight import load, wrap
from midsight.check.facts import read_facts
from midsight.comparison.rows import describe_model
from midsight.declaring.folder import read_model
from midsight.testing import write_llava
from support.folders import assert_sentence, copy_folder, edit_json, said_by

pytestmark = pytest.mark.parametrize("name", ["pixtral"], indirect=True)


def families_of(folder, model):
    """The family's name, as every way to a model finds it."""
    wrapped = wrap(model.loaded.hf_model, model.loaded.processor)
    return (
        model.loaded.family.name,
        wrapped.loaded.family.name,
        read_facts(folder).family,
        describe_model(str(folder)).family,
    )


def test_the_encoder_decides_the_family_everywhere(folder, model, tmp_path):
    assert families_of(folder, model) == ("Pixtral",) * 4
    assert "is of the family Pixtral, which midsight knows" in (said_by(read_model, folder) or "")
    other = write_llava(tmp_path / "llava", layers=2)
    assert families_of(other, load(other, device="cpu")) == ("LLaVA 1.5",) * 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"vision_feature_select_strategy": "default"}, "selection default"),
        ({"vision_feature_layer": -2}, "feature layer -2"),
    ],
)
def test_a_config_that_takes_other_features_is_refused(folder, tmp_path, changed, named):
    other = copy_folder(folder, tmp_path / "model")
    edit_json(other / "config.json", lambda config: config.update(changed))
    said = said_by(load, other, device="cpu")
    assert said is not None
    assert_sentence(said)
    assert named in said
