"""Which instruction set the kernels use, and who decides."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ridgeline import kernels
from ridgeline.errors import InputError

KNOWN = ("avx512_bf16", "avx512", "avx2", "portable")


def run(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from ridgeline import kernels\nprint(kernels.isa())"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "RIDGELINE_ISA": isa}, capture_output=True, text=True
    )


def test_every_machine_has_the_portable_set_and_lists_the_best_first():
    found = kernels.available_isas()
    assert found[-1] == "portable"
    assert list(found) == [isa for isa in KNOWN if isa in found]


def test_the_best_set_is_used_unless_the_environment_names_one():
    assert run("").stdout.strip() == kernels.available_isas()[0]
    assert run("portable").stdout.strip() == "portable"


def test_an_unknown_set_is_refused_by_name():
    with pytest.raises(InputError, match=r"^isa is 'sse9', which is unknown; this machine has: .*portable"):
        kernels.set_isa("sse9")
    assert "InputError: RIDGELINE_ISA is 'sse9', which is unknown" in run("sse9").stderr


def test_a_set_that_the_machine_lacks_is_refused_by_name():
    for isa in set(KNOWN) - set(kernels.available_isas()):
        with pytest.raises(InputError, match="which this machine lacks"):
            kernels.set_isa(isa)


def test_the_fixture_really_switches(isa):
    assert kernels.isa() == isa
