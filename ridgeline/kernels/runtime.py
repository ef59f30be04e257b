"""The kernels' threads and instruction set."""

from __future__ import annotations

from ridgeline import _native
from ridgeline.errors import InputError


def threads() -> int:
    """How many threads the kernels use that the caller asks for, the caller's own included.

    By default as many as there are physical cores that the process may use, or RIDGELINE_THREADS.

    Raises InputError if RIDGELINE_THREADS is not a whole number from 1 to 1024.
    """
    try:
        return _native.threads()
    except ValueError as error:
        raise InputError(str(error)) from None


def set_threads(n: int) -> None:
    """Let the kernels use ``n`` threads from now on, the caller's included. No result depends on it.

    Raises InputError unless ``n`` is a whole number from 1 to 1024.
    """
    _native.set_threads(checked_threads("threads", n))


def use_own_pool(n: int) -> None:
    """From now on the calling thread computes with a pool of ``n`` threads of its own, itself
    included, beside other threads, with which it takes turns otherwise. The pool ends with the thread.

    Raises InputError unless ``n`` is a whole number from 1 to 1024.
    """
    _native.use_own_pool(checked_threads("threads", n))


def checked_threads(option: str, n: int) -> int:
    """The number; raises InputError that names the ``option`` unless it is a whole one from 1 to 1024."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _native.max_threads:
        raise InputError(f"{option} is {n!r}; give a whole number from 1 to {_native.max_threads}")
    return n


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this machine and this build have kernels for, best first.

    ``avx512_bf16`` and ``avx512`` (both with VNNI), ``avx2`` (with FMA and F16C), ``portable``.
    """
    return tuple(_native.available_isas())


def isa() -> str:
    """The instruction set in use: the best there is, unless RIDGELINE_ISA or :func:`set_isa` names another.

    Raises InputError if RIDGELINE_ISA names one that is unknown or that this machine lacks.
    """
    try:
        return _native.isa()
    except ValueError as error:
        raise InputError(str(error)) from None


def set_isa(name: str) -> None:
    """Use the instruction set ``name`` from now on. Results differ in rounding between instruction sets.

    Raises InputError for a name that is unknown or that this machine lacks.
    """
    try:
        _native.choose_isa(name)
    except ValueError as error:
        raise InputError(str(error)) from None
