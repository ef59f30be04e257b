"""Packing while loading: the same weights as the files', in every family, and no second copy of them."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline.errors import InputError
from ridgeline.kernels import PackedLinear
from ridgeline.kernels.linear import FORMATS, pack_linear
from ridgeline.models import load_config
from ridgeline.models.products import products
from ridgeline.weights.load import load_model, random_model
from ridgeline.weights.pack import load_packed, random_packed
from tests.weights.checkpoints import SMALL


@pytest.fixture(params=SMALL)
def twin(request, make_twin):
    architecture, fields = SMALL[request.param]
    return make_twin(architecture, **fields)


def assert_packed(packed, tensors, format):
    """``packed`` holds what packing the weights of ``tensors`` one by one gives."""
    gated = {id(weight): gated for weight, gated in products(packed)}
    for ours, plain in zip(packed.weights(), tensors.weights(), strict=True):
        assert (ours.name, ours.shape) == (plain.name, plain.shape)
        if id(ours) in gated:
            expected = pack_linear(plain.data.float(), format, gated=gated[id(ours)])
            assert isinstance(ours.data, PackedLinear)
            assert ours.format == format
            assert torch.equal(ours.data.data, expected.data)
        else:
            assert torch.equal(ours.data, plain.data.to(ours.data.dtype))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_packed_is_what_the_files_hold(twin, format):
    packed = load_packed(load_config(twin.folder), twin.folder, format)
    assert packed.config.format == format
    assert_packed(packed, twin.ours, format)


@pytest.mark.parametrize(("stored", "plain"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "bf16")])
def test_beside_quantised_weights_the_rest_keeps_a_format_that_the_kernels_read(make_twin, stored, plain):
    architecture, fields = SMALL["llama"]
    twin = make_twin(architecture, **fields)
    packed = load_packed(replace(load_config(twin.folder), format=stored), twin.folder, "int8")
    assert packed.plain_format == plain
    assert {weight.format for weight in packed.weights()} == {"int8", plain}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_a_checkpoint_is_packed_from_its_own_precision(make_twin, tmp_path, dtype):
    architecture, fields = SMALL["qwen3"]
    twin = make_twin(architecture, **fields)
    stored = {name: tensor.to(dtype) for name, tensor in load_file(twin.folder / "model.safetensors").items()}
    save_file(stored, tmp_path / "model.safetensors")
    config = load_config(twin.folder)
    assert_packed(load_packed(config, tmp_path, "int8"), load_model(config, tmp_path), "int8")


def test_random_weights_are_those_of_the_seed_packed(make_twin):
    architecture, fields = SMALL["llama"]
    config = make_twin(architecture, **fields).ours.config
    assert_packed(random_packed(config, "int4-g32", seed=3), random_model(config, seed=3), "int4-g32")


def test_progress_adds_up_to_the_parameters(twin):
    seen = []
    packed = load_packed(load_config(twin.folder), twin.folder, "int8", progress=seen.append)
    assert sum(seen) == packed.parameter_count()


def test_an_unknown_format_is_refused_with_the_known_ones(twin):
    with pytest.raises(InputError, match=r"can't be packed as 'fp16'.*bf16.*int4-g128"):
        load_packed(load_config(twin.folder), twin.folder, "fp16")


def test_a_weight_that_cannot_be_quantised_is_named(make_twin, tmp_path):
    architecture, fields = SMALL["llama"]
    twin = make_twin(architecture, **fields)
    tensors = load_file(twin.folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"'model\.layers\.1\.mlp\.down_proj\.weight'.*int8"):
        load_packed(load_config(twin.folder), tmp_path, "int8")
    load_packed(load_config(twin.folder), tmp_path, "bf16")


@pytest.mark.parametrize("tied", ["llama tied", "gpt2", "bert"])
def test_a_tied_embedding_is_held_once(tied, make_twin):
    architecture, fields = SMALL[tied]
    twin = make_twin(architecture, **fields)
    packed = load_packed(load_config(twin.folder), twin.folder, "int8")
    assert packed.head is packed.embedding
    assert isinstance(packed.embedding.data, PackedLinear)


# -- memory ---------------------------------------------------------------------------------------

LOAD_AND_MEASURE = """
import sys
from pathlib import Path
from ridgeline.models import load_config
from ridgeline.weights.pack import load_packed

def anonymous():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))

folder = Path(sys.argv[1])
config = load_config(folder)
before, seen = anonymous(), []
model = load_packed(config, folder, sys.argv[2], progress=lambda _: seen.append(anonymous()))
largest = max(weight.numel for weight in model.weights())
print(model.weight_bytes(), largest, max(*seen, anonymous()) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("format", ["bf16", "int4-g128"])
def test_packing_holds_one_weight_in_floating_point_at_most(large, format):
    """Beside the packed weights there is memory for the largest one in bf16, as it is stored."""
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(large), format]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weights, largest, grown = (float(word) for word in shown.split())
    assert grown <= 1.1 * weights + 2 * largest
