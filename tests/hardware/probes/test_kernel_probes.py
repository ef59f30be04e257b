import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline import _native
from ridgeline.hardware.probes.attend import SHORT, attend_probes, cache_bytes, counted, read_attend
from ridgeline.hardware.probes.layer import WIDE, bytes_by_part, interlude
from ridgeline.hardware.probes.linear import (
    call_probes,
    kernel_arguments,
    linear_probes,
    read_call,
    read_linear,
)
from ridgeline.hardware.probes.parts import PARTS, fit, part_probes
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Timing, Timings
from ridgeline.kernels.linear import FORMATS, linear, pack_linear

SECONDS, BYTES = st.floats(1e-7, 1e-2), st.floats(1.0, 1e7)


@pytest.fixture(scope="module")
def ring():
    return Ring(16 << 20)


def run(probes):
    """Every probe once, and a second for each of them."""
    with torch.inference_mode():
        for probe in probes:
            probe.call(*probe.prepare())
    return Timings((probe.figure, Timing(1.0, 0.0)) for probe in probes)


def nothing():
    return ()


def test_every_kernel_of_a_layer_but_products_and_attention_is_a_part():
    assert bytes_by_part(4).keys() - {"matmul", "linear", "attend"} == set(PARTS) - {"split"}


def test_bytes_of_parts_are_those_of_the_count():
    rows, width, activation, stored = 8, WIDE.query * WIDE.dim, 4, 2
    found = bytes_by_part(rows)
    assert found["add"] == 3 * rows * width * activation
    assert found["norm"] == 2 * rows * width * activation + width * stored
    assert found["append"] == 2 * rows * WIDE.kv * WIDE.dim * (activation + stored)  # keys and values


@given(SECONDS, SECONDS, BYTES, BYTES, st.floats(1e6, 1e13))
def test_a_fitted_line_is_never_negative_nor_faster_than_the_nearest_cache(few, many, less, more, fastest):
    line = fit(less, few, less + more, many, fastest)
    assert line.overhead >= 0
    assert 0 < line.throughput <= fastest


def test_a_fitted_line_goes_through_both_measurements():
    line = fit(1e3, 5e-6, 4e6, 105e-6, fastest=1e12)
    assert line.seconds(1e3) == pytest.approx(5e-6)
    assert line.seconds(4e6) == pytest.approx(105e-6)


def test_all_kernels_run(ring):
    between = interlude()
    assert between() == ()
    probes = part_probes(ring, between) + call_probes("bf16", ring, between)
    for format in FORMATS:
        probes += linear_probes(format, (1, 4), (32, 128), ring, between)
    for format in ("fp32", "bf16"):
        probes += attend_probes(format, (4, 16), 64, ring, between)
    run(probes)
    assert len({probe.figure for probe in probes}) == len(probes)


def test_the_bare_kernel_computes_the_product(ring):
    x, out = torch.rand(3, 40), torch.empty(3, 24)
    packed = pack_linear(torch.rand(24, 40), "bf16")
    _native.linear(*kernel_arguments(x, packed, out))
    assert torch.equal(out, linear(x, packed))


def test_python_takes_what_the_bare_kernel_does_not():
    def timings(python, kernel):
        figures = {"kernels.call.python": python, "kernels.call.kernel": kernel}
        return Timings((figure, Timing(seconds, 0.0)) for figure, seconds in figures.items())

    assert read_call(timings(9e-6, 2e-6)) == pytest.approx(7e-6)
    assert read_call(timings(1e-6, 2e-6)) == 0.0


def test_the_linear_table_is_by_rows_then_weight(ring):
    rows, widths = (1, 4), (32, 64, 128)
    found = run(linear_probes("bf16", rows, widths, ring, nothing))
    table = read_linear(found, "bf16", rows, widths)
    assert table.weight_bytes == (2048.0, 8192.0, 32768.0)
    assert table.warm == table.fresh == ((1.0,) * 3,) * 2


def test_a_fresh_weight_is_another_one_at_every_call_and_a_warm_one_the_same(ring):
    probes = {p.figure: p for p in linear_probes("fp32", (1,), (32,), ring, nothing)}

    def addresses(place):
        prepare = probes[f"kernels.linear.fp32.{place}[1, 32]"].prepare
        return {prepare()[1] for _ in range(3)}

    assert len(addresses("warm")) == 1
    assert len(addresses("fresh")) == 3


def test_attention_counts_visible_pairs_and_the_cache_that_is_read():
    rows, width = 16, WIDE.query * WIDE.dim
    assert counted("fp32", rows, 0).flops.matrix == 4 * width * rows * (rows + 1) // 2
    assert cache_bytes("fp32", 64) == 2 * 64 * WIDE.kv * WIDE.dim * 4


def attend_timings(**seconds):
    named = {"rows4": "rows[4]", "rows16": "rows[16]"}
    return Timings(
        (f"kernels.attend.fp32.{named.get(name, name)}", Timing(s, 0.0)) for name, s in seconds.items()
    )


def test_the_attention_curve_goes_through_what_was_measured():
    found = attend_timings(short=1.5, warm=3.0, fresh=5.0, rows4=2.0, rows16=11.0)
    curve = read_attend(found, "fp32", (4, 16), keys=256, fastest=1e12)
    assert curve.seconds(1, 0.0, cache_bytes("fp32", SHORT), cached=True) == pytest.approx(1.5)
    assert curve.seconds(1, 0.0, cache_bytes("fp32", 256), cached=True) == pytest.approx(3.0)
    assert curve.seconds(1, 0.0, cache_bytes("fp32", 256), cached=False) == pytest.approx(5.0)
    assert curve.seconds(16, counted("fp32", 16, 0).flops.matrix, 0.0, cached=True) == pytest.approx(11.0)


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)
def test_whatever_the_noise_attention_has_positive_rates(short, warm, fresh, rows4, rows16):
    found = attend_timings(short=short, warm=warm, fresh=fresh, rows4=rows4, rows16=rows16)
    curve = read_attend(found, "fp32", (4, 16), keys=256, fastest=1e12)
    assert curve.overhead >= 0
    assert min(curve.warm, curve.fresh, *curve.flops_per_second) > 0
    assert max(curve.warm, curve.fresh) <= 1e12
