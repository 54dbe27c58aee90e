import pytest

from midsight.testing.phi4_multimodal import write_phi4_multimodal


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of the demo checkpoint, longrope threshold 4096 as published."""
    return write_phi4_multimodal(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def model(checkpoint):
    """The demo checkpoint, loaded as users load it."""
    from midsight import load

    return load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def reference(checkpoint):
    """transformers' own procedure on the same folder, its vision tower fixed."""
    from support.reference import Reference

    return Reference(checkpoint)
