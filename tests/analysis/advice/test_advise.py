"""Advice: the ranking follows the goal, and every suggestion holds what it claims."""

from __future__ import annotations

import pytest

from ridgeline.analysis.advice import advise
from ridgeline.analysis.advice.techniques import Assumptions
from ridgeline.analysis.explain import explain
from ridgeline.analysis.parallel import parallel
from ridgeline.errors import InputError
from ridgeline.predict.layout import Layout


def gains(found) -> dict[str, float]:
    return {s.technique: s.gain for s in found.suggestions}


def test_for_throughput_a_large_batch_wins_and_for_latency_it_loses():
    throughput = advise("llama-3-8b", "h100", goal="throughput")
    latency = advise("llama-3-8b", "h100", goal="latency")
    assert throughput.suggestions[0].technique.startswith("batches of")
    assert latency.suggestions[-1].technique.startswith("batches of")
    assert latency.suggestions[-1].gain < 1
    assert [s.gain for s in latency.suggestions] == sorted(
        (s.gain for s in latency.suggestions), reverse=True
    )


def test_a_gain_is_what_explain_says_of_both():
    found = advise("llama-3-8b", "a100", prompt=300, output=50)
    plain, small = (
        explain("llama-3-8b", on="a100", prompt=300, output=50, weights=weights).request.total_seconds
        for weights in (None, "int8")
    )
    assert gains(found)["weights in int8"] == pytest.approx(plain / small, rel=1e-3)


def test_what_makes_a_model_fit_ranks_first():
    found = advise("llama-3-8b", "rtx-4060", goal="latency")
    assert not found.now.fits
    fitting = [s.outcome.fits for s in found.suggestions]
    assert fitting[0]
    assert fitting == sorted(fitting, reverse=True)


def test_assumptions_decide_what_speculation_and_reuse_gain():
    never = advise("llama-3-8b", "h100", assumptions=Assumptions(0, 0, 0))
    always = advise("llama-3-8b", "h100", prompt=4096, assumptions=Assumptions(1, 1, 1))
    assert gains(never)["speculation with n-gram look-up"] < 1
    assert "reuse of shared prefixes" not in gains(never)
    assert gains(always)["speculation with n-gram look-up"] > 4
    assert gains(always)["reuse of shared prefixes"] > 1


def test_a_draft_must_have_the_models_vocabulary():
    found = advise("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    assert any("llama-3.2-1b" in s.technique for s in found.suggestions)
    with pytest.raises(InputError, match=r"gpt2 cannot draft for llama-3\.1-8b"):
        advise("llama-3.1-8b", "h100", draft="gpt2")


def test_what_is_in_use_already_would_be_missed():
    served = {u.technique: u.gain for u in advise("llama-3-8b", "a100", prompt=4096).in_use}
    assert served["KV cache"] > 5
    assert served["scores kept on chip (FlashAttention)"] > 1
    assert served["fused operators"] > 1


def test_an_encoder_gets_no_advice_on_decoding():
    found = advise("bert-base", "t4", goal="throughput", prompt=128)
    assert all("weights" in name or "batches" in name for name in gains(found))


def test_for_memory_bytes_count():
    found = advise("llama-3-8b", "h100", goal="memory", batch=16, prompt=4000)
    best = found.suggestions[0]
    assert best.gain == found.now.memory_bytes / best.outcome.memory_bytes > 1
    assert best.memory_bytes == best.outcome.memory_bytes - found.now.memory_bytes < 0


def test_a_config_without_weights_is_tried_with_random_ones():
    commands = [s.command for s in advise("llama-3-8b", "h100").suggestions]
    assert "ridgeline bench llama-3-8b --weights random:int8" in commands
    assert "ridgeline bench demo --weights int8" in [s.command for s in advise("demo", "h100").suggestions]


def test_devices_of_a_node_share_layers_where_there_are_links():
    found = advise("llama-3-70b", "h100-sxm", prompt=512)
    (shared,) = (s for s in found.suggestions if s.technique.startswith("tensor parallelism"))
    assert not found.now.fits
    assert shared.outcome.fits  # 141 GB over several of 80
    same = parallel("llama-3-70b", "h100-sxm", Layout(shared.plan.tensor), prompt=512)
    assert shared.outcome.total_seconds == same.figures.total_seconds
    assert not any("tensor" in name for name in gains(advise("llama-3-8b", "generic-cpu")))


def test_the_model_drafts_for_itself_behind_long_contexts_only():
    """Where reading the cache takes the time, a pass over little of it costs a part."""
    own = "speculation with the model itself through 544 tokens"
    assert own not in gains(advise("llama-3.1-8b", "h100", prompt=512))
    long = advise("llama-3.1-8b", "h100", prompt=100_000, batch=16, assumptions=Assumptions(0.9, 0.3, 0.5))
    assert gains(long)[own] > 1.05


def test_what_is_not_for_an_encoder_decoder_is_said():
    found = advise("t5-large", "h100-sxm")
    assert not any(name.startswith(("speculation", "reuse", "first 4")) for name in gains(found))
    reasons = " ".join(found.refused)
    for technique in ("speculation", "reuse of shared prefixes", "first and last tokens only"):
        assert f"{technique}: " in reasons


def test_a_request_as_long_as_the_window_is_advised_on():
    """Proposals behind the last tokens would reach beyond it."""
    found = advise("gpt2", "h100-sxm", prompt=1000, output=24)
    assert gains(found)["speculation with n-gram look-up"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "speed"}, "goal must be latency, throughput, memory, not 'speed'"),
        ({"prompt": 0}, "prompt must be 1 to"),
        ({"batch": 0}, "batch must be 1 to"),
        ({"prompt": 9000}, "takes 8192 tokens at most"),
        ({"weights": "int5"}, "int5"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        advise("llama-3-8b", "a100", **options)


def test_an_assumption_is_a_share():
    with pytest.raises(InputError, match="repeated must be from 0 to 1, not 2"):
        Assumptions(0.5, 2, 0.5)
