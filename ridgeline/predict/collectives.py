"""The time of a collective over described links: by algorithm, size, ranks, and ranks a node.

Every algorithm is a number of hops and a number of bytes that each rank sends (Thakur, Rabenseifner and
Gropp, 2005): a hop costs its latency (alpha), a byte the inverse of the bandwidth that it crosses (beta).
There are two protocols: one of low latency, and one of high bandwidth that takes longer to begin. Least
time chooses among algorithms and protocols, as a good library would. A real one chooses by thresholds of
its own and is now and then wrong; then it takes longer than this.

``nbytes`` is always the whole tensor: what every rank holds before an all-reduce or a reduce-scatter and
after an all-gather, what a rank hands out in an all-to-all (its own part included), and what a send
carries. Any number may be a NumPy array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.ops.numbers import Number, is_array, maximum, minimum, where

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")


@dataclass(frozen=True)
class Links:
    """Bytes/s in one direction: out of a device to those of its node, and out of a device's network port."""

    link: float
    network: float


@dataclass(frozen=True)
class CollectiveConstants:
    """What a library and its links make of the datasheet's bandwidths; latencies in seconds.

    ``small`` is the protocol of low latency, ``bulk`` that of high bandwidth. ``link`` and ``network``
    are the shares of the datasheet's bandwidth that they reach, and ``reduce`` what is left of these
    where ranks also add. ``hop`` passes from device to device inside a node. ``port_sharing`` devices
    have one network port between them, and a node sends at most as much as ``ports`` ports.

    What is usual, without arguments, was rounded from all-reduces and sends on A100 nodes (Microsoft Vidur's
    profiles), but for the network, whose shares differ from cluster to cluster: there it is assumed.
    """

    small_start: float = 8e-6
    bulk_start: float = 1.4e-5
    reduce_start: float = 3e-5
    hop: float = 2e-6
    small_network_hop: float = 1.5e-5
    bulk_network_hop: float = 1.5e-5
    small_link: float = 0.1
    bulk_link: float = 0.9
    small_network: float = 0.3
    bulk_network: float = 0.8
    reduce_link: float = 0.7
    reduce_network: float = 0.8
    port_sharing: float = 1.0
    ports: float = 8.0


def seconds(
    constants: CollectiveConstants,
    links: Links,
    collective: str,
    nbytes: Number,
    ranks: Number,
    per_node: Number,
    concurrent: Number = 1,
) -> Number:
    """Seconds of one collective among ``ranks`` ranks, ``per_node`` of them on each node, while
    ``concurrent`` groups of a node do the same. Nothing for one rank. Raises InputError for an unknown
    collective."""
    return _least(algorithms(constants, links, collective, nbytes, ranks, per_node, concurrent)) * where(
        ranks > 1, 1, 0
    )


def chosen(
    constants: CollectiveConstants,
    links: Links,
    collective: str,
    nbytes: float,
    ranks: int,
    per_node: int,
    concurrent: int = 1,
) -> str:
    """The algorithm and protocol of least time, such as ``ring, bulk``."""
    times = algorithms(constants, links, collective, nbytes, ranks, per_node, concurrent)
    return min(times, key=times.get)


def algorithms(
    constants: CollectiveConstants,
    links: Links,
    collective: str,
    nbytes: Number,
    ranks: Number,
    per_node: Number,
    concurrent: Number = 1,
) -> dict[str, Number]:
    """Seconds by algorithm and protocol; infinite where the ranks don't allow it (one-shot across nodes)."""
    if collective not in _ALGORITHMS:
        raise InputError(f"unknown collective '{collective}'; choose one of: {', '.join(COLLECTIVES)}")
    per_node = minimum(per_node, ranks)
    paths = {
        protocol: _Path(constants, links, protocol, ranks, per_node, concurrent, collective)
        for protocol in ("small", "bulk")
    }
    return {
        f"{name}, {protocol}": path.start + algorithm(path, nbytes)
        for protocol, path in paths.items()
        for name, algorithm in _ALGORITHMS[collective].items()
    }


class _Path:
    """The way between ``ranks`` ranks by one protocol: its start, latencies and bandwidths."""

    def __init__(self, constants, links, protocol, ranks, per_node, concurrent, collective) -> None:
        small, reduces = protocol == "small", collective in ("all_reduce", "reduce_scatter")
        self.ranks, self.per_node = ranks, per_node
        self.nodes = -(-ranks // per_node)
        self.start = constants.small_start if small else constants.bulk_start
        if reduces and not small:
            self.start = self.start + constants.reduce_start
        self.hop = constants.hop
        self.network_hop = constants.small_network_hop if small else constants.bulk_network_hop
        link = links.link * (constants.small_link if small else constants.bulk_link)
        port = links.network * (constants.small_network if small else constants.bulk_network)
        if reduces and not small:
            link, port = link * constants.reduce_link, port * constants.reduce_network
        self.link = link

        def out_of_node(senders: Number) -> Number:
            return minimum(maximum(1, senders / constants.port_sharing), constants.ports) * port

        #: Of the whole group's ranks on a node, and of one of them.
        self.network = minimum(out_of_node(per_node), out_of_node(per_node * concurrent) / concurrent)
        self.port = minimum(port, out_of_node(per_node * concurrent) / (per_node * concurrent))
        if collective == "send_recv":
            self.port = minimum(port, out_of_node(concurrent) / concurrent)

    @property
    def crosses(self) -> Number:
        return self.nodes > 1

    @property
    def slowest(self) -> Number:
        """Bytes/s round a ring of all ranks, which leaves each node through all of its ports."""
        network = where(self.per_node > 1, minimum(self.link, self.network), self.network)
        return where(self.crosses, network, self.link)

    def steps(self, count: Number) -> Number:
        """Latency of so many hops round a ring, of which one a node goes over the network."""
        crossing = where(self.crosses, self.nodes / self.ranks, 0)
        return count * ((1 - crossing) * self.hop + crossing * self.network_hop)


def _ring_all_reduce(path: _Path, nbytes: Number) -> Number:
    count = 2 * (path.ranks - 1)
    return path.steps(count) + count / path.ranks * nbytes / path.slowest


def _tree_all_reduce(path: _Path, nbytes: Number) -> Number:
    """A chain inside each node, and two trees over the nodes that share the data (NCCL's double binary tree).

    A rank passes the data on once on the way up and once on the way down. So does a node, but for the root
    of one tree and the leaves of the other: of two nodes each passes all of it on once.
    """
    latency = 2 * ((path.per_node - 1) * path.hop + _depth(path.nodes) * path.network_hop)
    inside = where(path.per_node > 1, 2, 0) * nbytes / path.link
    across = where(path.nodes == 2, 1, 2) * nbytes / path.network
    return latency + where(path.crosses, maximum(inside, across), inside)


def _one_shot_all_reduce(path: _Path, nbytes: Number) -> Number:
    """Every rank reads all others' tensors at once."""
    return where(path.crosses, float("inf"), path.hop + (path.ranks - 1) * nbytes / path.link)


def _ring_half(path: _Path, nbytes: Number) -> Number:
    """An all-gather or a reduce-scatter: half of an all-reduce."""
    count = path.ranks - 1
    return path.steps(count) + count / path.ranks * nbytes / path.slowest


def _direct_half(path: _Path, nbytes: Number) -> Number:
    moved = (path.ranks - 1) / path.ranks * nbytes
    return where(path.crosses, float("inf"), path.hop + moved / path.link)


def _pairwise(path: _Path, nbytes: Number) -> Number:
    """Every rank sends its parts to all others, to those of its node while to those of other nodes."""
    inside = path.hop + (path.per_node - 1) / path.ranks * nbytes / path.link
    outside = path.network_hop + (path.ranks - path.per_node) / path.ranks * nbytes / path.port
    return where(path.crosses, maximum(inside, outside), inside)


def _send(path: _Path, nbytes: Number) -> Number:
    return where(
        path.crosses,
        path.network_hop + nbytes / path.port,
        path.hop + nbytes / path.link,
    )


_ALGORITHMS = {
    "all_reduce": {"ring": _ring_all_reduce, "tree": _tree_all_reduce, "one-shot": _one_shot_all_reduce},
    "all_gather": {"ring": _ring_half, "direct": _direct_half},
    "reduce_scatter": {"ring": _ring_half, "direct": _direct_half},
    "all_to_all": {"pairwise": _pairwise},
    "send_recv": {"direct": _send},
}


def _depth(nodes: Number) -> Number:
    """Levels of a binary tree over so many nodes."""
    if is_array(nodes):
        import numpy

        return numpy.ceil(numpy.log2(nodes))
    return ceil(log2(nodes))


def _least(times: Mapping[str, Number]) -> Number:
    least: Number = float("inf")
    for time in times.values():
        least = minimum(least, time)
    return least


def constants_of(device: Device) -> CollectiveConstants:
    """Those fitted to clusters of the device, or else the usual ones."""
    found = device.calibration.get("collective")
    return CollectiveConstants() if found is None else CollectiveConstants(**found)
