"""Every file of the catalogue is complete, sourced, and free of the usual mistakes in datasheet figures."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ridgeline.errors import InputError
from ridgeline.hardware import Provenance, device_names, load_device
from ridgeline.hardware.device import KINDS
from ridgeline.hardware.files import ALIASES, CATALOGUE
from ridgeline.predict.gpu.generic import CALIBRATED

NAMES = device_names()

# Dense FLOP a clock of one unit in bf16 (fp16 before Ampere), accumulated in fp32. A figure with
# sparsity or, on GeForce, with accumulation in fp16 would be twice as high.
DENSE_FLOP_PER_CLOCK = {
    "v100-sxm2-32gb": 1024,
    "t4": 1024,
    "a100-40gb": 2048,
    "a100-80gb": 2048,
    "a40": 1024,
    "rtx-3090": 512,
    "rtx-4060": 512,
    "rtx-4090": 512,
    "rtx-5090": 512,
    "l4": 1024,
    "l40s": 1024,
    "h100-pcie": 4096,
    "h100-sxm": 4096,
    "h200": 4096,
    "h100-nvl": 4096,
    "a10": 1024,
    "rtx-a6000": 1024,
    "rtx-6000-ada": 1024,
    "rtx-pro-6000": 1024,
    "rtx-3060": 512,
    "rtx-4080": 512,
    "rtx-5080": 512,
    "jetson-agx-orin": 2048,
    "mi250x": 1024,
    "mi300x": 2048,
    "mi325x": 2048,
    "mi355x": 4096,
    "tpu-v5e": 4 * 2 * 128 * 128,
    "tpu-v5p": 4 * 2 * 128 * 128,
    "epyc-9755": 128,
    "ryzen-9950x": 128,
    "xeon-6980p": 1024,
    "epyc-9654": 64,
    "xeon-8480+": 1024,
    "generic-cpu": 32,
}

# Width of main memory in bits and Gbit/s a pin; of TPUs neither is published.
MEMORY = {
    "v100-sxm2-32gb": (4096, 1.754),
    "t4": (256, 10),
    "a100-40gb": (5120, 2.43),
    "a100-80gb": (5120, 3.186),
    "a40": (384, 14.5),
    "rtx-3090": (384, 19.5),
    "rtx-4060": (128, 17),
    "rtx-4090": (384, 21),
    "rtx-5090": (512, 28),
    "l4": (192, 12.5),
    "l40s": (384, 18),
    "h100-pcie": (5120, 3.186),
    "h100-sxm": (5120, 5.23),
    "h200": (6144, 6.25),
    "b200": (8192, 7.5),
    "mi300x": (8192, 5.2),
    "epyc-9654": (768, 4.8),
    "xeon-8480+": (512, 4.8),
    "generic-cpu": (128, 5.6),
    "apple-m2-ultra": (1024, 6.4),
    "apple-m4-max": (512, 8.533),
    "phone-ufs-3.2": (64, 8.4),
    "phone-ufs-4.0": (64, 9.6),
    "h100-nvl": (6144, 5.1),
    "a10": (384, 12.5),
    "rtx-a6000": (384, 16),
    "rtx-6000-ada": (384, 20),
    "rtx-pro-6000": (512, 28),
    "rtx-3060": (192, 15),
    "rtx-4080": (256, 22.4),
    "rtx-5080": (256, 30),
    "jetson-agx-orin": (256, 6.4),
    "mi250x": (8192, 3.2),
    "mi325x": (8192, 6.0),
    "mi355x": (8192, 8.0),
    "apple-m1-max": (512, 6.4),
    "apple-m3-ultra": (1024, 6.4),
    "apple-m4-pro": (256, 8.533),
    "epyc-9755": (768, 6.0),
    "ryzen-9950x": (128, 5.6),
    "xeon-6980p": (768, 8.8),
}
NVIDIA = [name for name in NAMES if load_device(name).title.startswith("NVIDIA")]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_bears_its_own_name(name):
    assert load_device(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_its_source_with_address_and_date(name):
    device = load_device(name)
    assert re.search(r"https://[a-z.]+\.(com|org)", device.source)
    assert re.fullmatch(r"20\d\d(-\d\d){0,2}", device.date)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_the_catalogue_claims_a_measurement(name):
    sections = dict(load_device(name).provenance)
    assert sections.pop("calibration", Provenance.CALIBRATED) is Provenance.CALIBRATED
    assert set(sections.values()) <= {Provenance.DATASHEET, Provenance.ASSUMED}


def test_the_calibrated_files_are_those_that_others_take_generic_constants_from():
    assert {name for name in NAMES if load_device(name).calibration} == set(CALIBRATED)


def test_titles_are_unique():
    titles = [load_device(name).title for name in NAMES]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", NAMES)
def test_the_ridge_in_bf16_is_plausible(name):
    low, high = {"gpu": (70, 430), "cpu": (10, 380), "tpu": (150, 600), "apple": (25, 40), "phone": (5, 15)}[
        load_device(name).kind
    ]
    assert low < load_device(name).ridge("bf16") < high


@pytest.mark.parametrize(
    ("name", "ridge"), [("a100-40gb", 200.6), ("a100-80gb", 153.0), ("h100-sxm", 295.3), ("h200", 206.1)]
)
def test_well_known_ridges(name, ridge):
    assert load_device(name).ridge("bf16") == pytest.approx(ridge, abs=0.1)


@pytest.mark.parametrize("name", DENSE_FLOP_PER_CLOCK)
def test_matrix_rates_are_dense_and_accumulated_in_32_bits(name):
    device = load_device(name)
    per_clock = device.matrix_rate("bf16") / device.units / device.clock_hz
    assert per_clock == pytest.approx(DENSE_FLOP_PER_CLOCK[name], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_halving_the_bits_doubles_the_rate_at_most(name):
    matrix = load_device(name).matrix
    rate_16 = matrix.get("bf16", matrix.get("fp16"))
    # GeForce halves products accumulated in fp32, which integers and fp4 are not held back by.
    unbound = 2 if name.startswith("rtx") else 1
    limits = {"tf32": 0.5, "fp8": 2, "int8": 2 * unbound, "int4": 4 * unbound, "fp4": 4 * unbound}
    for dtype, limit in limits.items():
        if dtype in matrix:
            assert matrix[dtype] <= 1.03 * limit * rate_16, dtype


@pytest.mark.parametrize("name", NAMES)
def test_the_vector_units_are_no_faster_than_the_matrix_units(name):
    device = load_device(name)
    for dtype in device.vector:
        assert device.vector_rate(dtype) <= device.matrix_rate(dtype), dtype


def test_every_memory_but_a_tpus_has_a_published_width():
    assert set(MEMORY) == {name for name in NAMES if load_device(name).kind != "tpu"}


@pytest.mark.parametrize("name", MEMORY)
def test_the_bandwidth_is_what_the_memorys_width_and_clock_give(name):
    bits, gbit_per_pin = MEMORY[name]
    assert load_device(name).bandwidth == pytest.approx(bits / 8 * gbit_per_pin * 1e9, rel=0.03)


@pytest.mark.parametrize("name", NVIDIA)
def test_an_nvidia_sm_computes_16_exponentials_a_clock(name):
    device = load_device(name)
    if device.clock_hz is None:
        assert device.provenance["exp"] == Provenance.ASSUMED
    else:
        assert device.exp_rate == pytest.approx(16 * device.units * device.clock_hz, rel=0.001)


@pytest.mark.parametrize("name", NAMES)
def test_launch_times_are_assumed_until_measured(name):
    assert load_device(name).provenance["launch"] == Provenance.ASSUMED


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_with_a_known_bandwidth_is_the_one_on_the_chip(name):
    device = load_device(name)
    for level in device.levels[:-1]:
        assert level.capacity == device.on_chip.cache
        assert level.bandwidth > device.bandwidth


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("rtx-4090", 24), ("a100-40gb", 40), ("h100-sxm", 80), ("h200", 141), ("rtx-4060", 8)],
)
def test_memory_is_the_cards(name, gigabytes):
    assert load_device(name).memory_bytes == gigabytes * 1e9


def test_the_phones_storage_gives_the_documents_token_rate():
    seconds = (7.7e9 - 3.5e9) / load_device("phone").storage_bandwidth
    assert seconds == pytest.approx(1.05)
    assert 1 / seconds == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("A100", "a100-80gb"),
        ("h100", "h100-sxm"),
        ("H100-PCIe", "h100-pcie"),
        ("RTX 4090", "rtx-4090"),
        ("rtx4060", "rtx-4060"),
        (" Xeon_8480+ ", "xeon-8480+"),
    ],
)
def test_names_are_found_however_people_write_them(given, name):
    assert load_device(given).name == name


def test_the_catalogue_reaches_from_phones_to_data_centres():
    assert len(NAMES) >= 40
    assert {load_device(name).kind for name in NAMES} == set(KINDS)


@pytest.mark.parametrize("name", [name for name in NAMES if load_device(name).price_per_hour is not None])
def test_a_price_names_its_source(name):
    text = (CATALOGUE / f"{name}.toml").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("price_per_hour"))
    assert "https://" in line or "price: https://" in text


def test_every_alias_leads_to_a_file_and_hides_none():
    assert set(ALIASES.values()) <= set(NAMES)
    assert not ALIASES.keys() & set(NAMES)


@pytest.mark.parametrize(("given", "close"), [("h10", "h100"), ("rtx-4091", "rtx-4090"), ("mi300", "mi300x")])
def test_an_unknown_name_is_answered_with_the_closest(given, close):
    with pytest.raises(InputError, match=f"unknown hardware '{given}'; closest: .*{close}"):
        load_device(given)


@pytest.mark.parametrize("given", ["zzzz", "", "..", "*"])
def test_a_name_like_no_other_is_answered_with_all(given):
    with pytest.raises(InputError, match=r"choose one of: a10, a100-40gb, .*xeon-8480\+"):
        load_device(given)


def test_a_catalogue_file_loads_without_numpy_or_torch():
    code = "import sys; from ridgeline.hardware import load_device; load_device('h100'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "torch", "rich", "plotly", "json", "difflib"} & set(modules.split())
