"""Free memory is that of the tightest container or job around this process, whoever asks."""

import pytest

from midsight import memory
from midsight.check.facts import free_bytes
from midsight.memory import free_memory


@pytest.fixture
def group(monkeypatch, tmp_path):
    """Writes the files of a group, at a path below the root of all groups; /job/step is this process's own."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("5:cpu,cpuacct:/elsewhere\n4:memory:/job/step\n0::/job/step\n")

    def write(path, **files):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (tmp_path / path / name.replace("_", ".", 1)).write_text(f"{content}\n")

    return write


def test_without_a_limit_it_is_the_machines(group):
    group("", memory_current=1_000, memory_max="max")
    group("elsewhere", memory_current=1_000, memory_max=2_000)
    assert free_memory() > 2**20


@pytest.mark.parametrize("path", ["", "job", "job/step"])
def test_a_limit_of_any_group_around_the_process_counts(group, path):
    group(path, memory_current=1_000, memory_max=5_000)
    assert free_memory() == 4_000
    assert free_bytes()["cpu"] == 4_000
    group(path, memory_stat="anon 900\ninactive_file 100")
    assert free_memory() == 4_100


def test_groups_of_the_first_version_count_too(group):
    group("memory/job/step", memory_limit_in_bytes=5_000, memory_usage_in_bytes=6_000)
    assert free_memory() == 0
