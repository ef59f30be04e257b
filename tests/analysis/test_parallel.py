"""Layouts of whole models: against single devices, by hand, and what a search finds and drops."""

from dataclasses import replace

import numpy
import pytest

from ridgeline.analysis.compare import Limits
from ridgeline.analysis.explain import explain
from ridgeline.analysis.layout_search import Fixed
from ridgeline.analysis.parallel import best_layouts, parallel
from ridgeline.analysis.replica import MEMORY_SHARE, Replica, Task, decode_sizes, prefill_sizes
from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.hardware.cluster import Cluster, load_cluster
from ridgeline.models import declare, load_config
from ridgeline.predict.collectives import Links, constants_of, seconds
from ridgeline.predict.layout import Layout

EIGHT = "llama-3.1-8b"


def test_one_device_takes_as_long_as_explain_says():
    load = {"prompt": 512, "output": 9, "batch": 4}
    ours = parallel(EIGHT, "h100-sxm:1", Layout(), **load).figures
    theirs = explain(EIGHT, "h100-sxm", **load)
    assert ours.ttft_seconds == pytest.approx(theirs.request.ttft_seconds)
    assert ours.tpot_seconds == pytest.approx(theirs.request.tpot_seconds, rel=1e-3)
    assert ours.weights == theirs.memory.weights
    assert ours.cache == theirs.memory.cache
    assert ours.activations == theirs.memory.activations
    assert (ours.prefill_communication, ours.decode_communication, ours.bubble) == (0, 0, 0)


def test_replicas_serve_their_share_of_the_requests_side_by_side():
    one = parallel(EIGHT, "h100-sxm:8", Layout(), batch=4).figures
    two = parallel(EIGHT, "h100-sxm:8", Layout(data=2), batch=8).figures
    assert two.total_seconds == one.total_seconds
    assert two.tokens_per_second == pytest.approx(2 * one.tokens_per_second)
    assert two.memory == one.memory


def test_tensor_ranks_exchange_what_their_collectives_take():
    found = parallel("llama-3-70b", "h100-sxm:8", Layout(tensor=8), prompt=512, output=2, batch=1)
    cluster = load_cluster("h100-sxm:8")
    links = Links(cluster.link_bandwidth, cluster.network_bandwidth)
    constants = constants_of(cluster.device)
    each = seconds(constants, links, "all_reduce", 8192 * 2, 8, 8)
    decode = [e for e in found.exchanges if e.phase == "decode" and e.collective == "all_reduce"]
    assert sum(e.times for e in decode) == 2 * 80 + 1
    assert sum(e.seconds for e in decode) == pytest.approx((2 * 80 + 1) * each)
    exchanged = sum(e.seconds for e in found.exchanges if e.phase == "decode")
    share = exchanged / found.figures.tpot_seconds
    assert found.figures.decode_communication == pytest.approx(share)


def test_a_pipeline_passes_micro_batches_from_stage_to_stage():
    """By hand, from the stages of one replica: eight requests in four micro-batches of two."""
    cluster = load_cluster("h100-sxm:8")
    task = Task(declare(load_config(EIGHT)), cluster, 512, 8, "bf16")
    batches = numpy.array([8])
    replica = Replica(task, 1, 1, "ring", decode_sizes([4], batches), prefill_sizes(512, 1, 8))
    assert replica.decode_sizes.tolist() == [2]
    step = replica.step(2, 4)  # the fourth of seven, in the middle
    stages = [stage.seconds for stage in step.costs.stages(4)]
    links = Links(cluster.link_bandwidth, cluster.network_bandwidth)
    send = seconds(constants_of(cluster.device), links, "send_recv", 2 * 4096 * 2, 2, 2, 1)
    expected = max(sum(stages) + 3 * send, 4 * (max(stages) + send))
    timing = replica.timing(4, batches)
    assert timing.tpot[0] == pytest.approx(expected)

    times = []
    for size in (1, 2, 4, 8):
        costs = replica.read(size).costs
        parts = [stage.seconds for stage in costs.stages(4)]
        send = seconds(constants_of(cluster.device), links, "send_recv", size * 512 * 4096 * 2, 2, 2, 1)
        times.append(sum(parts) + 3 * send + (8 // size - 1) * (max(parts) + send))
    assert timing.prefill[0] == pytest.approx(min(times))
    assert 0 < timing.bubble[0] < 3 / 4


def test_memory_is_divided_by_the_ranks_that_share_it():
    one = parallel(EIGHT, "h100-sxm:8", Layout(), prompt=4096, batch=2).figures
    tensor = parallel(EIGHT, "h100-sxm:8", Layout(tensor=4), prompt=4096, batch=2).figures
    stages = parallel(EIGHT, "h100-sxm:8", Layout(pipeline=4), prompt=4096, batch=2).figures
    context = parallel(EIGHT, "h100-sxm:8", Layout(context=4), prompt=4096, batch=2).figures
    assert tensor.cache == stages.cache == context.cache == one.cache / 4
    assert tensor.weights == pytest.approx(one.weights / 4, rel=1e-3)
    assert stages.weights > one.weights / 4  # the embedding and the head lie in one stage each
    assert context.weights == one.weights


def test_a_tied_table_is_held_by_both_ends_of_a_pipeline():
    one = parallel("qwen3-0.6b", "h100-sxm:2", Layout()).figures
    two = parallel("qwen3-0.6b", "h100-sxm:2", Layout(pipeline=2)).figures
    table = 151936 * 1024 * 2
    assert one.weights == declare(load_config("qwen3-0.6b")).weight_bytes()
    # each end has the table, and the last one the final norm too
    assert two.weights == pytest.approx((one.weights - table) / 2 + table, rel=1e-4)


def test_a_search_tries_every_layout_and_ranks_by_the_goal():
    (found,) = best_layouts("llama-3-70b", "h100-sxm", [8], goal="latency", prompt=512, output=64)
    totals = [f.total_seconds for f in found.search.candidates]
    assert totals == sorted(totals)
    by_hand = {}
    for tensor in (1, 2, 4, 8):
        for pipeline in range(1, 8 // tensor + 1):
            figures = parallel(
                "llama-3-70b", "h100-sxm:8", Layout(tensor, pipeline), prompt=512, output=64
            ).figures
            if figures.fits:
                by_hand[(tensor, pipeline)] = figures.total_seconds
    best = min(by_hand, key=by_hand.get)
    layout = found.best.figures.layout
    assert (layout.tensor, layout.pipeline) == best
    assert found.best.figures.total_seconds == pytest.approx(by_hand[best])


def test_what_a_search_shows_is_what_the_layout_gives_by_itself():
    (found,) = best_layouts("llama-3-70b", "h100-sxm", [16], goal="throughput", prompt=1024, output=128)
    first = found.search.candidates[0]
    alone = parallel(
        "llama-3-70b", "h100-sxm:8x2", first.layout, prompt=1024, output=128, batch=first.batch
    ).figures
    for name in ("ttft_seconds", "tpot_seconds", "tokens_per_second", "memory", "decode_communication"):
        assert getattr(alone, name) == pytest.approx(getattr(first, name)), name


def test_limits_hold_and_what_breaks_them_is_dropped_with_a_reason():
    free, held, none = (
        best_layouts("llama-3-70b", "h100-sxm", [8], goal="throughput", limits=limits)[0]
        for limits in (Limits(), Limits(tpot=0.02), Limits(tpot=0.001))
    )
    assert free.best.figures.tpot_seconds > 0.02 >= held.best.figures.tpot_seconds
    assert held.best.figures.tokens_per_second < free.best.figures.tokens_per_second
    assert {d.reason for d in held.search.dropped} == {"does not fit in memory", "TPOT above the limit"}
    assert none.best is None
    assert sum(d.count for d in none.search.dropped) == none.search.considered


def test_what_does_not_fit_is_never_best():
    for found in best_layouts("llama-3-405b", "h100-sxm", [8, 16, 24], goal="latency"):
        limit = MEMORY_SHARE * 80e9
        assert all(f.fits and f.memory <= limit for f in found.search.candidates)
        assert (found.best is None) == (found.devices == 8)


def test_fixed_axes_stay_fixed():
    (found,) = best_layouts("llama-3-70b", "h100-sxm", [16], fixed=Fixed(tensor=2, pipeline=4))
    assert {(f.layout.tensor, f.layout.pipeline) for f in found.search.candidates} == {(2, 4)}


def test_long_prompts_let_a_search_share_sequences():
    (found,) = best_layouts(EIGHT, "h100-sxm", [8], prompt=65_536, output=8)
    assert any(f.layout.context > 1 for f in found.search.candidates)
    assert found.best.figures.layout.context > 1


def test_replicas_without_a_request_are_not_counted():
    (found,) = best_layouts(
        EIGHT, "h100-sxm", [8], goal="latency", batch=2, fixed=Fixed(tensor=1, pipeline=1)
    )
    assert found.best.figures.layout.data == 2
    assert found.best.figures.devices == 2


def test_a_slow_network_keeps_tensor_ranks_inside_a_node():
    def tensor_ranks(network):
        device = replace(load_device("h100-sxm"), network_bandwidth=network)
        (found,) = best_layouts("llama-3-70b", Cluster(device, 8, 4), prompt=8000, output=1)
        return found.best.figures.layout.tensor

    assert tensor_ranks(2e9) == 4
    assert tensor_ranks(2e12) == 8


def test_a_search_counts_passes_once_for_all_numbers_of_devices(monkeypatch):
    """What makes a search fast: prefill and decode once for each number of tensor ranks, and again for what
    is shown of the best layouts."""
    counted = []
    monkeypatch.setattr(
        "ridgeline.analysis.replica.trace_step",
        lambda model, *args, **options: counted.append(model) or trace_step(model, *args, **options),
    )
    found = best_layouts("llama-3-70b", "h100-sxm", [16, 32, 64, 128], goal="throughput")
    tensors = (1, 2, 4, 8, 16, 32, 64)
    assert len(counted) <= 2 * len(tensors) + 4 * len(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layout": Layout(tensor=16)}, "the layout takes 16 devices .*, and there are 8"),
        ({"layout": Layout(tensor=3)}, "3 ranks can't share 32 heads"),
        ({"layout": Layout(tensor=2), "prompt": 200_000}, "takes 131072 tokens at most"),
        ({"layout": Layout(tensor=2), "output": 0}, "output must be 1 or more"),
        ({"layout": Layout(context=8), "prompt": 4}, "8 ranks can't share a prompt of 4 tokens"),
        ({"layout": Layout(pipeline=64), "on": "h100-sxm:8x8"}, "64 stages can't share 32 layers"),
    ],
)
def test_what_no_cluster_can_do_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        parallel(EIGHT, **{"on": "h100-sxm:8", **arguments})


def test_an_encoder_is_refused():
    with pytest.raises(InputError, match="is an encoder"):
        best_layouts("bert-base", "h100-sxm")


def test_an_unknown_goal_is_refused():
    with pytest.raises(InputError, match="goal must be latency or throughput"):
        best_layouts(EIGHT, "h100-sxm", goal="joy")
