import gc
import json
import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ridgeline.errors import InputError
from ridgeline.weights.checkpoint import Checkpoint

WEIGHTS = {
    "model.embed.weight": torch.randn(8, 4),
    "model.norm.weight": torch.randn(4).to(torch.bfloat16),
    "lm_head.weight": torch.randn(8, 4).to(torch.float16),
}


def write_single(folder: Path, tensors=WEIGHTS) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    """Two shards: embed and norm in the first, the head in the second."""
    shards = {
        "model-00001-of-00002.safetensors": ["model.embed.weight", "model.norm.weight"],
        "model-00002-of-00002.safetensors": ["lm_head.weight"],
    }
    for file, names in shards.items():
        save_file({name: WEIGHTS[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def anonymous_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Anonymous line")


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_tensors_come_back_as_they_were_saved(tmp_path, write):
    checkpoint = Checkpoint.open(write(tmp_path))
    assert set(checkpoint.names()) == set(WEIGHTS)
    for name, saved in WEIGHTS.items():
        loaded = checkpoint.tensor(name)
        assert loaded.dtype == saved.dtype
        assert torch.equal(loaded, saved)
        info = checkpoint.expect(name, tuple(saved.shape))
        assert (info.name, info.shape, info.file.parent) == (name, saved.shape, tmp_path)
        assert f"torch.{info.dtype}" == str(saved.dtype)
        assert name in checkpoint
    assert "model.embed.bias" not in checkpoint


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([True, False]),
        torch.tensor(3.5),
        torch.empty(0, 4, dtype=torch.bfloat16),
        torch.tensor([1, -2], dtype=torch.int8),
        torch.tensor([1 + 2j]),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.tensor([2**63], dtype=torch.uint64),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)
def test_any_dtype_and_shape_survives(tmp_path, tensor):
    loaded = Checkpoint.open(write_single(tmp_path, {"w": tensor})).tensor("w")
    assert loaded.dtype == tensor.dtype
    assert loaded.shape == tensor.shape
    assert loaded.flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
def test_reading_every_weight_takes_no_anonymous_memory(tmp_path):
    megabytes = 64
    big = {f"layer.{i}": torch.full((1 << 22,), i, dtype=torch.bfloat16) for i in range(megabytes // 8)}
    write_single(tmp_path, big)
    sums = [int(w.view(torch.int16).max()) for w in big.values()]
    del big
    gc.collect()
    before = anonymous_bytes()
    checkpoint = Checkpoint.open(tmp_path)
    weights = [checkpoint.tensor(name) for name in sorted(checkpoint.names())]
    assert [int(w.view(torch.int16).max()) for w in weights] == sums
    assert anonymous_bytes() - before < megabytes * 1e6 / 20


def test_a_file_larger_than_memory_opens(tmp_path):
    data_bytes = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, data_bytes]}}
    ).encode()
    file = tmp_path / "model.safetensors"
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        try:
            stream.truncate(8 + len(header) + data_bytes)  # a hole: takes no space on disk
        except OSError:
            pytest.skip("the file system has no files this large")
    weight = Checkpoint.open(tmp_path).tensor("w")
    assert weight[-1] == 0
    file.unlink()


def test_a_tensor_can_be_written_without_a_warning_and_without_changing_the_file(tmp_path):
    write_single(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight = Checkpoint.open(tmp_path).tensor("model.embed.weight")
    weight.zero_()
    assert torch.equal(Checkpoint.open(tmp_path).tensor("model.embed.weight"), WEIGHTS["model.embed.weight"])


def test_a_tensor_outlives_its_checkpoint(tmp_path):
    weight = Checkpoint.open(write_single(tmp_path)).tensor("model.embed.weight")
    gc.collect()
    assert torch.equal(weight, WEIGHTS["model.embed.weight"])


def test_data_at_an_odd_offset_is_copied_to_an_aligned_place(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * ((1 - len(header)) % 4)  # the data then starts one byte past a multiple of four
    content = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.5, -2.0)
    (tmp_path / "model.safetensors").write_bytes(content)
    weight = Checkpoint.open(tmp_path).tensor("w")
    assert weight.tolist() == [1.5, -2.0]
    assert weight.data_ptr() % 4 == 0


def test_a_missing_tensor_names_the_file_and_the_closest_name(tmp_path):
    checkpoint = Checkpoint.open(write_single(tmp_path))
    with pytest.raises(InputError) as caught:
        checkpoint.expect("model.embd.weight", (8, 4))
    message = str(caught.value)
    assert str(tmp_path / "model.safetensors") in message
    assert "'model.embd.weight'" in message
    assert "closest: 'model.embed.weight'" in message
    assert "[8, 4]" in message
    with pytest.raises(InputError, match="no tensor 'xyz'"):
        checkpoint.tensor("xyz")


def test_a_missing_tensor_of_a_sharded_checkpoint_names_the_shards(tmp_path):
    with pytest.raises(InputError, match=r"index\.json \(model-00001-of-00002\.safetensors, model-00002-of"):
        Checkpoint.open(write_sharded(tmp_path)).info("model.embed.bias")


def test_a_wrong_shape_names_file_tensor_expected_and_found(tmp_path):
    checkpoint = Checkpoint.open(write_sharded(tmp_path))
    with pytest.raises(InputError) as caught:
        checkpoint.expect("lm_head.weight", (16, 4))
    message = str(caught.value)
    assert str(tmp_path / "model-00002-of-00002.safetensors") in message
    assert "'lm_head.weight': expected shape [16, 4], found [8, 4]" in message


def test_the_single_file_goes_before_an_index(tmp_path):
    write_sharded(tmp_path)
    write_single(tmp_path, {"w": torch.ones(1)})
    assert Checkpoint.open(tmp_path).names() == ("w",)


def test_a_tensor_that_the_index_does_not_list_is_left_out(tmp_path):
    write_sharded(tmp_path)
    write_index(tmp_path, {"lm_head.weight": "model-00002-of-00002.safetensors"})
    assert Checkpoint.open(tmp_path).names() == ("lm_head.weight",)


def test_a_missing_shard_is_named(tmp_path):
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json names the shard model-00002-of-00002\.safetensors"):
        Checkpoint.open(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    write_sharded(tmp_path)
    write_index(tmp_path, {"model.norm.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(
        InputError, match=r"model-00002-of-00002\.safetensors: no tensor 'model\.norm\.weight'"
    ):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "weight_map", [None, [], {"w": 3}, {"w": "../model.safetensors"}, {"w": "/etc/passwd"}]
)
def test_an_index_that_maps_to_no_file_name_is_refused(tmp_path, weight_map):
    write_index(tmp_path, weight_map)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a.pt", "b.pth", "c.ckpt"]
)
def test_pickle_files_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path)
    assert name in str(caught.value)
    assert "convert it to safetensors" in str(caught.value)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no weights: neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)
    with pytest.raises(InputError, match="nowhere is not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    save_file({"w": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"only adapter_model\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 40, 300])
def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path, kept_bytes):
    checkpoint = Checkpoint.open(write_single(tmp_path))
    os.truncate(tmp_path / "model.safetensors", kept_bytes)
    with pytest.raises(InputError, match=r"model\.safetensors (has changed|cannot be mapped)"):
        checkpoint.tensor("model.embed.weight")


@settings(max_examples=200)
@given(data=st.data())
def test_a_sharded_checkpoint_cut_anywhere_is_refused(tmp_path_factory, data):
    folder = write_sharded(tmp_path_factory.getbasetemp())
    file = folder / f"model-0000{data.draw(st.integers(1, 2))}-of-00002.safetensors"
    os.truncate(file, data.draw(st.integers(0, file.stat().st_size - 1)))
    with pytest.raises(InputError, match=file.name):
        Checkpoint.open(folder)
