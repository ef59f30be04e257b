"""What an engine is doing: a snapshot for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """An engine at one moment; totals count from its beginning.

    ``running`` of at most ``sequences`` sequences are in the batch, and ``waiting`` requests or samples are
    not. ``blocks_used`` of the cache's ``blocks``, of ``block_size`` tokens each, belong to those that run;
    prefixes that are only kept for later do not count. ``steps`` took ``step_seconds``, scheduling and
    sampling included. ``prompt_tokens`` were computed, those of preempted requests again, and
    ``output_tokens`` generated; ``answered`` requests are finished.
    """

    alive: bool
    running: int = 0
    waiting: int = 0
    sequences: int = 0
    blocks_used: int = 0
    blocks: int = 0
    block_size: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    answered: int = 0
