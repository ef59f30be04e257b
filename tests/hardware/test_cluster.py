"""Clusters: how they are spelled, what they take from the device's file, and what is refused."""

import pytest

from ridgeline.errors import InputError
from ridgeline.hardware import Provenance, load_device
from ridgeline.hardware.cluster import NETWORK_BANDWIDTH, Cluster, load_cluster


@pytest.mark.parametrize(
    ("text", "devices", "per_node", "expected"),
    [
        ("h100-sxm:8x4", None, None, (32, 8, 4)),
        ("H100:4", None, None, (4, 4, 1)),
        ("h100-sxm", None, None, (8, 8, 1)),
        ("h100-sxm", 64, None, (64, 8, 8)),
        ("h100-sxm", 64, 4, (64, 4, 16)),
        ("h100-sxm", 4, None, (4, 4, 1)),
        ("h100-sxm", 12, None, (12, 8, 2)),
        ("l4", 2, 8, (2, 2, 1)),
    ],
)
def test_a_cluster_is_spelled_with_its_device_or_beside_it(text, devices, per_node, expected):
    found = load_cluster(text, devices, per_node)
    assert (found.devices, found.per_node, found.nodes) == expected


def test_links_are_those_of_the_devices_file():
    found = load_cluster("h100-sxm:8x2")
    assert (found.link_bandwidth, found.network_bandwidth) == (450e9, 50e9)
    assert found.basis["link"] is found.basis["network"] is Provenance.DATASHEET
    assert found.basis["collectives"] is Provenance.ASSUMED


def test_a_network_that_no_file_names_is_assumed_and_says_so():
    found = load_cluster("rtx-4090:2x2")
    assert found.network_bandwidth == NETWORK_BANDWIDTH
    assert found.basis["network"] is Provenance.ASSUMED


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("h100-sxm:8x4", 32), "already says how many"),
        (("h100-sxm:8x4", None, 8), "already says how many"),
        (("h100-sxm:0x4",), "must be 1 to"),
        (("h100-sxm", -1), "must be 1 to"),
        (("h100-sxm", 8, -2), "must be 1 to"),
        (("h1000:8",), "h1000"),
        (("h100-sxm:8x",), "unknown hardware"),
    ],
)
def test_what_is_no_cluster_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        load_cluster(*arguments)


def test_a_node_has_no_more_devices_than_there_are():
    assert Cluster(load_device("h100-sxm"), 4, 8).per_node == 4


def test_zero_devices_are_refused():
    with pytest.raises(InputError, match="devices must be 1 to"):
        Cluster(load_device("h100-sxm"), 0)
