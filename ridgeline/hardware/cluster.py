"""Several devices of one kind: how many of them a node holds, and what links them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, Provenance
from ridgeline.hardware.files import load_device

#: What is taken where a device's file does not say: a node of eight, PCIe 4 x16 inside it, and one
#: 100 Gb/s port a device between nodes.
NODE_DEVICES = 8
LINK_BANDWIDTH = 32e9
NETWORK_BANDWIDTH = 12.5e9
#: The most devices that are taken to be meant.
MOST = 1 << 20

_SPELLING = re.compile(r"(?P<device>.+):(?P<per_node>\d+)(x(?P<nodes>\d+))?")


@dataclass(frozen=True)
class Cluster:
    """``devices`` alike in nodes of ``per_node``, the last of which may have fewer.

    ``per_node`` is by default what the device's own node holds. Raises InputError for numbers below 1.
    """

    device: Device
    devices: int
    per_node: int = 0

    def __post_init__(self) -> None:
        if self.per_node == 0 and type(self.devices) is int:
            own = self.device.node_devices or NODE_DEVICES
            object.__setattr__(self, "per_node", min(own, self.devices))
        for name in ("devices", "per_node"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise InputError(f"{name} must be 1 to {MOST:,}, not {value!r}")
        if self.per_node > self.devices:
            object.__setattr__(self, "per_node", self.devices)

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.per_node)

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s out of a device to those of its node, in one direction."""
        return self.device.link_bandwidth or LINK_BANDWIDTH

    @property
    def network_bandwidth(self) -> float:
        """Bytes/s that a device has between nodes, in one direction."""
        return self.device.network_bandwidth or NETWORK_BANDWIDTH

    @property
    def basis(self) -> Mapping[str, Provenance]:
        """What the links' figures stand on; that of fitted constants where there are any."""
        found = {
            "link": self.device.provenance.get("link", Provenance.ASSUMED),
            "network": self.device.provenance.get("network", Provenance.ASSUMED),
        }
        if "collective" in self.device.calibration:
            found["collectives"] = self.device.provenance["calibration"]
        else:
            found["collectives"] = Provenance.ASSUMED
        return found


def load_cluster(text: str, devices: int | None = None, per_node: int | None = None) -> Cluster:
    """``h100-sxm:8x4`` (eight a node, four nodes), ``h100-sxm:8`` (one node), or a device's name or file
    with the numbers beside it. Without any it is one node of the device's own size.

    Raises InputError for what is unknown, and for numbers given twice.
    """
    match = _SPELLING.fullmatch(text.strip())
    if match is None:
        device = load_device(text)
        own = device.node_devices or NODE_DEVICES
        if per_node == 0:  # which a Cluster takes for the vendor's own number
            raise InputError(f"per_node must be 1 to {MOST:,}, not 0")
        return Cluster(device, own if devices is None else devices, per_node or 0)
    if devices is not None or per_node is not None:
        raise InputError(f"'{text}' already says how many devices: leave --devices and --per-node out")
    inside, nodes = int(match["per_node"]), int(match["nodes"] or 1)
    return Cluster(load_device(match["device"]), inside * nodes, inside)
