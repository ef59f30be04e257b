"""What tests of GPU kernels share: the device, which is a GPU where there is one, else Triton's interpreter
on the CPU. ``tests/conftest.py`` chooses it, before anything imports Triton."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install 'ridgeline[gpu]'")

import ridgeline.kernels.triton  # noqa: E402, F401  before a test takes the choice out of the environment


@pytest.fixture(scope="session")
def device() -> torch.device:
    from ridgeline.kernels.triton.runtime import default_device

    return default_device()


@pytest.fixture(scope="module")
def sums_by_row() -> Iterator[None]:
    """NumPy's product of float32 matrices rounds a row by its place among the others, as no tensor core does.
    Inside, the interpreter sums in float64 and rounds once, which hides that."""
    if torch.cuda.is_available():
        yield
        return
    import numpy
    from triton.runtime import interpreter

    known = interpreter.InterpreterBuilder.create_dot

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        wide = numpy.matmul(a.data, b.data, dtype=numpy.float64) + d.data
        return interpreter.TensorHandle(wide.astype(d.data.dtype), d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot
    yield
    interpreter.InterpreterBuilder.create_dot = known


@pytest.fixture(scope="module", autouse=True)
def patched_once_a_launch() -> Iterator[None]:
    """The interpreter replaces Triton's functions anew for every call of a function inside a kernel, which is
    half of its time; once a launch does."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    patch, known = interpreter._patch_lang, set()

    def patch_once(function):
        modules = frozenset(
            id(x) for x in function.__globals__.values() if x in (interpreter.tl, interpreter.tl.core)
        )
        if modules in known:
            return interpreter._LangPatchScope()
        known.add(modules)
        scope = patch(function)
        restore = scope.restore
        scope.restore = lambda: (known.clear(), restore())
        return scope

    interpreter._patch_lang = patch_once
    yield
    interpreter._patch_lang = patch
