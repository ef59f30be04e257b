"""The readings on PyTorch: the reference follows its formulas, and the torch-cpu reading the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.models import read_config
from ridgeline.ops import reference, torch_cpu
from ridgeline.ops.batch import CacheSpec, Span
from ridgeline.ops.records import Heads, Mask, Norm, Rope, Score, Weight
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.weights.load import random_model

#: The largest relative error of rounding to bf16: half a unit of its 8 significant bits.
BF16_ROUNDING = 2.0**-8
PLAIN_ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh", "relu", "tanh")
GATED_ACTIVATIONS = ("silu_gated", "gelu_gated", "gelu_tanh_gated", "relu_gated")
#: No activation here changes faster than its input by more (SiLU and GELU: 1.10 and 1.13).
STEEPEST = 1.15

SEEDS = st.integers(0, 999)
SIZES = st.integers(1, 40)
MASKS = st.builds(Mask, st.booleans(), st.tuples(st.integers(-1, 6), st.integers(-1, 6)))
#: Query heads and key heads.
HEADS = st.tuples(st.sampled_from([1, 2, 3, 17]), st.integers(1, 3)).map(lambda x: (x[0] * x[1], x[1]))

REFERENCE, TORCH, TORCH_BF16 = Reference(), TorchCpu(torch.float32), TorchCpu(torch.bfloat16)
EXACT = Reference(torch.float64)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(seed: int, *shape: int, dtype=torch.float32) -> Weight:
    return Weight("w", shape, "fp32", randn(seed, *shape).to(dtype))


def assert_close(actual, expected, tolerance=2e-6):
    """To ``tolerance`` of the largest value."""
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(largest, 1e-30))


# -- linear ---------------------------------------------------------------------------------------


def linear_case(seed, rows, inner, outer, activation, biased, added, dtype=torch.float32):
    """x, and linear's other arguments."""
    gated = activation is not None and activation.endswith("_gated")
    return randn(seed, rows, inner).to(dtype), {
        "weight": weight(seed + 1, 2 * outer if gated else outer, inner, dtype=dtype),
        "bias": weight(seed + 2, 2 * outer if gated else outer, dtype=dtype) if biased else None,
        "activation": activation,
        "residual": randn(seed + 3, rows, outer).to(dtype) if added else None,
    }


LINEAR_CASES = st.tuples(
    SEEDS,
    st.integers(0, 20),
    SIZES,
    SIZES,
    st.sampled_from(PLAIN_ACTIVATIONS + GATED_ACTIVATIONS),
    st.booleans(),
    st.booleans(),
)


@given(LINEAR_CASES)
def test_linear_on_torch_cpu_is_the_references(case):
    x, arguments = linear_case(*case)
    assert_close(TORCH.linear(x, **arguments), REFERENCE.linear(x, **arguments))


@given(LINEAR_CASES)
def test_linear_in_bf16_errs_by_its_roundings_alone(case):
    """Four results are rounded: product, bias, activation, sum. Each is at most the sum of all
    magnitudes that go into it, so that sum times four roundings bounds the error; the sums
    themselves are in float32. A gated product multiplies two such results."""
    x, arguments = linear_case(*case, dtype=torch.bfloat16)
    residual, activation = arguments.pop("residual"), arguments.pop("activation")
    actual = TORCH_BF16.linear(x, activation=activation, residual=residual, **arguments)
    wide = None if residual is None else residual.double()
    expected = EXACT.linear(x.double(), activation=activation, residual=wide, **arguments)
    magnitude = x.double().abs() @ arguments["weight"].data.double().abs().T
    if arguments["bias"] is not None:
        magnitude += arguments["bias"].data.double().abs()
    if activation in GATED_ACTIVATIONS:
        gate, up = magnitude.chunk(2, dim=-1)
        magnitude = 2 * STEEPEST * gate * up
    else:
        magnitude *= STEEPEST
    if wide is not None:
        magnitude += wide.abs()
    assert ((actual.double() - expected).abs() <= 4.1 * BF16_ROUNDING * magnitude).all()


@given(seed=SEEDS, inner=SIZES, outer=SIZES, activation=st.sampled_from(GATED_ACTIVATIONS))
def test_a_gated_activation_multiplies_the_halves(seed, inner, outer, activation):
    x, arguments = linear_case(seed, 3, inner, outer, activation, True, False)
    w, b = arguments["weight"].data, arguments["bias"].data
    gate, up = torch.nn.functional.linear(x, w, b).split(outer, dim=1)
    act = reference.ACTIVATIONS[activation.removesuffix("_gated")]
    assert_close(REFERENCE.linear(x, **arguments), act(gate) * up)


# -- embed, norm, heads ---------------------------------------------------------------------------


@pytest.mark.parametrize("ops", [REFERENCE, TORCH])
def test_an_embedding_reads_the_rows_that_the_ids_and_the_offset_name(ops):
    table = weight(0, 9, 4)
    assert torch.equal(ops.embed(torch.tensor([3, 0, 6]), table, offset=2), table.data[[5, 2, 8]])


@given(
    seed=SEEDS,
    rows=st.integers(0, 20),
    heads=st.none() | st.integers(1, 4),
    width=SIZES,
    kind=st.sampled_from(["rms", "layer"]),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
)
def test_a_norm_is_its_formula_in_both_readings(seed, rows, heads, width, kind, eps):
    """Rows of a batch, or the vectors of every head."""
    x = randn(seed, rows, width) if heads is None else randn(seed, rows, heads, width)
    bias = weight(seed + 2, width) if kind == "layer" else None
    norm = Norm(kind, weight(seed + 1, width), eps, bias)
    centred = x.double() if kind == "rms" else x.double() - x.double().mean(-1, keepdim=True)
    expected = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * norm.weight.data
    if bias is not None:
        expected = expected + bias.data
    # A layer norm of nearly equal values divides what the mean's rounding has left.
    spread = centred.pow(2).mean(-1).add(eps).rsqrt().max().item() if rows else 1.0
    largest = x.abs().max().item() if rows else 1.0
    tolerance = 3e-6 * max(1.0, spread * largest)
    assert_close(REFERENCE.norm(x, norm).double(), expected, tolerance)
    assert_close(TORCH.norm(x, norm), REFERENCE.norm(x, norm), tolerance)


@pytest.mark.parametrize("ops", [REFERENCE, TORCH])
def test_heads_are_split_as_query_key_value_and_normalised_one_by_one(ops):
    query_norm, key_norm = (Norm("rms", weight(i, 4), 1e-6) for i in (1, 2))
    x = randn(0, 5, (6 + 2 * 2) * 4)
    q, k, v = ops.split_heads(x, Heads(6, 2, 4, query_norm, key_norm))
    assert (q.shape, k.shape, v.shape) == ((5, 6, 4), (5, 2, 4), (5, 2, 4))
    assert torch.equal(v, x[:, 32:].view(5, 2, 4))
    for head in range(6):
        assert_close(q[:, head], REFERENCE.norm(x[:, 4 * head : 4 * head + 4], query_norm))
    for head in range(2):
        assert_close(k[:, head], REFERENCE.norm(x[:, 24 + 4 * head : 28 + 4 * head], key_norm))


# -- attention ------------------------------------------------------------------------------------


def attention_case(seed, heads, kv_heads, rows, keys, dim):
    """q of [rows, heads, dim], keys and values of [kv_heads, keys, dim]."""
    return (
        randn(seed, rows, heads, dim),
        randn(seed + 1, kv_heads, keys, dim),
        randn(seed + 2, kv_heads, keys, dim),
    )


def attention_by_loops(q, keys, values, mask, score):
    """Query by query and head by head, in double precision; the mask as ``Mask`` words it."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    rows, heads, _ = q.shape
    kv_heads, length, _ = keys.shape
    left, right = mask.window
    for i in range(rows):
        here = i + length - rows
        seen = [
            j
            for j in range(length)
            if (not mask.causal or j <= here)
            and (left < 0 or j >= here - left)
            and (right < 0 or j <= here + right)
        ]
        for head in range(heads) if seen else ():
            shared = head // (heads // kv_heads)
            scores = score.scale * (keys[shared, seen].double() @ q[i, head].double())
            out[i, head] = torch.softmax(scores, 0) @ values[shared, seen].double()
    return out


@given(SEEDS, HEADS, st.integers(1, 6), st.integers(0, 8), st.integers(1, 9), MASKS, st.floats(0.1, 2))
def test_attention_is_its_formula_in_both_readings(seed, heads, rows, keys, dim, mask, scale):
    """More rows than keys leave the first rows without any key: they give 0."""
    q, k, v = attention_case(seed, *heads, rows, keys, dim)
    expected = attention_by_loops(q, k, v, mask, Score(scale)).float()
    assert_close(reference.attention(q.transpose(0, 1), k, v, mask, Score(scale)), expected, 1e-5)
    assert_close(torch_cpu.attention(q, k, v, mask, Score(scale)), expected, 1e-5)


@pytest.mark.parametrize("mask", [Mask(True), Mask(False, (1, 0)), Mask(True, (0, -1))])
@pytest.mark.parametrize("keys", [0, 1, 4])
def test_a_row_that_sees_no_key_gives_exactly_zero(mask, keys):
    q, k, v = attention_case(0, 4, 2, rows=6, keys=keys, dim=8)
    for out in (
        reference.attention(q.transpose(0, 1), k, v, mask, Score(1.0)),
        torch_cpu.attention(q, k, v, mask, Score(1.0)),
    ):
        assert (out[: 6 - keys] == 0).all()
        assert out[6 - keys :].isfinite().all()
        assert (out[6 - keys :] != 0).all()


@given(
    seed=SEEDS,
    heads=HEADS,
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=3),
    mask=MASKS,
    rotated=st.booleans(),
)
def test_attend_on_torch_cpu_is_the_references(seed, heads, spans, mask, rotated):
    """Rows after cached ones, which are appended first; both readings leave the same cache."""
    dim, (query, kv) = 8, heads
    rope = Rope(dim, 100.0) if rotated else None
    outputs = []
    for ops in (TORCH, REFERENCE):
        cache = ops.alloc_cache(CacheSpec(1, kv, dim, "fp32", block_size=4), blocks=4 * len(spans))
        for step in (0, 1):
            pieces = [
                Span(past or 1, table=table(i)) if step == 0 else Span(rows, past=past or 1, table=table(i))
                for i, (past, rows) in enumerate(spans)
            ]
            total = sum(span.rows for span in pieces)
            q, k, v = (randn(seed + 3 * step + i, total, n, dim) for i, n in enumerate((query, kv, kv)))
            batch = ops.batch([0] * total, pieces)
            out = ops.attend(
                q, k, v, spans=batch.spans, mask=mask, score=Score(0.3), rope=rope, cache=cache.layer(0)
            )
        outputs.append((out, torch.cat([cache.layer(0).read(span)[0] for span in pieces], dim=1)))
    (out, keys), (expected, expected_keys) = outputs
    assert out.shape == (sum(rows for _, rows in spans), query * dim)
    assert_close(out, expected, 1e-5)
    assert_close(keys, expected_keys)


def table(sequence: int) -> tuple[int, ...]:
    """Four blocks of four, in an order of their own."""
    return tuple(4 * sequence + i for i in (2, 0, 3, 1))


@given(SEEDS, HEADS, st.integers(1, 6), st.integers(0, 30), MASKS)
def test_attention_in_bf16_errs_by_its_roundings_alone(seed, heads, rows, past, mask):
    """A score takes at most two roundings (of the scaled query, of the product), each at most
    the sum of magnitudes in it; an error d in every score changes a weight by the factor
    exp(2 d) at most; weights and output are rounded once more each."""
    dim, scale = 16, 0.25
    q, k, v = (x.bfloat16() for x in attention_case(seed, *heads, rows, past + rows, dim))
    actual = torch_cpu.attention(q, k, v, mask, Score(scale)).double()
    expected = attention_by_loops(q, k, v, mask, Score(scale))
    group = heads[0] // heads[1]
    wide_keys = k.double().abs().repeat_interleave(group, 0)
    magnitudes = scale * (q.double().abs().transpose(0, 1) @ wide_keys.transpose(1, 2)).max().item()
    bound = (math.exp(4 * BF16_ROUNDING * magnitudes) - 1 + 2.1 * BF16_ROUNDING) * v.abs().max().item()
    assert ((actual - expected).abs() <= bound).all()


def test_one_row_agrees_whether_its_heads_share_keys_or_not():
    """A decode row is computed in one way for a head by itself and in another for a group."""
    for group in (1, 2, 17):
        q, k, v = attention_case(0, group, 1, rows=1, keys=33, dim=8)
        mask = Mask(True, (10, 0))
        expected = attention_by_loops(q, k, v, mask, Score(0.5)).float()
        assert_close(torch_cpu.attention(q, k, v, mask, Score(0.5)), expected, 1e-5)


# -- a whole model --------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_bf16_model_on_torch_cpu_errs_no_more_than_rounding_every_operator(seed):
    """The reference in bf16 rounds at least as often as the torch-cpu reading does. Against the same
    weights in float64 the two errors are draws from one distribution, or the latter's is smaller."""
    model = wide_random_model(seed)
    ids = torch.randint(0, 61, (24,), generator=torch.Generator().manual_seed(seed))

    def logits(ops):
        return model.forward(ops, ops.batch(ids, [Span(24)], logits="all")).double()

    exact = logits(EXACT)
    plain_error = (logits(Reference(torch.bfloat16)) - exact).norm()
    assert (logits(TORCH_BF16) - exact).norm() <= 1.3 * plain_error
    assert plain_error <= 0.1 * exact.norm()


def wide_random_model(seed):
    raw = {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = random_model(read_config(raw, "x"), "bf16", seed=seed)
    for w in model.weights():
        if len(w.shape) == 2:
            w.data.mul_(8)  # so that attention prefers some keys and no layer is lost in the sum
    return model
