"""What is timed: the rows of the table, and who takes part in each. Workers in other interpreters read
this too, so it needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Real tokens of the 32 sequences of the encoder's batch: 16 to 64, on average 40.
ENCODER_LENGTHS = tuple(round(16 + 48 * i / 31) for i in range(32))
PADDED_LENGTH = 64


@dataclass(frozen=True)
class Case:
    """Work for a worker: ``tokens`` more for each of ``batch`` sequences that have ``depth`` already.

    ``prompt`` adds them in one go and ``generate`` one after another, on TinyLlama-1.1B's shape. ``padded``
    and ``packed`` read :data:`ENCODER_LENGTHS` with BERT-base, where the other fields say nothing, with
    every sequence padded to :data:`PADDED_LENGTH`, or without padding.
    """

    kind: Literal["prompt", "generate", "padded", "packed"]
    weights: Literal["4-bit", "bf16"]
    tokens: int = 0
    depth: int = 0
    batch: int = 1

    @property
    def real_tokens(self) -> int:
        """Tokens of all sequences, without padding."""
        is_encoder = self.kind in ("padded", "packed")
        return sum(ENCODER_LENGTHS) if is_encoder else self.batch * self.tokens


@dataclass(frozen=True)
class Contestant:
    """Who takes part in a row: the worker's module in ``benchmarks.peers.workers``, and its case."""

    name: str
    worker: str
    case: Case


@dataclass(frozen=True)
class Row:
    """One line of the table; the first contestant is ours, and the others are compared with it."""

    name: str
    title: str
    contestants: tuple[Contestant, ...]


OWN = "own"
#: Only reads memory, as often and as much as generating would: what the same rounds could have reached.
MEMORY = "memory"
#: Who takes part, by worker; we are the first.
PEERS = {
    OWN: "Ridgeline",
    "llama_cpp": "llama.cpp",
    "openvino": "OpenVINO",
    "transformers": "transformers",
}


def _decoder(name: str, title: str, case: Case, *peers: str) -> Row:
    contestants = [Contestant(PEERS[worker], worker, case) for worker in (OWN, *peers)]
    if case.kind == "generate" and case.batch == 1 and not case.depth:  # time goes into reading weights
        contestants.append(Contestant("memory, only read", MEMORY, case))
    return Row(name, title, tuple(contestants))


_FOUR_BIT = ("llama_cpp", "openvino")
_BF16 = ("llama_cpp", "transformers")
_PACKED, _PADDED = Case("packed", "bf16"), Case("padded", "bf16")

ROWS = (
    _decoder("decode-4bit", "4-bit, generate 64", Case("generate", "4-bit", 64), *_FOUR_BIT),
    _decoder("prompt-512-4bit", "4-bit, prompt of 512", Case("prompt", "4-bit", 512), *_FOUR_BIT),
    _decoder("prompt-2048-4bit", "4-bit, prompt of 2,048", Case("prompt", "4-bit", 2048), *_FOUR_BIT),
    _decoder(
        "decode-4bit-at-4096",
        "4-bit, generate 64 at depth 4,096",
        Case("generate", "4-bit", 64, depth=4096),
        *_FOUR_BIT,
    ),
    _decoder(
        "decode-4bit-batch-16",
        "4-bit, 16 sequences generate 32 each",
        Case("generate", "4-bit", 32, batch=16),
        *_FOUR_BIT,
    ),
    _decoder("prompt-512-bf16", "bf16, prompt of 512", Case("prompt", "bf16", 512), *_BF16),
    _decoder("decode-bf16", "bf16, generate 64", Case("generate", "bf16", 64), *_BF16),
    Row(
        "encoder",
        "BERT-base bf16, 32 sequences of 40 tokens on average",
        (
            Contestant("Ridgeline", OWN, _PACKED),
            Contestant("Ridgeline, padded to 64", OWN, _PADDED),
            Contestant("transformers, padded to 64", "transformers", _PADDED),
        ),
    ),
)
