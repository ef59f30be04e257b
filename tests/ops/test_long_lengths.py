"""Lengths beyond what 32 and 64 bits count: exact in Python's integers, right in arrays of any type."""

from dataclasses import replace

import numpy
import pytest

from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.lowering import FUSED, UNFUSED
from ridgeline.predict import predict
from tests.ops.small_models import count

#: The scores of one head pass 2^31 elements at 46,341 tokens, 2^63 at 3.04e9.
LENGTHS = (2**15, 46341, 2**16, 2**20, 2**31, 2**33)
LLAMA = declare(load_config("llama-3-8b"))


def scores(trace):
    written = (a.value for op in trace.ops for part in op.parts for a in part.writes)
    return next(value for value in written if value.name == "scores")


def pairs(length):
    return length * (length + 1) // 2


@pytest.mark.parametrize("length", LENGTHS)
def test_a_single_length_is_counted_exactly(length):
    trace = count(LLAMA, Span(length), lowering=UNFUSED)
    assert scores(trace).elements == 32 * length * length
    assert trace.by_class()["attention"].matrix == 4 * pairs(length) * 32 * 128 * 32
    assert trace.by_class()["attention"].exp == pairs(length) * 32 * 32
    assert isinstance(trace.flops.matrix, int)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "float32", "float64"])
@pytest.mark.parametrize("lowering", [FUSED, UNFUSED], ids=lambda lowering: lowering.name)
def test_lengths_in_an_array_of_any_type_do_not_wrap_around(dtype, lowering):
    most = {"int32": 2**31 - 1, "uint32": 2**32 - 1, "float32": 2**24}.get(dtype, 2**40)
    lengths = [n for n in LENGTHS if n <= most]
    swept = count(LLAMA, Span(numpy.array(lengths, dtype)), lowering=lowering)
    single = [count(LLAMA, Span(n), lowering=lowering) for n in lengths]
    for of in (
        lambda t: t.flops.matrix,
        lambda t: t.flops.exp,
        lambda t: t.bytes,
        lambda t: t.memory().activations,
    ):
        numpy.testing.assert_allclose(of(swept), [float(of(t)) for t in single], rtol=1e-14)
        assert (numpy.diff(of(swept)) > 0).all()


def test_a_training_pass_of_such_lengths_is_right_too():
    lengths = [2**16, 2**31, 2**33]
    swept, single = (
        [count(LLAMA, Span(n), train=True).backward("full").flops.matrix for n in spans]
        for spans in ([numpy.array(lengths)], lengths)
    )
    numpy.testing.assert_allclose(swept[0], [float(n) for n in single], rtol=1e-14)


def test_a_numpy_scalar_becomes_a_whole_number_of_any_size():
    trace = count(LLAMA, Span(numpy.int32(2**31 - 1)))
    assert trace.flops == count(LLAMA, Span(2**31 - 1)).flops


@pytest.mark.parametrize("length", [2**12, 2**16, 2**20])
def test_with_heads_of_64_exponentials_take_as_long_as_products_on_an_h100(length):
    """989 TFLOP/s over 3.9 T exponentials/s are 256 FLOPs each: as many as both products of a head of 64."""
    trace = count(declare(load_config("llama-3.2-1b")), Span(length), activations="fp16")
    attention = trace.by_class()["attention"]
    h100 = load_device("h100")
    ratio = (attention.exp / h100.exp_rate) / (attention.matrix / h100.matrix_rate("fp16"))
    assert ratio == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("slower", "bound"), [(0.5, "matrix"), (2, "exp")])
def test_a_long_prompts_attention_is_bound_by_whichever_unit_is_slower(slower, bound):
    h100 = load_device("h100")
    device = replace(h100, exp_rate=h100.exp_rate / slower)
    trace = count(declare(load_config("llama-3.2-1b")), Span(2**17))
    attention = [k for k in predict(trace, device).kernels if k.op == "attention" and k.flops.matrix]
    assert {k.bound for k in attention} == {bound}
