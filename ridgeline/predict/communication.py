"""A shard's trace on one device of a cluster: its kernels, and what it exchanges with the others."""

from __future__ import annotations

from dataclasses import replace

from ridgeline.hardware.cluster import Cluster
from ridgeline.ops.kernel import Comm
from ridgeline.ops.numbers import Number, maximum
from ridgeline.ops.trace import Trace
from ridgeline.predict.collectives import Links, constants_of, seconds
from ridgeline.predict.layout import Layout
from ridgeline.predict.prediction import KernelTime, Prediction
from ridgeline.predict.times import predict

#: What a kernel that communicates is bound by.
LINK = "link"


def comm_seconds(comm: Comm, cluster: Cluster, layout: Layout) -> Number:
    """Seconds that it takes, all of its times."""
    group = layout.group(comm.axis, cluster.per_node)
    links = Links(cluster.link_bandwidth, cluster.network_bandwidth)
    once = seconds(
        constants_of(cluster.device),
        links,
        comm.collective,
        comm.bytes,
        group.ranks,
        group.per_node,
        group.concurrent,
    )
    return once * comm.times


def predict_shard(trace: Trace, cluster: Cluster, layout: Layout) -> Prediction:
    """The time of one rank's trace; what overlaps with the rest of its operator counts where it is longer.

    Raises InputError as :func:`~ridgeline.predict.predict` does.
    """
    found = predict(trace, cluster.device)
    comms = {
        (index, number): kernel.comm
        for index, op in enumerate(trace.ops)
        for number, kernel in enumerate(op.kernels(trace.lowering))
        if kernel.comm is not None
    }
    if not comms:
        return found
    times: list[KernelTime] = []
    seen = dict.fromkeys(range(len(trace.ops)), 0)
    for time in found.kernels:
        comm = comms.get((time.op_index, seen[time.op_index]))
        seen[time.op_index] += 1
        if comm is None:
            times.append(time)
            continue
        taken = comm_seconds(comm, cluster, layout)
        if comm.overlaps:
            computing = sum(t.seconds for t in times if t.op_index == time.op_index)
            taken = maximum(taken - computing, 0)
        times.append(replace(time, op_kind="communicate", seconds=taken, bound=LINK))
    unmeasured = tuple(
        name for name in found.unmeasured if name not in {c.collective for c in comms.values()}
    )
    basis = {**found.basis, **cluster.basis}
    return replace(found, kernels=tuple(times), basis=basis, unmeasured=unmeasured)
