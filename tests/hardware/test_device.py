"""A device answers for its rates, survives its file unchanged, and a bad file is refused by name."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.hardware import (
    DTYPES,
    KINDS,
    Device,
    Level,
    OnChip,
    Provenance,
    cache_folder,
    load_device,
    save_device,
    this_machine_file,
)

PLAIN = """
name = "plain"
title = "A plain device"
kind = "cpu"
source = "a test"
date = "2026-01"
units = 4
exp_rate = 1e9
launch_seconds = 1e-6
link_name = "wire"
link_bandwidth = 1e9

[matrix]
bf16 = 4e12

[vector]
fp32 = 1e12

[on_chip]
cache = 1e6

[[levels]]
name = "L2"
capacity = 1e6
bandwidth = 4e11

[[levels]]
name = "DRAM"
capacity = 16e9
bandwidth = 1e11

[provenance]
matrix = "measured"
vector = "measured"
exp = "assumed"
memory = "measured"
levels = "measured"
launch = "measured"
link = "datasheet"
"""


@pytest.fixture
def plain(tmp_path) -> Device:
    return load_device(_written(tmp_path, PLAIN))


def _written(folder, text: str):
    path = folder / "device.toml"
    path.write_text(text)
    return path


# Rates


def test_main_memory_is_the_last_level(plain):
    assert plain.memory_bytes == 16e9
    assert plain.bandwidth == 1e11


def test_the_ridge_is_the_matrix_rate_over_main_memorys_bandwidth(plain):
    assert plain.ridge("bf16") == 40
    assert plain.ridge("fp32") == 10


def test_a_listed_rate_is_used_as_it_stands(plain):
    plain = replace(plain, matrix={"bf16": 4e12, "fp16": 3e12, "int8": 8e12})
    assert [plain.matrix_rate(dtype) for dtype in ("bf16", "fp16", "int8")] == [4e12, 3e12, 8e12]


@pytest.mark.parametrize(("listed", "asked"), [("bf16", "fp16"), ("fp16", "bf16")])
def test_one_16_bit_format_stands_for_the_other(plain, listed, asked):
    assert replace(plain, matrix={listed: 4e12}).matrix_rate(asked) == 4e12


@pytest.mark.parametrize("narrow", ["fp8", "fp4", "int8", "int4"])
def test_a_narrow_dtype_without_its_own_rate_is_computed_in_16_bits(plain, narrow):
    assert plain.matrix_rate(narrow) == 4e12


def test_a_wide_dtype_is_never_computed_in_a_narrower_one(plain):
    assert plain.matrix_rate("fp32") == plain.vector_rate("fp32")
    with pytest.raises(InputError, match="fp64"):
        plain.matrix_rate("fp64")


def test_without_a_matrix_unit_products_run_at_the_vector_rate(plain):
    bare = replace(plain, matrix={}, provenance={k: v for k, v in plain.provenance.items() if k != "matrix"})
    assert bare.matrix_rate("bf16") == bare.vector_rate("bf16") == 1e12


@pytest.mark.parametrize("method", ["matrix_rate", "vector_rate", "ridge"])
def test_an_unknown_dtype_is_refused_with_what_the_device_has(plain, method):
    with pytest.raises(InputError, match=r"plain .*'float13'.*matrix: bf16; vector: fp32"):
        getattr(plain, method)("float13")


# Files


def test_saving_replaces_the_file_and_leaves_nothing_else(plain, tmp_path):
    path = tmp_path / "new" / "folder" / "device.toml"
    save_device(replace(plain, title="first"), path)
    save_device(plain, path)
    assert load_device(path) == plain
    assert [file.name for file in path.parent.iterdir()] == ["device.toml"]


def test_a_save_that_fails_keeps_the_old_file(plain, tmp_path, monkeypatch):
    path = tmp_path / "device.toml"
    save_device(plain, path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(InputError, match="No space left"):
        save_device(replace(plain, title="second"), path)
    assert load_device(path) == plain
    assert [file.name for file in tmp_path.iterdir()] == ["device.toml"]


def test_a_path_that_cannot_be_written_is_named(plain, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the hardware file .*file/device.toml"):
        save_device(plain, tmp_path / "file" / "device.toml")


names = st.text(min_size=1).filter(str.strip)
amounts = st.floats(min_value=1e-300, max_value=1e300) | st.integers(1, 10**30)
rates = st.dictionaries(st.sampled_from(DTYPES), amounts)
sources = st.sampled_from(Provenance)
toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def devices(draw) -> Device:
    capacities = draw(st.lists(amounts, min_size=1, max_size=4, unique_by=float).map(sorted))
    levels = tuple(Level(draw(names), capacity, draw(amounts)) for capacity in capacities)
    on_chip = OnChip(draw(st.none() | amounts), draw(st.none() | amounts))
    optional = {
        "matrix": draw(rates),
        "storage": draw(st.none() | amounts),
        "link": draw(st.none() | amounts),
        "price": draw(st.none() | amounts | st.just(0)),
        "kernels": draw(st.dictionaries(st.text(), toml_values, max_size=3)),
    }
    sections = [name for name, value in optional.items() if value not in (None, {})]
    sections += ["levels"] if len(levels) > 1 or on_chip != OnChip() else []
    sections += ["vector", "exp", "memory", "launch"]
    return Device(
        name=draw(names),
        title=draw(names),
        kind=draw(st.sampled_from(KINDS)),
        source=draw(names),
        date=draw(names),
        provenance={section: draw(sources) for section in sections},
        units=draw(st.integers(1, 10**6)),
        vector=draw(rates.filter(bool)),
        exp_rate=draw(amounts),
        levels=levels,
        launch_seconds=draw(amounts | st.just(0.0)),
        matrix=optional["matrix"],
        clock_hz=draw(st.none() | amounts),
        on_chip=on_chip,
        storage_bandwidth=optional["storage"],
        link_name=draw(names) if optional["link"] is not None else None,
        link_bandwidth=optional["link"],
        price_per_hour=optional["price"],
        kernels=optional["kernels"],
    )


@given(device=devices())
@settings(max_examples=150, deadline=None)
def test_a_saved_device_loads_as_an_equal_one(device, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    save_device(device, path)
    loaded = load_device(path)
    assert loaded == device
    assert all(type(source) is Provenance for source in loaded.provenance.values())


def test_a_table_of_kernels_comes_back_unchanged(plain, tmp_path):
    kernels = {
        "matmul": {"bf16": {"rows": [1, 16], "points": [{"rows": 1, "seconds": 1.5e-6}, {"rows": 16}]}},
        'odd "key"\n\x7f': {"": [], "empty": {}, "no tabs\tor returns\r": True},
    }
    device = replace(plain, kernels=kernels, provenance={**plain.provenance, "kernels": Provenance.MEASURED})
    save_device(device, tmp_path / "kernels.toml")
    assert load_device(tmp_path / "kernels.toml").kernels == kernels


def test_fitted_constants_come_back_unchanged(plain, tmp_path):
    calibration = {"gemm": {"efficiency": 0.8, "slope": -1e-9, "waves": 2}, "elementwise": {}}
    provenance = {**plain.provenance, "calibration": Provenance.CALIBRATED}
    device = replace(plain, calibration=calibration, provenance=provenance)
    save_device(device, tmp_path / "calibrated.toml")
    assert load_device(tmp_path / "calibrated.toml") == device


@pytest.mark.parametrize("value", [nan, inf, "fast", True, [1.0], {"deeper": 1.0}])
def test_a_calibration_holds_finite_numbers_only(plain, value):
    with pytest.raises(InputError, match=r"calibration\.gemm\.efficiency must be a finite number"):
        replace(plain, calibration={"gemm": {"efficiency": value}})


def test_a_calibration_is_tables_by_kind(plain):
    with pytest.raises(InputError, match=r"calibration\.gemm must be a table of numbers"):
        replace(plain, calibration={"gemm": 0.8})


def test_figures_from_numpy_are_written_as_plain_numbers(plain, tmp_path):
    import numpy

    save_device(replace(plain, exp_rate=numpy.float64(0.1) * 3), tmp_path / "numpy.toml")
    assert load_device(tmp_path / "numpy.toml").exp_rate == 0.1 * 3


# This machine


def test_this_machine_is_the_measured_file_of_the_cache_folder(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    save_device(plain, this_machine_file())
    assert load_device("this") == load_device("Here") == plain


def test_an_unmeasured_machine_is_told_to_measure(tmp_path, monkeypatch):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="run `ridgeline measure` first"):
        load_device("this")


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("RIDGELINE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache_folder()) == "/home/someone/.cache/ridgeline"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert str(cache_folder()) == "/caches/ridgeline"
    monkeypatch.setenv("RIDGELINE_CACHE", "/own")
    assert str(cache_folder()) == "/own"


# Bad files


def _refusal(tmp_path, text: str) -> str:
    """What ``load_device`` says of a bad file: one line that names it."""
    path = _written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_device(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


REQUIRED = tomllib.loads(PLAIN).keys() - {"matrix", "on_chip", "link_name", "link_bandwidth"}
NUMBERS = {
    "units = 4": "units",
    "exp_rate = 1e9": "exp_rate",
    "launch_seconds = 1e-6": "launch_seconds",
    "link_bandwidth = 1e9": "link_bandwidth",
    "bf16 = 4e12": "matrix.bf16",
    "fp32 = 1e12": "vector.fp32",
    "cache = 1e6": "on_chip.cache",
    "capacity = 16e9": "levels.DRAM.capacity",
    "bandwidth = 4e11": "levels.L2.bandwidth",
}


@pytest.mark.parametrize("field", sorted(REQUIRED))
def test_a_missing_field_is_named(tmp_path, plain, field):
    text = PLAIN.replace(f"\n{field} = ", f"\n# {field} = ")
    text = text.replace(f"[{field}]", "[matrix.x]") if field in ("vector", "provenance") else text
    text = text.replace("[[levels]]", "[[kernels.x]]") if field == "levels" else text
    assert f"missing field {field}" in _refusal(tmp_path, text)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", '"fast"', "true", "[1]"])
@pytest.mark.parametrize("line", NUMBERS)
def test_a_value_that_is_no_positive_number_is_named_with_its_field(tmp_path, line, value):
    key = line.split(" = ")[0]
    message = _refusal(tmp_path, PLAIN.replace(f"\n{line}\n", f"\n{key} = {value}\n"))
    assert message.split(": ", 1)[1].startswith(f"{NUMBERS[line]} must be")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("units = 4", "units = 4\nspeed = 1", "unknown field speed"),
        ("cache = 1e6", "cache = 1e6\nl9 = 1", "unknown field on_chip.l9"),
        ('name = "L2"', 'name = "L2"\nlatency = 1', "unknown field levels.latency"),
        ('name = "L2"\n', "", "missing field levels.name"),
        ("bf16 = 4e12", "float13 = 4e12", "a dtype of matrix is 'float13'"),
        ('kind = "cpu"', 'kind = "abacus"', "kind is 'abacus'; choose one of: gpu, cpu"),
        ("date = ", "date = 2026-01-01 #", "date must be text"),
        ('source = "a test"', 'source = " "', "source must be text"),
        ("units = 4", "units = 4.5", "units must be a whole number"),
        ("units = 4", "units = 0", "units must be a positive"),
        ("exp_rate = 1e9", "exp_rate = 0", "exp_rate must be a positive"),
        ('link_name = "wire"\n', "", "link_name and link_bandwidth go together"),
        ("capacity = 1e6", "capacity = 17e9", "levels must grow towards main memory: L2"),
        ('exp = "assumed"', 'exp = "guessed"', "provenance.exp is 'guessed'"),
        ('exp = "assumed"', "exp = [1]", "provenance.exp is [1]"),
        ('exp = "assumed"\n', "", "provenance lacks exp"),
        ('exp = "assumed"', 'exp = "assumed"\nprice = "assumed"', "provenance.price is given"),
        ('exp = "assumed"', 'exp = "assumed"\ncolour = "assumed"', "a section of provenance is 'colour'"),
        ("[vector]\nfp32 = 1e12", "[vector]", "vector needs the rate"),
        ("units = 4", "units = 4\nkernels = 3", "kernels must be a table"),
        ("units = 4", "units = 4\ncalibration = 3", "calibration must be a table"),
        (
            'link = "datasheet"',
            'link = "datasheet"\n[calibration.gemm]\na = 1',
            "provenance lacks calibration",
        ),
        ("units = 4", "units = = 4", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path, old, new, expected):
    assert old in PLAIN
    assert expected in _refusal(tmp_path, PLAIN.replace(old, new, 1))


@pytest.mark.parametrize("levels", ["levels = 3", "levels = [1]", "levels = []"])
def test_levels_of_another_shape_are_refused(tmp_path, levels):
    text = PLAIN.replace("[[levels]]", "[[kernels.x]]").replace("units = 4", f"units = 4\n{levels}")
    assert ": levels " in _refusal(tmp_path, text)


def test_broken_toml_is_refused_with_its_line(tmp_path):
    assert "line 7" in _refusal(tmp_path, PLAIN.replace("units = 4", "units = = 4"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "device.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        load_device(path)


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no hardware file at .*absent.toml"):
        load_device(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="cannot read the hardware file"):
        load_device(f"{tmp_path}/")


@given(value=st.sampled_from([nan, inf, -inf, -1.0, 0.0]))
def test_a_level_needs_positive_finite_figures(value):
    with pytest.raises(InputError, match="capacity"):
        Level("L2", value, 1.0)
    with pytest.raises(InputError, match="bandwidth"):
        Level("L2", 1.0, value)
