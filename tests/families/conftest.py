"""The small checkpoint of each family, loaded as users load it, and transformers' own procedure on it."""

import pytest

from midsight import load
from support.family_reference import FAMILIES
from support.once import checkpoint_of_the_run

QUICK = ("phi4_multimodal", "mllama", "qwen2_5_vl")
"""Families that `make test-quick` has; `make test` has all."""
NEVER_QUICK = (
    "aya_vision",
    "qwen3_vl_moe",
    "glm4v_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3n",
    "gemma4",
    "mistral3",
    "pixtral",
    "llama4",
    "deepseek_vl_hybrid",
    "paligemma",
)
"""Families that it does not have in tests of some families either."""


def params_of(item):
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def pads_a_state_on_the_right(item):
    """Which midsight refuses; test_padding_after_a_prompt_is_refused shows it."""
    params = params_of(item)
    return params.get("padding_side") == "right" and "name" in params and FAMILIES[params["name"]].keeps_state


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Before pytest leaves out what is slow."""
    items[:] = [item for item in items if not pads_a_state_on_the_right(item)]
    for item in items:
        name = params_of(item).get("name")
        if name in NEVER_QUICK:
            item.add_marker(pytest.mark.slow)
        if name == "paligemma":  # its processor makes labels, with a copy that numpy will not make any more
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"))


@pytest.fixture(
    scope="package",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def name(request):
    return request.param


@pytest.fixture(scope="package")
def family(name):
    return FAMILIES[name]


@pytest.fixture(scope="package")
def folder(family, run_folder):
    return checkpoint_of_the_run(run_folder, family.write)


@pytest.fixture(scope="package")
def model(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="package")
def reference(family, folder):
    return family.reference(folder, family, keep=True)
