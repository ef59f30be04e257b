"""A simulated run on the terminal says every figure that it is judged by."""

from rich.console import Console

import ridgeline
from ridgeline.engine.arrivals import Arrival
from ridgeline.report.simulate import show_simulation


def shown(*arrivals):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_simulation(console, ridgeline.simulate("llama-3-8b", "h100-sxm", list(arrivals), tier="datasheet"))
    return console.export_text()


def test_latencies_throughput_cache_and_preemptions_are_shown():
    text = shown(Arrival(0.0, 512, 64), Arrival(0.1, 100, 10))
    for said in (
        "llama-3-8b on NVIDIA H100 SXM5 80 GB, in simulated time",
        "2 requests in",
        "612 prompt tokens, 74 output tokens",
        "p50",
        "p99",
        "time to first token (TTFT)",
        "time per output token (TPOT)",
        "between tokens (ITL)",
        "end to end",
        "output tokens/s, with prompts",
        "in use on average",
        "0 preemptions",
        "2,048 tokens and 256 sequences a step",
        "Stands on: datasheet",
        "an optimistic estimate",
    ):
        assert said in text


def test_single_tokens_have_no_time_between_them():
    [line] = [line for line in shown(Arrival(0.0, 5, 1)).splitlines() if line.startswith("between tokens")]
    assert line.split()[3:] == ["-"] * 4
