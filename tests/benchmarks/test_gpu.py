"""The GPU benchmark checks what it times, and says in a line where it cannot run."""

import os
import subprocess
import sys

import pytest

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

from benchmarks import gpu as benchmark
from benchmarks import gpu_cases

patched_once_a_launch = shared.patched_once_a_launch


@pytest.mark.parametrize("part", gpu_cases.PARTS)
def test_every_part_checks_out_on_small_shapes(part, capsys):
    assert benchmark.main(["--check", "--only", part, "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(part) for line in lines[2:])


def test_a_wrong_result_is_told_and_is_an_exit_code(monkeypatch, capsys):
    def half_written(x, packed, out):
        out[:, :3] = (x.float() @ packed.unpack().T)[:, :3].to(out.dtype)
        return out

    monkeypatch.setattr(gpu_cases.gpu, "linear", half_written)
    assert benchmark.main(["--check", "--only", "linear"]) == 1
    assert "nan!" in capsys.readouterr().out


def test_an_unknown_part_is_named(capsys):
    assert benchmark.main(["--only", "speed"]) == 2
    assert "--only has 'speed'" in capsys.readouterr().err


@pytest.mark.skipif(shared.torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, env=environment
    )
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "no CUDA device" in said.stderr
