import pytest

from folders import copy_folder, write_native, write_published

LAYOUTS = ("transformers", "published phi4mm")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One small checkpoint in both layouts, by layout; tests break copies."""
    folder = tmp_path_factory.mktemp("layouts")
    native = write_native(folder / "native")
    return {"transformers": native, "published phi4mm": write_published(folder / "published", native)}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def folder(folders, layout, tmp_path):
    """A copy to break, of each layout in turn."""
    return copy_folder(folders[layout], tmp_path / "model")


@pytest.fixture
def native(folders, tmp_path):
    """A copy to break, in transformers' layout."""
    return copy_folder(folders["transformers"], tmp_path / "native")


@pytest.fixture
def published(folders, tmp_path):
    """A copy to break, in the published layout."""
    return copy_folder(folders["published phi4mm"], tmp_path / "published")
