import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ridgeline.hardware.probes import storage
from ridgeline.hardware.probes.storage import BLOCK, storage_probes

SIZE = 2 * BLOCK


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def drive(tmp_path):
    """A folder on a file system whose reads can be measured."""
    with storage_probes(tmp_path, SIZE) as probes:
        if not probes:
            pytest.skip("temporary files are not on a drive here")
    return tmp_path


def test_every_probe_reads_the_whole_file(drive):
    with storage_probes(drive, SIZE) as probes:
        for probe in probes:
            probe.call(*probe.prepare())
        assert {probe.work for probe in probes} == {SIZE}


def test_the_file_has_no_name_even_while_it_is_read(drive):
    with storage_probes(drive, SIZE):
        assert list(drive.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_an_interruption(drive, interruption):
    before = open_files()
    with pytest.raises(interruption), storage_probes(drive, SIZE):
        raise interruption
    assert list(drive.iterdir()) == []
    assert open_files() == before


def test_an_interrupted_write_leaves_nothing(drive, monkeypatch):
    before = open_files()

    def interrupted(descriptor, blocks):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt), storage_probes(drive, SIZE):
        pass
    assert list(drive.iterdir()) == []
    assert open_files() == before


def test_a_full_drive_is_not_measured(drive, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: SimpleNamespace(free=BLOCK))
    with storage_probes(drive, SIZE) as probes:
        assert probes == []


def test_a_folder_that_cannot_be_made_is_not_measured(tmp_path):
    (tmp_path / "file").touch()
    with storage_probes(tmp_path / "file" / "folder", SIZE) as probes:
        assert probes == []


def test_files_that_live_in_memory_are_not_measured():
    shared = Path("/dev/shm")
    if not shared.is_dir() or "tmpfs /dev/shm" not in Path("/proc/mounts").read_text():
        pytest.skip("no file system in memory here")
    with storage_probes(shared, SIZE) as probes:
        assert probes == []
