from pathlib import Path

import pytest

from ridgeline.hardware import caches as module
from ridgeline.hardware.caches import Cache, caches_of_linux, caches_of_mac

KB, MB = 1024, 1024**2


def write_cpu(root: Path, cpu: int, *caches: tuple[str, str, str, str]) -> None:
    """The files of one processor; each cache as (level, type, size, shared_cpu_list)."""
    for i, values in enumerate(caches):
        index = root / f"cpu{cpu}" / "cache" / f"index{i}"
        index.mkdir(parents=True)
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
            (index / name).write_text(value + "\n")


def test_every_core_has_its_own_cache_and_all_share_the_last(tmp_path):
    for cpu in range(4):
        l1, instructions = ("1", "Data", "48K", f"{cpu}"), ("1", "Instruction", "32K", f"{cpu}")
        write_cpu(
            tmp_path,
            cpu,
            l1,
            instructions,
            ("2", "Unified", "1024K", f"{cpu}"),
            ("3", "Unified", "32M", "0-3"),
        )
    assert caches_of_linux(tmp_path, range(4)) == (
        Cache(1, 48 * KB, 4),
        Cache(2, MB, 4),
        Cache(3, 32 * MB, 1),
    )


def test_two_threads_of_a_core_share_one_cache(tmp_path):
    for cpu in range(4):
        write_cpu(tmp_path, cpu, ("1", "Data", "32K", f"{cpu % 2},{cpu % 2 + 2}"))
    assert caches_of_linux(tmp_path, range(4)) == (Cache(1, 32 * KB, 2),)


def test_processors_that_may_not_be_used_bring_no_caches(tmp_path):
    for cpu in range(4):
        write_cpu(tmp_path, cpu, ("2", "Unified", "512K", f"{cpu}"))
    assert caches_of_linux(tmp_path, {1, 2}) == (Cache(2, 512 * KB, 2),)


def test_unlike_cores_count_as_the_smallest(tmp_path):
    write_cpu(tmp_path, 0, ("2", "Unified", "2048K", "0"))
    write_cpu(tmp_path, 1, ("2", "Unified", "1024K", "1"))
    assert caches_of_linux(tmp_path, range(2)) == (Cache(2, MB, 2),)


@pytest.mark.parametrize("size", ["", "0K", "many", "-4K"])
def test_a_cache_without_a_size_is_left_out(tmp_path, size):
    write_cpu(tmp_path, 0, ("1", "Data", "48K", "0"), ("2", "Unified", size, "0"))
    assert caches_of_linux(tmp_path, [0]) == (Cache(1, 48 * KB, 1),)


def test_a_system_that_tells_nothing_has_no_caches(tmp_path):
    assert caches_of_linux(tmp_path, range(8)) == ()


def test_busy_cores_reach_one_instance_each():
    own, shared = Cache(2, MB, 8), Cache(3, 32 * MB, 1)
    assert [own.capacity(threads) for threads in (1, 4, 8, 16)] == [MB, 4 * MB, 8 * MB, 8 * MB]
    assert shared.capacity(4) == 32 * MB


def test_a_mac_tells_the_caches_of_its_fast_cores(monkeypatch):
    told = {
        "hw.perflevel0.l1dcachesize": 128 * KB,
        "hw.perflevel0.l2cachesize": 16 * MB,
        "hw.perflevel0.cpusperl2": 4,
        "hw.l1dcachesize": 64 * KB,
    }
    monkeypatch.setattr(module, "sysctl", told.get)
    assert caches_of_mac(cores=8) == (Cache(1, 128 * KB, 8), Cache(2, 16 * MB, 2))


def test_a_value_that_sysctl_does_not_know_is_none():
    assert module.sysctl("hw.no-such-value") is None
