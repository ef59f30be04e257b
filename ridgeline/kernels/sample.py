"""Choosing tokens from logits, with noise that belongs to the request.

A token is drawn from softmax(l) as argmax(l + g) with Gumbel noise g = -log(-log u) (Gumbel 1954; Maddison et
al. 2014, arXiv 1411.0030), where u is a SplitMix64 hash (Steele, Lea and Flood 2014) of seed, position and
token. So a row's choice depends on nothing else: not on the other rows, the number of threads or the
instruction set.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.checks import check_integers, check_matrix, describe
from ridgeline.kernels.dispatch import on_gpu

#: Temperatures above 0 are normal float32 numbers.
MIN_TEMPERATURE = 1e-30
MAX_TEMPERATURE = 1e38
_TEMPERATURES = f"of 0, or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"

Numbers = float | Sequence[float] | torch.Tensor
Integers = int | Sequence[int] | torch.Tensor


@on_gpu
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
    """The next token of each row of ``logits``: int64 ``[rows]``.

    - ``logits``: float32 ``[rows, vocab]``, its rows contiguous; -inf rules a token out.
    - ``temperature``: divides the logits; 0 takes the likeliest token, of equals the one of lowest id.
    - ``seeds``, ``positions``: what the noise depends on beside the token. A position is the place in its
      sequence that the token takes.
    - ``top_k``: only the k likeliest tokens stay; 0 keeps all.
    - ``top_p``: of these only the likeliest stay whose probabilities together reach p; at least one.
    - ``min_p``: only tokens stay that are at least this share as likely as the likeliest.

    Each option is a number for all rows or ``[rows]`` of them. Of tokens with equal scores those with the
    lowest ids come first. Scores are float32, probabilities are summed in float64 and the noise is float64.

    Raises InputError that names the argument for a wrong type, dtype, shape, stride, device or range,
    and for a row that holds a NaN or whose largest logit is infinite.
    """
    rows, vocab = _check_logits(logits)
    options = (
        _in_range("temperature", temperature, rows, "d", _is_temperature, _TEMPERATURES),
        _in_range("top_k", top_k, rows, "q", lambda k: k >= 0, "of 0 or more"),
        _in_range("top_p", top_p, rows, "d", lambda p: 0 < p <= 1, "above 0 and at most 1"),
        _in_range("min_p", min_p, rows, "d", lambda p: 0 <= p <= 1, "from 0 to 1"),
        _numbers("seeds", seeds, rows, "q"),
        _numbers("positions", positions, rows, "q"),
    )
    tokens = torch.empty(rows, dtype=torch.int64)
    addresses = (option.buffer_info()[0] for option in options)
    try:
        _native.sample(rows, vocab, logits.data_ptr(), logits.stride(0), *addresses, tokens.data_ptr())
    except ValueError as error:
        raise InputError(f"logits {error}; nothing can be chosen from it") from None
    return tokens


@on_gpu
def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log softmax(row)[token] of each row: float32 ``[rows]``, summed in float64.

    - ``logits``: float32 ``[rows, vocab]``, its rows contiguous.
    - ``tokens``: int64 ``[rows]``, from 0 to vocab - 1.

    Raises InputError as :func:`sample` does, and for tokens beyond the vocabulary.
    """
    rows, vocab = _check_logits(logits)
    check_integers("tokens", tokens)
    if len(tokens) != rows:
        raise InputError(f"tokens is {describe(tokens)}; logits has {rows} rows")
    if rows and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise InputError(f"tokens holds ids beyond the vocabulary; give ids from 0 to {vocab - 1}")
    out = torch.empty(rows, dtype=torch.float32)
    try:
        _native.log_probabilities(
            rows, vocab, logits.data_ptr(), logits.stride(0), tokens.data_ptr(), out.data_ptr()
        )
    except ValueError as error:
        raise InputError(f"logits {error}; it has no probabilities") from None
    return out


def _check_logits(logits: torch.Tensor) -> tuple[int, int]:
    check_matrix("logits", logits)
    if logits.dtype != torch.float32:
        raise InputError(f"logits is {logits.dtype}; give torch.float32")
    rows, vocab = logits.shape
    if vocab == 0:
        raise InputError(f"logits is {describe(logits)}; give at least one token to choose from")
    return rows, vocab


def _numbers(name: str, value: Numbers, rows: int, code: str) -> array:
    """A number for each row, as an array that C++ can read: ``code`` d for float64, q for int64.

    Not a tensor, because making and checking six of them takes longer than choosing a token.
    """
    try:
        given = value.tolist() if isinstance(value, torch.Tensor) else value
        numbers = array(code, [given] * rows if isinstance(given, (int, float)) else given)
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        kind = "numbers" if code == "d" else "whole numbers of 64 bits"
        raise InputError(f"{name} is {value!r}; give {kind}, one or one for each row") from None
    if len(numbers) != rows:
        raise InputError(f"{name} has {len(numbers)} numbers; give one, or {rows} for as many rows")
    return numbers


def _in_range(
    name: str, value: Numbers, rows: int, code: str, holds: Callable[[float], bool], expected: str
) -> array:
    numbers = _numbers(name, value, rows, code)
    for number in set(numbers):
        if not holds(number):
            raise InputError(f"{name} is {number!r}; give a number {expected}")
    return numbers


def _is_temperature(t: float) -> bool:
    return t == 0 or MIN_TEMPERATURE <= t <= MAX_TEMPERATURE
