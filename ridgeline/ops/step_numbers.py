"""What a recorded pass reads of a step: counts of rows, whole numbers, cuts, matrices, by their names."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from ridgeline.ops.batch import Memory, Span, Wanted, cross_spans, wanted_rows

if TYPE_CHECKING:
    from ridgeline.models.denoising import Denoising
    from ridgeline.ops.torch_batch import TorchSpans

#: Bytes of an int64.
_WORD = 8


@dataclass(frozen=True)
class Step:
    """A step by the names under which a recording knows its parts (:mod:`ridgeline.ops.recording`).

    - ``counts``: rows of each kind that is counted.
    - ``indices``: addresses of int64 numbers.
    - ``cuts``: of each its sequences, the addresses of their rows, past and block tables, and the tables'
      columns, as csrc/bind/program.cpp takes them.
    - ``inputs``: addresses of float32 matrices.
    - ``spans``: the sequences whose positions rotations go by; ``kept`` holds what the addresses point to.
    """

    counts: Mapping[str, int]
    indices: Mapping[str, int]
    cuts: Mapping[str, tuple[int, int, int, int, int]]
    inputs: Mapping[str, int] = field(default_factory=dict)
    spans: Sequence[Span] = ()
    kept: Any = None


def token_step(
    ids: Sequence[int],
    spans: Sequence[Span],
    *,
    logits: Wanted,
    segments: Sequence[int] | None = None,
    memory: Memory | None = None,
    asked: Collection[str] = (),
) -> Step:
    """A step of ``ids``, those of all ``spans`` one after another. ``memory`` has the spans that an encoder
    read. ``asked`` are the indices that are read: token types, which default to 0, and the numbers of rows'
    sequences are made only then."""
    rows = len(ids)
    starts = list(accumulate((span.rows for span in spans), initial=0))
    wanted = wanted_rows(logits, starts)
    numbers = array("q", ids)
    for span in spans:
        numbers.extend(span.positions)
    numbers.extend(wanted)
    numbers.extend(starts[:-1])
    begin = len(numbers)
    _extend_by_lengths(numbers, spans)
    others = ()
    if memory is not None:
        others = cross_spans(spans, memory.spans)
        _extend_by_lengths(numbers, others)
    types_at = len(numbers)
    if "segments" in asked:
        numbers.extend((0,) * rows if segments is None else segments)
    sequences_at = len(numbers)
    if "tokens.sequences" in asked:
        numbers.extend(number for number, span in enumerate(spans) for _ in range(span.rows))
    tables, stride = _tables(spans)
    other_tables, other_stride = _tables(others)
    at = numbers.buffer_info()[0]

    def address(place: int) -> int:
        return at + _WORD * place

    def cut(place: int, count: int, tables: array, stride: int) -> tuple[int, int, int, int, int]:
        return count, address(place), address(place + count), tables.buffer_info()[0], stride

    counts = {"tokens": rows, "wanted": len(wanted), "first": len(spans)}
    cuts = {"tokens": cut(begin, len(spans), tables, stride)}
    inputs = {}
    if memory is not None:
        cuts["cross"] = cut(begin + 2 * len(spans), len(spans), other_tables, other_stride)
        counts["memory"] = sum(span.rows for span in memory.spans)
        if memory.states is not None:
            states = memory.states.to(torch.float32).contiguous()
            memory, inputs["states"] = replace(memory, states=states), states.data_ptr()
    indices = {
        "ids": at,
        "positions": address(rows),
        "wanted": address(2 * rows),
        "first": address(2 * rows + len(wanted)),
        "segments": address(types_at),
        "tokens.sequences": address(sequences_at),
    }
    return Step(counts, indices, cuts, inputs, spans, (numbers, tables, other_tables, memory))


def denoising_step(batch: Denoising) -> Step:
    """A step of a diffusion Transformer, whose matrices are float32 and contiguous."""
    from ridgeline.ops.record_diffusion import CUTS, INDICES, INPUTS

    inputs = {name: x for name in INPUTS if (x := getattr(batch, name)) is not None}
    numbers = {name: x for name in INDICES if (x := getattr(batch, name)) is not None}
    counts = {"images": len(batch.patches), "sequences": len(batch.times)}
    if batch.text is not None:
        counts["text"] = len(batch.text)
    laid_out = {name: spans for name in CUTS if (spans := getattr(batch.spans, name)) is not None}
    inputs = {name: x.to(torch.float32).contiguous() for name, x in inputs.items()}
    numbers = {name: x.contiguous() for name, x in numbers.items()}
    for name in ("images", "text", "segments"):  # those that modulation goes by
        if name in laid_out:
            numbers[f"{name}.sequences"] = laid_out[name].sequences
    return Step(
        counts,
        {name: x.data_ptr() for name, x in numbers.items()},
        {name: _cut(spans) for name, spans in laid_out.items()},
        {name: x.data_ptr() for name, x in inputs.items()},
        kept=(inputs, numbers, batch),
    )


def _cut(spans: TorchSpans) -> tuple[int, int, int, int, int]:
    rows, past = spans.lengths
    return len(rows), rows.data_ptr(), past.data_ptr(), 0, 0


def _extend_by_lengths(numbers: array, spans: Sequence[Span]) -> None:
    numbers.extend(span.rows for span in spans)
    numbers.extend(span.past for span in spans)


def _tables(spans: Sequence[Span]) -> tuple[array, int]:
    """The blocks of each, int32 [spans, columns], rows of fewer filled up with zeros; and the columns."""
    stride = max((len(span.table) for span in spans), default=0)
    tables = array("i")
    for span in spans:
        tables.extend(span.table)
        tables.extend((0,) * (stride - len(span.table)))
    return tables, stride
