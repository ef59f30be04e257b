"""The allocator keeps what activations free."""

import resource
import subprocess
import sys

import pytest

STEP = """
import resource, torch
from ridgeline.ops.cpu import Cpu
torch.set_num_threads(1)
{prepare}
def step():
    for _ in range(20):
        torch.empty(1 << 20).fill_(1.0)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(prepare: str) -> int:
    shown = subprocess.run(
        [sys.executable, "-c", STEP.format(prepare=prepare)], capture_output=True, text=True, timeout=60
    )
    return int(shown.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_second_step_takes_no_page_faults():
    assert page_faults("Cpu()") < 100
    assert resource.getpagesize() <= 1 << 16
