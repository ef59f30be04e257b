"""A real serving run beside the same requests in simulated time.

LLMServingSim's run (KAIST CASYS, MIT licence) of vLLM 0.19: 300 requests of ShareGPT's lengths, about 10 a
second, to one RTX 4090 with Llama-3.1-8B in bf16. That is far above its capacity, so the run judges how fast
a queue is drained, not latency at ease. The engine had a cache of 41,408 tokens in blocks of 16 and at most
2,048 tokens and 256 sequences a step; it keeps no headroom.

Nothing of the run was fitted to: the card's constants come from the times of single kernels.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from ridgeline.analysis.serving import SimulatedServing, simulate
from ridgeline.engine.arrivals import Arrival, read_arrivals
from ridgeline.engine.metrics import Serving, summarise_recorded
from ridgeline.validation.figures import Figure

SOURCE = "LLMServingSim, vLLM 0.19 on one RTX 4090"
MODEL, DEVICE = "llama-3.1-8b", "rtx-4090"
LIMITS = {"kv_tokens": 41408, "block_size": 16, "batched_tokens": 2048, "sequences": 256, "headroom": 0}
#: A forecast, not a count: what one asks of a simulation that was fitted to kernels alone.
TOLERANCE = 0.1


@cache
def arrivals() -> list[Arrival]:
    """Every request with its recorded times, in seconds from the first arrival."""
    return read_arrivals(Path(str(files(__package__))) / "measured" / "serving_rtx-4090_llama-3.1-8b.csv")


@cache
def real() -> Serving:
    """The run, with the tokens between the first and the last at even distances."""
    return summarise_recorded(arrivals())


@cache
def simulated(tier: str | None = None) -> SimulatedServing:
    """The same requests simulated, with steps as long as the ``tier`` has them, by default the best."""
    return simulate(MODEL, DEVICE, arrivals(), tier=tier, **LIMITS)


def _figure(item: str, unit: str, published: str, compute) -> Figure:
    note = "simulated with constants fitted to 64 kernel times; within 10 %"
    return Figure(SOURCE, "300 requests", item, unit, published, compute, note, tolerance=TOLERANCE)


def _serving() -> Serving:
    return simulated().simulation.serving


FIGURES = (
    _figure("time to serve all", "s", "183.57", lambda: _serving().seconds),
    _figure("output throughput", "tokens/s", "1066.4", lambda: _serving().output_tokens_per_second),
    _figure("mean time per output token", "ms", "32.446", lambda: 1e3 * _serving().tpot.mean),
)
