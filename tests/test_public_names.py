"""The top level: names of the library, found on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ridgeline


def test_importing_the_package_imports_neither_torch_nor_numpy():
    script = "import sys, ridgeline; dir(ridgeline); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there():
    pytest.importorskip("torch")
    for name in dir(ridgeline):
        assert getattr(ridgeline, name) is not None
    assert ridgeline.attention is ridgeline.kernels.attention
    assert ridgeline.compat.__name__ == "ridgeline.compat"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'atention'"):
        _ = ridgeline.atention
