"""A result's fingerprint names the machine and the software that it was measured with."""

import platform
from dataclasses import asdict

import torch

import ridgeline
from ridgeline import kernels
from ridgeline.hardware.fingerprint import fingerprint
from ridgeline.hardware.host import this_host


def test_it_names_machine_and_software():
    found = fingerprint(threads=3)
    assert (found.threads, found.cores, found.cpu) == (3, this_host().cores, this_host().name)
    assert found.isa == kernels.isa()
    assert (found.python, found.torch) == (platform.python_version(), torch.__version__)
    assert found.ridgeline == ridgeline.__version__
    of_gpus = {"gpu", "driver", "cuda", "triton"}
    assert {name for name, value in asdict(found).items() if not value} == of_gpus
