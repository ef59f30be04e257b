"""The kernels' pool of threads: fixed shares, errors that travel, loops in loops, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from ridgeline import _native, kernels
from ridgeline.errors import InputError


def shares(items: int) -> list[tuple[int, int]]:
    """The parts of a loop, in order."""
    found: list[tuple[int, int]] = []
    _native.share_loop(items, lambda begin, end: found.append((begin, end)))
    return sorted(found)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("items", [1, 2, 7, 100])
def test_shares_are_fixed_and_cover_every_item_once(threads, items):
    kernels.set_threads(threads)
    parts = shares(items)
    assert parts == shares(items)
    assert [i for begin, end in parts for i in range(begin, end)] == list(range(items))
    assert len(parts) == (1 if items == 1 else min(threads, items))


def test_an_empty_loop_calls_nothing():
    assert shares(0) == []


def test_the_first_error_in_order_travels_to_the_caller():
    kernels.set_threads(4)

    def fail(begin: int, end: int) -> None:
        raise ValueError(f"from {begin}")

    for _ in range(3):
        with pytest.raises(ValueError, match="from 0"):
            _native.share_loop(8, fail)
    assert len(shares(8)) == 4


def test_a_loop_inside_a_loop_runs_where_it_is_met():
    kernels.set_threads(2)
    inner: list[tuple[int, int]] = []
    _native.share_loop(2, lambda begin, end: _native.share_loop(10, lambda b, e: inner.append((b, e))))
    assert inner == [(0, 10), (0, 10)]


def test_several_threads_of_the_caller_take_turns():
    kernels.set_threads(2)
    x, packed = torch.ones(4, 64), kernels.pack_linear(torch.ones(64, 64), "fp32")
    results: list[torch.Tensor] = []
    callers = [threading.Thread(target=lambda: results.append(kernels.linear(x, packed))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    assert all(bool((result == 64).all()) for result in results)


def meet(barrier: threading.Barrier, own: bool, met: list[bool]) -> None:
    """Notes whether both threads of a loop met those of the other thread's loop at the barrier."""
    if own:
        kernels.use_own_pool(2)
    try:
        _native.share_loop(2, lambda begin, end: barrier.wait())
        met.append(kernels.threads() == 2)
    except RuntimeError:
        met.append(False)


@pytest.mark.parametrize("own", [True, False])
def test_threads_with_pools_of_their_own_compute_beside_each_other(own):
    """And those without take turns, so that their loops never meet."""
    kernels.set_threads(2)
    barrier = threading.Barrier(4, timeout=10 if own else 0.3)
    met: list[bool] = []
    callers = [threading.Thread(target=meet, args=(barrier, own, met)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert met == [own, own]


def test_a_pool_of_ones_own_is_ones_own():
    kernels.set_threads(3)
    found: list[object] = []

    def look() -> None:
        kernels.use_own_pool(2)
        found.append((kernels.threads(), len(shares(6))))
        kernels.set_threads(4)
        found.append((kernels.threads(), len(shares(6))))
        kernels.use_own_pool(1)
        found.append((kernels.threads(), len(shares(6))))
        child = os.fork()
        if child == 0:
            kernels.set_threads(2)
            os._exit(0 if len(shares(6)) == 2 else 1)
        found.append(os.waitpid(child, 0)[1])

    caller = threading.Thread(target=look)
    caller.start()
    caller.join()
    assert found == [(2, 2), (4, 4), (1, 1), 0]
    assert (kernels.threads(), len(shares(6))) == (3, 3)


def test_a_child_forked_where_only_a_pool_of_ones_own_was_used_gets_threads():
    code = (
        "import os; from ridgeline import _native\n"
        "def parts(): found = []; _native.share_loop(6, lambda *p: found.append(p)); return len(found)\n"
        "_native.use_own_pool(3); assert parts() == 3; child = os.fork()\n"
        "if child == 0: os._exit(parts())\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3 == parts()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_a_forked_child_gets_threads_of_its_own():
    kernels.set_threads(3)
    shares(6)
    child = os.fork()
    if child == 0:
        os._exit(0 if len(shares(6)) == 3 and kernels.threads() == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(shares(6)) == 3


@pytest.mark.parametrize("bad", [0, -1, 1025, 1.5, "2", True])
def test_a_bad_number_of_threads_is_refused(bad):
    before = kernels.threads()
    with pytest.raises(InputError, match=r"^threads is .* from 1 to 1024"):
        kernels.set_threads(bad)
    with pytest.raises(InputError, match=r"^threads is .* from 1 to 1024"):
        kernels.use_own_pool(bad)
    assert kernels.threads() == before


def run(threads: str) -> subprocess.CompletedProcess[str]:
    code = "from ridgeline import kernels\nprint(kernels.threads())"
    environment = {**os.environ, "RIDGELINE_THREADS": threads}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_environment_sets_the_number_of_threads():
    assert run("3").stdout == "3\n"
    assert int(run("").stdout) == _native.available_cores() >= 1


def test_a_bad_environment_is_refused_by_name():
    assert "InputError: RIDGELINE_THREADS is 'many'" in run("many").stderr
