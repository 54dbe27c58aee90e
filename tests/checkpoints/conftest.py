import pytest

from support.folders import copy_folder, write_native, write_published

FORMATS = ("transformers", "published phi4mm")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One small checkpoint in both formats, by format; tests break copies."""
    folder = tmp_path_factory.mktemp("formats")
    native = write_native(folder / "native")
    return {"transformers": native, "published phi4mm": write_published(folder / "published", native)}


@pytest.fixture(params=FORMATS)
def folder_format(request):
    return request.param


@pytest.fixture
def folder(folders, folder_format, tmp_path):
    """A copy to break, of each format in turn."""
    return copy_folder(folders[folder_format], tmp_path / "model")


@pytest.fixture
def native(folders, tmp_path):
    """A copy to break, in transformers' format."""
    return copy_folder(folders["transformers"], tmp_path / "native")


@pytest.fixture
def published(folders, tmp_path):
    """A copy to break, in the published format."""
    return copy_folder(folders["published phi4mm"], tmp_path / "published")
