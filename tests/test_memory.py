"""Free memory is that of the tightest container or job around this process, whoever asks."""

import re
from pathlib import Path

import pytest
import torch

import midsight
from midsight import memory
from midsight.check import facts
from midsight.check.facts import free_bytes
from midsight.checkpoints import device_map, loading
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.extraction import budget, job
from midsight.memory import free_memory
from midsight.probes import study
from support.pictures import picture


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


def test_a_group_of_the_first_version_may_have_several_controllers(group, tmp_path):
    (tmp_path / "own").write_text("4:cpu,memory:/batch\n")
    group("memory/batch", memory_limit_in_bytes=5_000, memory_usage_in_bytes=1_000, memory_stat="total_inactive_file 7")
    assert free_memory() == 4_007


def test_the_tightest_of_nested_groups_counts(group):
    group("", memory_current=9_000, memory_max=20_000)
    group("job", memory_current=7_000, memory_max=8_000)
    group("job/step", memory_current=1_000, memory_max=5_000)
    assert free_memory() == 1_000
    group("job/step", memory_high=1_500)
    assert free_memory() == 500


def test_a_container_sees_its_own_group_as_the_root(group, tmp_path):
    """Version 2 says so; version 1 gives the path on the host, which the container does not see."""
    for own, folder, names in (
        ("0::/\n", "", ("memory_max", "memory_current")),
        ("4:memory:/docker/f00\n", "memory", ("memory_limit_in_bytes", "memory_usage_in_bytes")),
    ):
        (tmp_path / "own").write_text(own)
        group(folder, **dict(zip(names, (5_000, 2_000), strict=True)))
        assert free_memory() == 3_000


def test_whoever_asks_for_free_memory_asks_the_one_function():
    """All modules but one take it from there; only CUDA's own memory is another question."""
    source = Path(memory.__file__).parent
    asking = re.compile(r"virtual_memory|swap_memory|/proc/meminfo|sysconf|sys/fs/cgroup|getrusage|memory_info")
    found = {file.relative_to(source).as_posix() for file in source.rglob("*.py") if asking.search(file.read_text())}
    assert found == {"memory.py"}
    users = (budget, device_map, facts, loading, study)
    assert all(module.free_memory is free_memory for module in users)
    importing = [file for file in source.rglob("*.py") if "import free_memory" in file.read_text()]
    assert {Path(str(module.__file__)) for module in users} <= {*importing}


def test_the_dtype_and_the_size_of_calls_follow_the_containers_limit(group, checkpoint):
    opened = open_checkpoint(checkpoint)
    needed = 4 * loading.loaded_parameters(opened, "merged")
    cpu = torch.device("cpu")
    group("", memory_current=0, memory_max=2 * needed)
    assert loading.choose_dtype("auto", cpu, opened) == (torch.float32, ())
    assert budget.make_budget("auto", cpu).free_bytes == budget.MEMORY_SHARE["cpu"] * 2 * needed
    group("", memory_current=needed)
    assert "are free" in loading.choose_dtype("auto", cpu, opened)[1][0]


def test_calls_are_sized_by_what_the_weights_leave_free(checkpoint, tmp_path, monkeypatch):
    """Before they are loaded, more is free."""
    (tmp_path / "data.jsonl").write_text('{"image": "a.png", "question": "What is this?"}\n')
    picture((64, 64), 0).save(tmp_path / "a.png")
    loaded, asked = [], []
    monkeypatch.setattr(job, "add_weights", lambda model: (loaded.append(1), loading.add_weights(model))[1])
    monkeypatch.setattr(budget, "free_memory", lambda: (asked.append(len(loaded)), free_memory())[1])
    midsight.extract(tmp_path / "data.jsonl", model=checkpoint, out=tmp_path / "run", layers=[0], max_new_tokens=1)
    assert asked == [1]
