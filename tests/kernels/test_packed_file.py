"""Packed weights on disk: what is saved comes back, in place, without being read before it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ridgeline.errors import InputError
from ridgeline.kernels import linear, open_packed, pack_linear, save_packed
from ridgeline.kernels.packed_file import ALIGNMENT
from ridgeline.weights.safetensors_header import read_header
from tests.kernels.linear_twin import FORMATS

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights():
    """A weight of every format, every other one gated."""
    return {
        f"layer.{i}": pack_linear(draw(i, 2 * (5 + 20 * i), 33 + 40 * i), format, gated=bool(i % 2))
        for i, format in enumerate(FORMATS)
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.packed"
    save_packed(path, weights(), {"made of": "noise"})
    return path


def test_weights_come_back_as_they_were_saved(saved):
    opened = open_packed(saved)
    assert list(opened) == list(weights())
    assert len(opened) == len(FORMATS)
    assert opened.metadata == {"made of": "noise"}
    for name, packed in weights().items():
        got = opened[name]
        assert (got.shape, got.format, got.gated) == (packed.shape, packed.format, packed.gated)
        assert torch.equal(got.data, packed.data)
        activation = "silu_gated" if packed.gated else None
        x = draw(99, 3, packed.shape[1])
        assert torch.equal(linear(x, got, activation=activation), linear(x, packed, activation=activation))


@few
@given(st.sampled_from(FORMATS), st.integers(1, 70), st.integers(1, 300), st.text(max_size=20))
def test_any_shape_and_name_survives_and_lies_on_a_cache_line(tmp_path, format, out, inputs, name):
    packed = pack_linear(draw(out, out, inputs), format)
    save_packed(tmp_path / "w", {name: packed, name + "again": packed}, {name: name})
    opened = open_packed(tmp_path / "w")
    assert opened.metadata == {name: name}
    for weight in opened.values():
        assert torch.equal(weight.data, packed.data)
        assert weight.data.data_ptr() % ALIGNMENT == 0


def test_the_file_is_safetensors_to_others_too(saved):
    with safe_open(saved, "pt") as file:
        assert sorted(file.keys()) == sorted(weights())
        assert file.metadata()["made of"] == "noise"
        assert torch.equal(file.get_tensor("layer.3"), weights()["layer.3"].data)


def test_no_weights_are_a_file_too(tmp_path):
    save_packed(tmp_path / "w", {})
    assert len(open_packed(tmp_path / "w")) == 0


def test_saving_replaces_a_file_whose_weights_are_in_use(saved):
    before = open_packed(saved)["layer.0"]
    copy = before.data.clone()
    save_packed(saved, {"other": pack_linear(torch.ones(4, 4), "fp32")})
    assert torch.equal(before.data, copy)
    assert list(open_packed(saved)) == ["other"]
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


#: Prints the growth of anonymous and of file-backed memory by opening, and by a product with every weight.
MEASURE = """
import sys
import torch
from ridgeline.kernels import linear, open_packed

def memory():
    lines = open("/proc/self/status").read().splitlines()
    fields = dict(line.split(":") for line in lines)
    return [int(fields[name].split()[0]) for name in ("RssAnon", "RssFile")]

x = torch.ones(1, 4096)
start = memory()
opened = open_packed(sys.argv[1])
after_opening = memory()
for packed in opened.values():
    linear(x, packed)
after_use = memory()
for now in (after_opening, after_use):
    print(*(b - a for a, b in zip(start, now)))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_opening_reads_no_weight_and_using_them_takes_no_anonymous_memory(tmp_path):
    packed = pack_linear(draw(1, 512, 4096), "bf16")
    save_packed(tmp_path / "w", {str(i): packed for i in range(16)})
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "w"], capture_output=True, text=True, check=True
    )
    (opened_anonymous, opened_file), (used_anonymous, used_file) = (
        [int(kib) for kib in line.split()] for line in run.stdout.splitlines()
    )
    whole = 16 * packed.nbytes // 1024
    assert opened_anonymous < whole / 20
    assert opened_file < whole / 20
    assert used_anonymous < whole / 20
    assert used_file > whole * 0.9


# -- refusals --------------------------------------------------------------------------------------


def rewrite(path: Path, change) -> None:
    """Changes the table of packed weights; the data stays where it is."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    table = json.loads(header["__metadata__"]["ridgeline.packed"])
    replaced = change(table)
    table = replaced if isinstance(replaced, list) else table
    header["__metadata__"]["ridgeline.packed"] = json.dumps(table)
    new = json.dumps(header).encode()
    new += b" " * (-(8 + len(new)) % ALIGNMENT)
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved, length):
    content = saved.read_bytes()
    saved.write_bytes(content[:length])
    with pytest.raises(InputError, match=rf"{saved.name} is truncated"):
        open_packed(saved)


def test_files_of_other_kinds_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"cannot be read"):
        open_packed(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is no weight")
    with pytest.raises(InputError, match=r"text is not a safetensors file"):
        open_packed(tmp_path / "text")
    save_file({"w": torch.ones(3)}, tmp_path / "plain")
    with pytest.raises(
        InputError, match=r"plain holds no packed weights; give a file that save_packed wrote"
    ):
        open_packed(tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update(version=2),
            "version 2 of the layout, and this is version 1: pack the model again",
        ),
        (lambda t: t.pop("version"), "broken table"),
        (lambda t: [t], "broken table"),
        (lambda t: t.update(weights=[]), "broken table"),
        (lambda t: t["weights"].pop("layer.1"), "no bytes or no description of 'layer.1'"),
        (lambda t: t["weights"].update(extra={}), "no bytes or no description of 'extra'"),
        (lambda t: t["weights"]["layer.1"].pop("gated"), "weight 'layer.1' is described wrongly"),
        (lambda t: t["weights"]["layer.1"].update(shape=[3]), "weight 'layer.1' is described wrongly"),
        (
            lambda t: t["weights"]["layer.1"].update(shape=[10**30, 2]),
            "weight 'layer.1' is described wrongly",
        ),
        (lambda t: t["weights"]["layer.1"].update(shape=[50, 80]), "weight 'layer.1': data is uint8"),
        (lambda t: t["weights"]["layer.1"].update(shape=[0, -3]), "weight 'layer.1': weight is"),
        (lambda t: t["weights"]["layer.1"].update(format="int3"), "weight 'layer.1': format is 'int3'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        open_packed(saved)


def test_weights_between_cache_lines_are_refused(saved):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * 4
    saved.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert next(iter(read_header(saved).values())).offset % ALIGNMENT == 4
    with pytest.raises(InputError, match=r"begins at no multiple of 64 bytes: write it with save_packed"):
        open_packed(saved)


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("weights", ({"w": torch.ones(3, 3)},)),
        ("weights", ({3: pack_linear(torch.ones(3, 3), "fp32")},)),
        ("weights", ({"__metadata__": pack_linear(torch.ones(3, 3), "fp32")},)),
        ("metadata", ({}, {"layers": 3})),
        ("metadata", ({}, {"ridgeline.packed": "mine"})),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(tmp_path, named, arguments):
    with pytest.raises(InputError, match=rf"^{named} has "):
        save_packed(tmp_path / "w", *arguments)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"):
        save_packed(tmp_path / "missing" / "w", {})
