import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ridgeline.errors import InputError
from ridgeline.weights.safetensors_header import DTYPES, MAX_HEADER_BYTES, read_header, read_metadata


def file_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def read(folder, content: bytes):
    file = folder / "model.safetensors"
    file.write_bytes(content)
    return read_header(file)


VALID = save(
    {"weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3), "bias": torch.ones(3)},
    metadata={"format": "pt"},
)


def test_every_dtype_of_the_format_has_torchs_name_and_size():
    for name, item_bytes in DTYPES.values():
        assert getattr(torch, name).itemsize == item_bytes


def test_lists_name_dtype_shape_and_place(tmp_path):
    tensors = read(tmp_path, VALID)
    assert set(tensors) == {"weight", "bias"}
    weight = tensors["weight"]
    assert (weight.dtype, weight.shape, weight.nbytes) == ("bfloat16", (2, 3), 12)
    stored = VALID[weight.offset : weight.offset + weight.nbytes]
    assert torch.frombuffer(bytearray(stored), dtype=torch.bfloat16).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_file_without_tensors_is_valid(tmp_path):
    assert read(tmp_path, file_bytes({})) == {}


def test_metadata_is_text_by_key(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(save({"w": torch.ones(2)}, {"format": "pt"}))
    assert read_metadata(file) == {"format": "pt"}
    file.write_bytes(file_bytes({}))
    assert read_metadata(file) == {}
    for broken in ("text", {"layers": 3}):
        file.write_bytes(file_bytes({"__metadata__": broken}))
        with pytest.raises(InputError, match="`__metadata__` is not text by key"):
            read_metadata(file)


def test_scalars_and_empty_tensors_are_valid(tmp_path):
    header = {"scalar": entry(shape=(), offsets=(0, 4)), "empty": entry(shape=(0, 7), offsets=(4, 4))}
    tensors = read(tmp_path, file_bytes(header, b"1234"))
    assert tensors["scalar"].nbytes == 4
    assert tensors["empty"].nbytes == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        (struct.pack("<Q", 10) + b"{}", "expected a header of 10 bytes, found 2"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (file_bytes(b"{]"), "broken header"),
        (file_bytes(b'{"\xff": 1}'), "broken header"),
        (file_bytes(b"[1]"), "not a JSON object"),
        (file_bytes(b"[" * 50_000), "broken header"),
        (file_bytes(b'{"a": {}, "a": {}}'), "a name appears twice"),
        (file_bytes({"w": 3}), "'w' is described wrongly"),
        (file_bytes({"w": entry(shape=[-2], offsets=(0, 8))}), "'w' is described wrongly"),
        (file_bytes({"w": entry(shape=[2.0])}), "'w' is described wrongly"),
        (file_bytes({"w": entry(offsets=[0])}), "'w' is described wrongly"),
        (file_bytes({"w": entry(dtype="F3")}, b"12345678"), "'w' has dtype 'F3'"),
        (file_bytes({"w": entry(shape=[3])}, b"12345678"), "needs 12 bytes, found data_offsets [0, 8] for 8"),
        (file_bytes({"w": entry(offsets=(8, 0))}, b"12345678"), "needs 8 bytes"),
        (file_bytes({"w": entry()}, b"1234"), "'w' ends at byte 8 of the data, found 4 bytes"),
        (file_bytes({"w": entry()}, b"123456789"), "describes 8 bytes of data, found 9"),
        (file_bytes({"w": entry(offsets=(4, 12))}, bytes(12)), "'w' leaves a hole before it"),
        (file_bytes({"v": entry(), "w": entry(offsets=(4, 12))}, bytes(12)), "'w' overlaps"),
        (file_bytes({"v": entry(), "w": entry()}, bytes(16)), "'w' overlaps"),
        (file_bytes({"w": entry(shape=[2**62, 2**62], offsets=(0, 2**126))}, bytes(8)), "truncated"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name_and_reason(tmp_path, content, problem):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert str(tmp_path / "model.safetensors") in message
    assert problem in message
    assert "\n" not in message


def test_truncation_at_any_byte_is_found(tmp_path):
    for length in range(len(VALID)):
        with pytest.raises(InputError):
            read(tmp_path, VALID[:length])


@settings(max_examples=300)
@given(data=st.data())
def test_damage_anywhere_never_escapes_as_another_error(tmp_path_factory, data):
    damaged = bytearray(VALID)
    for position in data.draw(st.lists(st.integers(0, len(VALID) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        tensors = read(tmp_path_factory.getbasetemp(), bytes(damaged))
    except InputError:
        return
    assert all(info.offset + info.nbytes <= len(damaged) for info in tensors.values())
