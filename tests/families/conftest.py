"""The small checkpoint of each family, loaded as users load it, and transformers' own procedure on it."""

import pytest

from midsight import load
from support.family_reference import FAMILIES
from support.once import checkpoint_of_the_run

QUICK = ("phi4_multimodal", "mllama", "qwen2_5_vl")
"""Families that `make test-quick` has; `make test` has all."""
NEVER_QUICK = ("aya_vision", "qwen3_vl_moe", "mistral3", "pixtral", "llama4", "deepseek_vl_hybrid", "paligemma")
"""Families that it does not have in tests of some families either."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Before pytest leaves out what is slow."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("name") if callspec else None
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
