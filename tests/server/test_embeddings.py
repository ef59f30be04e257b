"""/v1/embeddings: vectors of an encoder, as users of sentence embeddings expect them."""

import json
import time
from dataclasses import replace

import httpx
import openai
import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.ops.cpu import Cpu
from ridgeline.server.encoder import Encoder
from ridgeline.weights.generation import GenerationDefaults
from tests.server.conftest import running, soon

BERT = {
    "vocab_size": 4096,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def twin(make_twin):
    return make_twin("BertModel", **BERT)


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded.tokenizer


@pytest.fixture(scope="module")
def bert(twin, tokenizer):
    return Loaded(twin.packed.config, twin.packed, Cpu("fp32"), tokenizer, None, GenerationDefaults(), None)


@pytest.fixture(scope="module")
def server(bert):
    with running(bert, name="bert", token_budget=32) as server:
        yield server


def expected(twin, ids, pool=lambda rows: rows.mean(0)):
    """The pooled hidden states of transformers, of length 1."""
    with torch.inference_mode():
        hidden = twin.theirs(torch.tensor([ids])).last_hidden_state[0]
    return torch.nn.functional.normalize(pool(hidden), dim=0)


def test_an_embedding_is_the_mean_of_the_last_hidden_states_at_length_1(server, twin, tokenizer):
    texts = ["def add(a, b):", "class Ridge:", "naïve café"] * 4  # several passes
    found = server.client().embeddings.create(model="bert", input=texts, encoding_format="float")
    for place, (text, entry) in enumerate(zip(texts, found.data, strict=True)):
        assert entry.index == place
        torch.testing.assert_close(
            torch.tensor(entry.embedding), expected(twin, tokenizer.encode(text)), atol=1e-5, rtol=1e-4
        )
    assert (
        found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, map(tokenizer.encode, texts)))
    )


def test_base64_holds_the_same_numbers_as_little_endian_float32(server):
    asked = {"model": "bert", "input": "def add"}
    plain = server.client().embeddings.create(**asked, encoding_format="float").data[0].embedding
    decoded = server.client().embeddings.create(**asked).data[0].embedding  # the client asks for base64
    assert decoded == plain
    found = server.post("/v1/embeddings", {**asked, "encoding_format": "base64"}).json()
    assert isinstance(found["data"][0]["embedding"], str)


def test_a_text_may_be_token_ids(server, tokenizer):
    by_text, by_ids = (
        server.client().embeddings.create(model="bert", input=given).data[0].embedding
        for given in ("def add", tokenizer.encode("def add"))
    )
    assert by_text == by_ids


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": [5] * 65}, "input has 65 tokens and the model's window is 64"),
        ({"input": ["x", ""]}, r"input\[1\] is empty"),
        ({"input": "x" * 1000}, r"input has \d+ tokens and the model's window is 64"),
        ({"input": [4096]}, "token id 4096, expected 0 to 4095"),
        ({"input": []}, "input must be text"),
        ({"input": "x", "dimensions": 8}, "dimensions is not supported"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(server, given, message):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        server.client().post("/embeddings", body={"model": "bert", **given}, cast_to=object)
    assert refused.value.param in given


def test_an_encoder_generates_nothing_and_a_decoder_embeds_nothing(server, shared_server):
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        server.client().completions.create(model="bert", prompt="x")
    with pytest.raises(openai.BadRequestError, match="serve an encoder"):
        shared_server.client().embeddings.create(model="tiny", input="x")


def test_of_a_client_that_leaves_no_more_is_computed(server, monkeypatch):
    embed, passes = server.service.encoder.embed, []

    def slowly(batch):
        passes.append(batch)
        time.sleep(0.05)
        return embed(batch)

    monkeypatch.setattr(server.service.encoder, "embed", slowly)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json={"input": [[5] * 20] * 100}, timeout=0.2)
    assert soon(lambda: not server.server._admission.served)
    assert 0 < len(passes) < 100


def test_an_encoder_has_a_status_and_metrics(server):
    assert server.get("/health").json() == {"status": "ok"}
    status = server.get("/v1/status").json()
    assert (status["engine"]["alive"], status["model"]["chat"]) == (True, False)
    assert "ridgeline_prompt_tokens_total" in server.get("/metrics").text


def test_the_head_of_a_masked_language_model_is_left_out(make_twin, tokenizer):
    twin = make_twin("BertForMaskedLM", **BERT)
    loaded = Loaded(twin.packed.config, twin.packed, Cpu("fp32"), tokenizer, None, GenerationDefaults(), None)
    found = Encoder(loaded, 64).embed([[5, 6, 7]])
    with torch.inference_mode():
        hidden = twin.theirs.bert(torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    torch.testing.assert_close(
        found[0], torch.nn.functional.normalize(hidden.mean(0), dim=0), atol=1e-5, rtol=1e-4
    )


def test_the_folder_may_ask_for_the_first_hidden_state_and_for_nothing_else(bert, twin, tmp_path):
    config = tmp_path / "1_Pooling" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    of_folder = replace(bert, folder=tmp_path)
    [found] = Encoder(of_folder, 64).embed([[5, 6, 7]])
    torch.testing.assert_close(found, expected(twin, [5, 6, 7], lambda rows: rows[0]), atol=1e-5, rtol=1e-4)
    config.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match="pooling_mode_max_tokens"):
        Encoder(of_folder, 64)
