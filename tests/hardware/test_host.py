import os

from ridgeline.hardware import host
from ridgeline.hardware.host import count_cores, this_host, usable_cpus


def write_topology(root, cpu, package, core):
    folder = root / f"cpu{cpu}" / "topology"
    folder.mkdir(parents=True)
    (folder / "physical_package_id").write_text(f"{package}\n")
    (folder / "core_id").write_text(f"{core}\n")


def test_two_threads_of_a_core_are_one_core(tmp_path):
    for cpu in range(8):
        write_topology(tmp_path, cpu, package=cpu % 4 // 2, core=cpu % 2)
    assert count_cores(tmp_path, range(8)) == 4


def test_processors_without_a_topology_are_cores(tmp_path):
    assert count_cores(tmp_path, range(3)) == 3


def test_a_container_has_no_more_memory_than_its_limit(tmp_path, monkeypatch):
    limit, unlimited = tmp_path / "limit", tmp_path / "unlimited"
    limit.write_text("1048576\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(host, "MEMORY_LIMITS", (unlimited, tmp_path / "missing"))
    machine = this_host().memory_bytes
    monkeypatch.setattr(host, "MEMORY_LIMITS", (unlimited, limit))
    assert this_host().memory_bytes == 1048576 < machine


def test_this_machine_is_described():
    found = this_host()
    assert found.name.strip()
    assert 1 <= found.cores <= len(usable_cpus()) <= os.cpu_count()
    assert [cache.level for cache in found.caches] == sorted(cache.level for cache in found.caches)
    assert found.memory_bytes > 1 << 28
