"""Who gets a supervising process."""

import subprocess
import sys

import pytest

from midsight.commands.supervisor import needs_supervisor

ASKED = """
from midsight.commands.supervisor import needs_supervisor

print([needs_supervisor(device) for device in ("cuda", "cpu")])
"""


def test_a_process_that_has_loaded_torch_is_not_forked():
    import torch  # noqa: F401

    assert not needs_supervisor("cuda")


@pytest.mark.slow
def test_the_command_on_a_gpu_has_one():
    asked = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "[True, False]"
