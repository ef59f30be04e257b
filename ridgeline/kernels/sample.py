"""Choosing tokens from logits, with noise that belongs to the request.

A token is drawn from softmax(l) as argmax(l + g) with Gumbel noise g = -log(-log u) (Gumbel 1954; Maddison et
al. 2014, arXiv 1411.0030), where u is a SplitMix64 hash (Steele, Lea and Flood 2014) of seed, position and
token. So a row's choice depends on nothing else: not on the other rows, the number of threads or the
instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.checks import check_integers, check_matrix, describe

#: The smallest temperature above 0, a normal float32.
MIN_TEMPERATURE = 1e-30

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Numbers = float | Sequence[float] | torch.Tensor
Integers = int | Sequence[int] | torch.Tensor


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
        *_options(temperature, top_k, top_p, min_p, rows),
        _option("seeds", seeds, rows, torch.int64),
        _option("positions", positions, rows, torch.int64),
    )
    tokens = torch.empty(rows, dtype=torch.int64)
    addresses = (option.data_ptr() for option in (*options, tokens))
    try:
        _native.sample(rows, vocab, logits.data_ptr(), logits.stride(0), *addresses)
    except ValueError as error:
        raise InputError(f"logits {error}; nothing can be chosen from it") from None
    return tokens


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


def _option(name: str, value: Numbers, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """A number for each row, contiguous."""
    try:
        # PyTorch would make float32 of Python's floats.
        given = (
            value
            if isinstance(value, torch.Tensor)
            else torch.tensor(value, dtype=dtype if dtype == torch.float64 else None)
        )
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {value!r}; give a number or one for each row") from None
    if dtype == torch.int64 and given.dtype not in _WHOLE and given.numel():
        raise InputError(f"{name} is {describe(given)}; give whole numbers")
    if given.device.type != "cpu" or given.shape not in ((), (rows,)):
        raise InputError(
            f"{name} is {describe(given)} on {given.device}; give a number or [{rows}] of them on the CPU"
        )
    return given.to(dtype).expand(rows).contiguous()


def _check_range(name: str, option: torch.Tensor, holds: torch.Tensor, expected: str) -> None:
    if not holds.all():
        raise InputError(f"{name} is {option[~holds][0].item()!r}; give a number {expected}")


def _options(
    temperature: Numbers, top_k: Integers, top_p: Numbers, min_p: Numbers, rows: int
) -> tuple[torch.Tensor, ...]:
    """The four as checked tensors [rows]."""
    t, p, m = (
        _option(name, value, rows, torch.float64)
        for name, value in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p))
    )
    k = _option("top_k", top_k, rows, torch.int64)
    largest = torch.finfo(torch.float32).max
    warm = (t >= MIN_TEMPERATURE) & (t <= largest)
    _check_range("temperature", t, (t == 0) | warm, f"of 0 or at least {MIN_TEMPERATURE}, and finite")
    _check_range("top_k", k, k >= 0, "of 0 or more")
    _check_range("top_p", p, (p > 0) & (p <= 1), "above 0 and at most 1")
    _check_range("min_p", m, (m >= 0) & (m <= 1), "from 0 to 1")
    return t, k, p, m
