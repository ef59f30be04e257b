"""The demo pair as it ships: transformers reads it, agrees with our pass, and the two fit together."""

import json

import pytest
import torch
import transformers

from ridgeline.analysis.evaluate import evaluate_tokens
from ridgeline.engine.sampling import GREEDY
from ridgeline.loading import load
from ridgeline.models.registry import DEMOS, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.reference import Reference
from ridgeline.weights.load import load_model
from training.tokenizer import DRAFT_FOLDER, END_OF_TEXT, MODEL_FOLDER, SPECIAL_TOKENS

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


@pytest.fixture(scope="module", params=[MODEL_FOLDER, DRAFT_FOLDER], ids=["target", "draft"])
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(load_config(folder), folder, "fp32")


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_transformers_computes_the_same_logits(model, theirs, tokenizer):
    ids = tokenizer(SOURCE)["input_ids"]
    ops = Reference()
    with torch.inference_mode():
        found = model.forward(ops, ops.batch(ids, [Span(rows=len(ids))], logits="all"))
        expected = theirs(torch.tensor([ids])).logits[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_files_agree_on_vocabulary_window_and_end(folder, tokenizer):
    config = json.loads((folder / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.model_max_length == config["max_position_embeddings"] == 1024
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(range(len(SPECIAL_TOKENS))) == SPECIAL_TOKENS


def test_the_weights_take_two_bytes_a_parameter(folder, theirs):
    parameters = sum(p.numel() for p in theirs.parameters())
    header_bytes = 16_384  # at most
    assert 0 <= (folder / "model.safetensors").stat().st_size - 2 * parameters < header_bytes


def test_unseen_python_takes_few_bits_a_byte(folder, model, tokenizer):
    ids = tokenizer(END_OF_TEXT + SOURCE, return_tensors="np")["input_ids"][0]
    most = 2.0 if folder == MODEL_FOLDER else 2.5
    assert evaluate_tokens(model, Reference(), [ids], len(SOURCE.encode())).bits_per_byte < most


def test_no_position_of_the_window_is_worse_than_the_middle(model, tokenizer):
    ids = tokenizer("x = [\n" + "".join(f"    {n},\n" for n in range(100, 600)))["input_ids"][:1024]
    assert len(ids) == 1024
    ops = Reference()
    with torch.inference_mode():
        logits = model.forward(ops, ops.batch(ids, [Span(rows=1024)], logits="all"))
    nats = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert nats[896:].mean() < 1.5 * nats[384:512].mean()


def test_the_pair_is_small_and_the_draft_a_tenth_of_its_target():
    target, draft = (load(name).model.parameter_count() for name in DEMOS)
    assert draft <= target / 10
    assert sum(file.stat().st_size for folder in DEMOS.values() for file in folder.iterdir()) <= 30_000_000


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_draft_and_target_share_their_tokenizer_and_sampling(name):
    assert (DRAFT_FOLDER / name).read_bytes() == (MODEL_FOLDER / name).read_bytes()


def test_the_draft_proposes_what_the_target_writes():
    """More often than not, in the middle of a function that neither has seen."""
    target, draft = (load(name) for name in DEMOS)
    ids = target.tokenizer.encode(SOURCE)
    places = range(30, len(ids), 2)
    ahead = [
        [r.ids[0] for r in m.generate([ids[:i] for i in places], max_tokens=1, sampling=GREEDY)]
        for m in (target, draft)
    ]
    assert sum(a == b for a, b in zip(*ahead)) > len(places) / 2
