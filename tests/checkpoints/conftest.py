import pytest

from support.folders import copy_folder, write_native, write_published
from support.once import checkpoint_of_the_run, once

FORMATS = ("transformers", "published phi4mm")


@pytest.fixture(scope="session")
def folders(run_folder):
    """One small checkpoint in both formats, by format; tests break copies."""
    native = checkpoint_of_the_run(run_folder, write_native)
    published = once(run_folder / "checkpoints" / "published", lambda folder: write_published(folder, native))
    return {"transformers": native, "published phi4mm": published}


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
