"""Every family on the gpu reading (interpreted where there is no GPU) computes what transformers computes:
the lists of models are those of the other readings' tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

from ridgeline.errors import InputError
from ridgeline.loading import load
from ridgeline.ops.batch import Memory, Span
from ridgeline.ops.gpu import Gpu, to_gpu
from ridgeline.ops.gpu_graph import DecodeStep, is_recordable
from ridgeline.server.encoder import Encoder
from ridgeline.weights.load import load_model
from tests.models.family_twins import BERT, DECODERS, ENCODERS, LLAMA, VOCAB
from tests.models.test_encoder_decoders import FLAN, T5
from tests.models.test_families import assert_close, by_transformers

device, patched_once_a_launch = shared.device, shared.patched_once_a_launch
TOKENS = 22
#: In `make test`: what no other test of the gpu reading runs.
QUICK = ("qwen2-moe", "deepseek-v2 with groups")


def marked(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, VOCAB["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(1))


def on_gpu(twin, device):
    """A copy, since weights are moved."""
    return to_gpu(load_model(twin.ours.config, twin.folder), device), Gpu(torch.float32, device)


@pytest.mark.parametrize("name", marked(DECODERS))
def test_a_decoders_logits_are_those_of_transformers(device, name, make_twin, ids):
    """A prompt in two chunks, and a step that is recorded, where it can be."""
    architecture, fields = DECODERS[name]
    twin = make_twin(architecture, **fields)
    model, ops = on_gpu(twin, device)
    cache = ops.alloc_cache(model.cache_spec("fp32", block_size=8), 4)
    cache._data.fill_(torch.nan)
    table, rows = (3, 0, 2), []
    for start, stop in ((0, 13), (13, TOKENS - 1)):
        span = Span(stop - start, past=start, table=table, admitted=TOKENS)
        rows.append(ops.run(model, ids[start:stop], [span], logits="all", cache=cache))
    last = Span(1, past=TOKENS - 1, table=table, admitted=TOKENS)
    if is_recordable(model):
        rows.append(DecodeStep(ops, model, cache, 2, 3).run(ids[-1:].tolist(), [last]))
    else:
        rows.append(ops.run(model, ids[-1:], [last], cache=cache))
    assert_close(torch.cat(rows).cpu(), by_transformers(twin.theirs, ids))


@pytest.mark.parametrize("name", marked(ENCODERS))
def test_an_encoders_outputs_are_those_of_transformers(device, name, make_twin, ids):
    """Packed, with token types."""
    architecture, fields = ENCODERS[name]
    twin = make_twin(architecture, **fields)
    model, ops = on_gpu(twin, device)
    segments, lengths = torch.arange(TOKENS) // 9, (8, 14)
    spans = [Span(length) for length in lengths]
    found = ops.run(model, ids, spans, logits="all", segments=segments).cpu()
    for rows, part, types in zip(
        found.split(lengths), ids.split(lengths), segments.split(lengths), strict=True
    ):
        assert_close(rows, by_transformers(twin.theirs, part, token_type_ids=types[None]))


@pytest.mark.parametrize("fields", [T5, pytest.param(FLAN, marks=pytest.mark.slow)], ids=["t5", "flan"])
def test_an_encoder_decoders_logits_are_those_of_transformers(device, fields, make_twin, ids):
    twin = make_twin("T5ForConditionalGeneration", **fields)
    model, ops = on_gpu(twin, device)
    stored, cache = (ops.alloc_cache(spec("fp32"), 2) for spec in (model.memory_spec, model.cache_spec))
    memory = ops.encode(model, ids, [Span(TOKENS, table=(1,))], stored)
    reading, rows = Memory(memory.spans, cache=stored), []
    for start, stop in ((0, 6), (6, 7)):
        span = Span(stop - start, start, table=(0,))
        rows.append(ops.run(model, ids[start:stop], [span], logits="all", cache=cache, memory=reading))
    theirs = twin.theirs(input_ids=ids[None], decoder_input_ids=ids[None, :7])
    assert_close(memory.states.cpu(), theirs.encoder_last_hidden_state[0])
    assert_close(torch.cat(rows).cpu(), theirs.logits[0])


def test_float16_weights_run_in_float16(device, make_twin, ids):
    folder = make_twin("LlamaForCausalLM", **LLAMA).folder
    loaded = load(folder, weights="fp16", device="cuda")
    assert (loaded.ops.dtype, loaded.on_gpu) == (torch.float16, True)
    logits = loaded.ops.run(loaded.model, ids, [Span(TOKENS)], logits="all")
    exact = load(folder, weights="fp32")
    want = exact.ops.run(exact.model, ids, [Span(TOKENS)], logits="all")
    assert logits.dtype == torch.float16
    assert (logits.cpu().float() - want).norm() < 0.01 * want.norm()


def test_texts_are_embedded_on_a_gpu(device, make_twin):
    folder = make_twin("BertModel", **BERT).folder
    texts = [[5, 6, 7], [9, 8]]
    found, want = (Encoder(load(folder, device=place), 64).embed(texts) for place in ("cuda", "cpu"))
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_what_generates_on_a_gpu_is_told_from_what_does_not(device, make_twin):
    loaded = load(make_twin("BertModel", **BERT).folder, device="cuda")
    with pytest.raises(InputError, match="is an encoder"):
        loaded.generate([[1, 2]])
    assert not is_recordable(SimpleNamespace(config=loaded.config))
