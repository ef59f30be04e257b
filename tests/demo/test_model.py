"""The demo model as it ships: transformers reads it, agrees with our pass, and it writes Python."""

import json

import pytest
import torch
import transformers

from ridgeline.analysis.evaluate import evaluate_tokens
from ridgeline.models.registry import load_config
from ridgeline.ops.protocol import Span
from ridgeline.ops.reference import Reference
from ridgeline.weights.load import load_model
from training.tokenizer import END_OF_TEXT, MODEL_FOLDER, SPECIAL_TOKENS

SOURCE = '''\
class Stack:
    """A last-in, first-out container."""

    def __init__(self, items=None):
        self.items = list(items) if items is not None else []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def __len__(self):
        return len(self.items)
'''


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model():
    return load_model(load_config(MODEL_FOLDER), MODEL_FOLDER, "fp32")


@pytest.fixture(scope="module")
def theirs():
    return transformers.LlamaForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


def test_transformers_computes_the_same_logits(model, theirs, tokenizer):
    ids = tokenizer(SOURCE)["input_ids"]
    ops = Reference()
    with torch.inference_mode():
        found = model.forward(ops, ops.batch(ids, [Span(rows=len(ids))], logits="all"))
        expected = theirs(torch.tensor([ids])).logits[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_files_agree_on_vocabulary_window_and_end(tokenizer):
    config = json.loads((MODEL_FOLDER / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.model_max_length == config["max_position_embeddings"]
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(range(len(SPECIAL_TOKENS))) == SPECIAL_TOKENS


def test_the_weights_take_two_bytes_a_parameter(theirs):
    parameters = sum(p.numel() for p in theirs.parameters())
    header_bytes = 16_384  # at most
    assert 0 <= (MODEL_FOLDER / "model.safetensors").stat().st_size - 2 * parameters < header_bytes


def test_unseen_python_takes_fewer_than_two_bits_a_byte(model, tokenizer):
    ids = tokenizer(END_OF_TEXT + SOURCE, return_tensors="np")["input_ids"][0]
    assert evaluate_tokens(model, Reference(), [ids], len(SOURCE.encode())).bits_per_byte < 2.0


def test_no_position_of_the_window_is_worse_than_the_middle(model, tokenizer):
    ids = tokenizer("x = [\n" + "".join(f"    {n},\n" for n in range(100, 600)))["input_ids"][:1024]
    assert len(ids) == 1024
    ops = Reference()
    with torch.inference_mode():
        logits = model.forward(ops, ops.batch(ids, [Span(rows=1024)], logits="all"))
    nats = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert nats[896:].mean() < 1.5 * nats[384:512].mean()
