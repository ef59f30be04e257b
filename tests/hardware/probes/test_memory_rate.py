import torch

from ridgeline.hardware.caches import Cache
from ridgeline.hardware.host import Host
from ridgeline.hardware.probes import memory_rate
from ridgeline.hardware.probes.memory_rate import CACHES, LEAST_BYTES, MemoryRate, ring_bytes
from ridgeline.hardware.probes.ring import Ring


def host(last):
    return Host("cpu", "a processor", 2, (Cache(2, 1 << 20, 2), Cache(3, last, 1)), 1 << 34)


def test_what_is_read_is_several_times_the_last_cache():
    assert ring_bytes(host(1 << 20)) == LEAST_BYTES
    assert ring_bytes(host(1 << 30)) == CACHES << 30


def test_readings_are_bytes_a_second_of_pieces_in_turn(monkeypatch):
    monkeypatch.setattr(memory_rate, "WIDTH", 64)
    monkeypatch.setattr(memory_rate, "SECONDS", 1e-3)
    rate = MemoryRate(host(1 << 20), Ring(4 * 2 * 64 * 64))
    assert rate.bytes == 2 * 64 * 64
    read, seconds = [], iter([1e-3, 1e-3, 1e-3, 4e-3] * 99)
    monkeypatch.setattr(rate, "_seconds", lambda piece: read.append(piece.data_ptr()) or next(seconds))
    assert rate.read() == rate.bytes / 1e-3
    assert len(read) == memory_rate.CALLS
    assert len({*read}) == 4
    assert read[:4] == read[4:8]


def test_a_long_reading_goes_by_its_second_half(monkeypatch):
    monkeypatch.setattr(memory_rate, "WIDTH", 64)
    monkeypatch.setattr(memory_rate, "SECONDS", 10.0)
    rate = MemoryRate(host(1 << 20), Ring(4 * 2 * 64 * 64))
    seconds = iter([1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(rate, "_seconds", lambda piece: next(seconds))
    assert rate.read_long() == rate.bytes / 2.0


def test_a_real_reading_is_a_rate(monkeypatch):
    monkeypatch.setattr(memory_rate, "WIDTH", 64)
    monkeypatch.setattr(memory_rate, "SECONDS", 1e-3)
    rate = MemoryRate(host(1 << 20), Ring(4 * 2 * 64 * 64))
    with torch.inference_mode():
        rate.stream()
    assert 1e5 < rate.read() < 1e13
    assert 1e5 < rate.read_long() < 1e13
