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
    running: int
    waiting: int
    sequences: int
    blocks_used: int
    blocks: int
    block_size: int
    preemptions: int
    steps: int
    step_seconds: float
    prompt_tokens: int
    output_tokens: int
    answered: int
