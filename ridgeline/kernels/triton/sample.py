"""Choosing tokens on a GPU, with the noise of :mod:`ridgeline.kernels.sample`: the hash of seed, position and
token, so that the same logits give the same token as on a CPU, but for the last bit of a logarithm."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ridgeline.errors import InputError
from ridgeline.kernels.sample import _TEMPERATURES, Integers, Numbers, _in_range, _is_temperature, _numbers
from ridgeline.kernels.triton.arguments import check_floats, describe
from ridgeline.kernels.triton.runtime import OPTIONS, is_interpreted

#: Tokens that a program takes.
CHUNK = 64 if is_interpreted() else 1024
#: SplitMix64's constants (Steele, Lea and Flood 2014) as int64.
_STEP = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_FIRST = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_SECOND = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@triton.jit
def _mix(z):
    """SplitMix64's output function, of int64; shifts are without the sign."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _FIRST
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _SECOND
    return z ^ ((z >> 31) & ((1 << 33) - 1))


@triton.jit
def best_of_chunk(
    logits, largest, temperatures, seeds, positions, values, tokens, l_r, vocab, chunks, CHUNK: tl.constexpr
):
    """Grid: [rows, chunks]: the token of a chunk with the largest sum of score and noise, and that sum."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    logit = tl.load(logits + row * l_r + token, mask=token < vocab, other=float("-inf"))
    temperature = tl.load(temperatures + row)
    scores = logit.to(tl.float64)
    if temperature > 0:
        score = tl.div_rn(logit - tl.load(largest + row), temperature)
        state = _mix(_mix(tl.load(seeds + row) + _STEP) + tl.load(positions + row) * _STEP)
        bits = _mix((token.to(tl.int64) + 1) * _STEP + state)
        uniform = (((bits >> 12) & ((1 << 52) - 1)).to(tl.float64) + 0.5) * 2.220446049250313e-16
        scores = score.to(tl.float64) - tl.log(-tl.log(uniform))
    best = tl.max(scores, 0)
    winner = tl.min(tl.where(scores == best, token, 2147483647), 0)
    tl.store(values + row * chunks + chunk, best)
    tl.store(tokens + row * chunks + chunk, winner)


@triton.jit
def running(x, sums, columns, CHUNK: tl.constexpr):
    """Grid: [rows]: running sums of each row of float64, chunk after chunk. PyTorch's own are in an order
    that depends on the number of rows."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, CHUNK)
    before = tl.zeros([CHUNK], tl.float64)
    for first in range(0, columns, CHUNK):
        value = tl.load(x + row * columns + first + j, mask=first + j < columns, other=0.0)
        tl.store(sums + row * columns + first + j, before + tl.cumsum(value, 0), mask=first + j < columns)
        before += tl.sum(value, 0)


def running_sums(x: torch.Tensor) -> torch.Tensor:
    """Those of every row of float64 [rows, columns], in an order that depends on the row alone."""
    sums = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    running[(len(x),)](x.contiguous(), sums, x.shape[1], CHUNK, **OPTIONS)
    return sums


def sample(
    logits: torch.Tensor,
    temperature: Numbers,
    seeds: Integers,
    positions: Integers,
    *,
    top_k: Integers = 0,
    top_p: Numbers = 1.0,
    min_p: Numbers = 0.0,
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.sample`, of logits on the GPU: int64 ``[rows]`` there."""
    rows, _vocab = _check_logits(logits)
    temperatures = _in_range("temperature", temperature, rows, "d", _is_temperature, _TEMPERATURES)
    ks = _in_range("top_k", top_k, rows, "q", lambda k: k >= 0, "of 0 or more")
    ps = _in_range("top_p", top_p, rows, "d", lambda p: 0 < p <= 1, "above 0 and at most 1")
    least = _in_range("min_p", min_p, rows, "d", lambda p: 0 <= p <= 1, "from 0 to 1")
    noise = [_numbers("seeds", seeds, rows, "q"), _numbers("positions", positions, rows, "q")]
    if not rows:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    largest = logits.amax(-1)
    if not bool(largest.isfinite().all()):
        raise InputError("logits has a row that holds a NaN or whose largest is infinite; none can be chosen")
    if any(ks) or any(p < 1 for p in ps) or any(least):
        logits = kept(logits, largest, temperatures, ks, ps, least)
    chosen = [torch.tensor(list(x), device=logits.device) for x in noise]
    return draw(logits, largest, torch.tensor(list(temperatures), device=logits.device).float(), *chosen)


def draw(
    logits: torch.Tensor,
    largest: torch.Tensor,
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """The drawing alone, all of it on the GPU: what a CUDA graph may hold. ``largest`` and ``temperatures``
    are float32 ``[rows]``, ``seeds`` and ``positions`` int64."""
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    values = torch.empty(rows, chunks, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    best_of_chunk[(rows, chunks)](
        logits,
        largest,
        temperatures,
        seeds,
        positions,
        values,
        tokens,
        logits.stride(0),
        vocab,
        chunks,
        CHUNK,
        **OPTIONS,
    )
    best = values.amax(-1, keepdim=True)
    return tokens.masked_fill(values != best, 2**31 - 1).amin(-1).long()


def kept(
    logits: torch.Tensor,
    largest: torch.Tensor,
    temperatures: Numbers,
    ks: Integers,
    ps: Numbers,
    least: Numbers,
) -> torch.Tensor:
    """The logits with -inf for what top-k, top-p and min-p rule out; probabilities are summed in float64."""

    def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    vocab = logits.shape[1]
    warm = [t or 1.0 for t in temperatures]
    scores = (logits - largest[:, None]) / column(warm, torch.float32)
    ordered, tokens = scores.sort(dim=-1, descending=True, stable=True)
    number = torch.arange(vocab, device=logits.device)
    out = number >= column([k or vocab for k in ks], torch.int64)
    masses = ordered.double().exp().masked_fill(out, 0)
    sums = running_sums(masses)
    likelier = (sums - masses) / sums[:, -1:]
    out |= likelier >= column([p if p < 1 else math.inf for p in ps], torch.float64)
    lowest = [math.log(p) if p else -math.inf for p in least]
    out |= ordered < column(lowest, torch.float32)
    return logits.scatter(-1, tokens, logits.gather(-1, tokens).masked_fill(out, -math.inf))


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """As :func:`ridgeline.kernels.log_probabilities`, of logits on the GPU."""
    rows, vocab = _check_logits(logits)
    if tokens.shape != (rows,):
        raise InputError(f"tokens is {describe(tokens)}; logits has {rows} rows")
    if rows and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise InputError(f"tokens holds ids beyond the vocabulary; give ids from 0 to {vocab - 1}")
    if not rows:
        return torch.empty(0, dtype=torch.float32, device=logits.device)
    chosen = logits.gather(-1, tokens.long()[:, None])[:, 0].double()
    largest = logits.amax(-1, keepdim=True).double()
    total = running_sums((logits.double() - largest).exp())[:, -1]
    return (chosen - largest[:, 0] - total.log()).float()


def _check_logits(logits: torch.Tensor) -> tuple[int, int]:
    check_floats("logits", logits)
    if logits.dtype != torch.float32 or logits.dim() != 2 or not logits.shape[1]:
        raise InputError(f"logits is {describe(logits)}; give float32 [rows, vocab] of at least one token")
    return logits.shape
