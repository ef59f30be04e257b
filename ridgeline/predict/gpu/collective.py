"""Calibrating the time of collectives between GPUs (:mod:`ridgeline.predict.collectives`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

import numpy as np

from ridgeline.hardware.cluster import Cluster
from ridgeline.hardware.device import Device
from ridgeline.predict.collectives import COLLECTIVES, CollectiveConstants, Links, seconds
from ridgeline.predict.gpu.fitting import Prior, fit_constants
from ridgeline.predict.gpu.kinds import Kind, Points

#: How far constants lie from what is usual. What protocols reach of a link differs little; how long they
#: take to begin differs more, and what a cluster's network reaches most.
SPREADS: Mapping[str, float] = {
    "small_start": 0.7,
    "bulk_start": 0.5,
    "reduce_start": 0.5,
    "hop": 0.5,
    "small_network_hop": 0.5,
    "bulk_network_hop": 0.5,
    "small_link": 1.5,
    "bulk_link": 0.2,
    "small_network": 1.0,
    "bulk_network": 1.0,
    "reduce_link": 0.2,
    "reduce_network": 0.2,
    "port_sharing": 0.5,
    "ports": 1.0,
}
#: Without a calibration every device has a port to itself, as its file says. A fit begins where devices share
#: them, and where the node's ports are too few for all: a limit that does not bind teaches nothing.
BEGIN = replace(CollectiveConstants(), port_sharing=1.5, ports=4.0)
PRIORS = {name: Prior(getattr(BEGIN, name), spread) for name, spread in SPREADS.items()}
#: A relative error counts squared up to this one: libraries choose algorithms by thresholds that jump.
TOLERANCE = 0.1


def seconds_of(device: Device, constants: CollectiveConstants, points: Points) -> np.ndarray:
    """Predicted seconds, [points]."""
    cluster = Cluster(device, 1)
    links = Links(cluster.link_bandwidth, cluster.network_bandwidth)
    found = np.zeros(len(points))
    for collective, mask, columns in _by_collective(points):
        found[mask] = seconds(constants, links, collective, *columns)
    return found


def fit(device: Device, points: Points) -> CollectiveConstants:
    """Constants fitted to all of ``points``; what they don't tell of stays as in BEGIN."""
    return fit_constants(
        CollectiveConstants,
        PRIORS,
        lambda constants: seconds_of(device, constants, points) / points.seconds - 1,
        TOLERANCE,
    )


def datasheet_seconds(device: Device, points: Points) -> np.ndarray:
    """What the links' bandwidths alone allow, [points]: no latency, and all that the datasheet says."""
    names = [f.name for f in fields(CollectiveConstants)]
    free = {name: 0.0 for name in names if name.endswith(("start", "hop"))}
    full = {name: 1.0 for name in names if name.endswith(("link", "network", "sharing"))}
    return seconds_of(device, CollectiveConstants(**free, **full, ports=8.0), points)


def _by_collective(points: Points) -> Iterator[tuple[str, np.ndarray, tuple[np.ndarray, ...]]]:
    """The points of each collective: a mask of [points], and their bytes, ranks and ranks a node."""
    for collective in COLLECTIVES:
        mask = points["collective"] == collective
        if mask.any():
            yield collective, mask, tuple(points[name][mask] for name in ("bytes", "ranks", "per_node"))


KIND = Kind(
    name="collective",
    numbers=("ranks", "per_node", "bytes"),
    constants=CollectiveConstants,
    seconds=seconds_of,
    fit=fit,
    share=12,
    texts={"collective": COLLECTIVES},
    roofline=datasheet_seconds,
)
