"""Speculation beside a grammar: what is proposed against it is rejected, and the output is the plain one."""

import contextlib
from dataclasses import dataclass

import pytest

from ridgeline.engine.engine import Engine
from ridgeline.engine.generate import Generator
from ridgeline.engine.plan import Proposal
from ridgeline.engine.prompts import Requests
from ridgeline.engine.sampling import Sampling
from ridgeline.engine.speculation.choice import choose
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.length import FixedLength
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError
from ridgeline.loading import load
from ridgeline.ops.cpu import Cpu

pytest.importorskip("llguidance")


@pytest.mark.parametrize("proposer", ["ngram", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_output_that_follows_a_regex_is_the_plain_one(proposer, temperature):
    loaded = load("demo-draft")
    sampling = Sampling(temperature, seed=3)
    options = {"max_tokens": 40, "regex": r"(ab|cd|[0-9]{3})*x", "sampling": sampling}
    plain = loaded.generate("abcdab", **options)[0]
    speculator = choose("ngram" if proposer == "ngram" else "draft:demo-draft", loaded)
    found = loaded.generator(speculator=speculator).generate("abcdab", **options)[0]
    assert found.ids == plain.ids
    assert found.finish_reason == plain.finish_reason


@dataclass
class Reckless:
    """Proposes ids that the vocabulary has and the tokenizer has not."""

    token: int

    def propose(self, chunks, target):
        return [Proposal((self.token,) * min(chunk.room, 2)) for chunk in chunks]

    def forget(self, sequence):
        pass


def test_a_proposal_of_padding_does_not_harm_the_grammar(make_twin, tokenizer):
    shape = {"num_hidden_layers": 1, "num_key_value_heads": 1, "eos_token_id": 0}
    model = make_twin(
        "LlamaForCausalLM", **shape, vocab_size=320, num_attention_heads=2, hidden_size=32
    ).packed
    requests = Requests(model.config, tokenizer)
    options = {"max_tokens": 20, "regex": "[a-f]*", "sampling": Sampling(1.0, seed=1)}
    plain = Generator(model, Cpu(), requests).generate("a", **options)
    speculator = Speculator(Reckless(model.config.vocab - 1), length=FixedLength(2))
    found = Generator(model, Cpu(), requests, speculator=speculator).generate("a", **options)
    assert [result.ids for result in found] == [result.ids for result in plain]
    assert speculator.report.proposed > 0


def test_a_dead_end_of_a_grammar_fails_its_request_alone(tokenizer):
    loaded = load("demo-draft")
    ends = [i for i in range(loaded.config.vocab) if "y" in loaded.tokenizer.token(i)]
    speculator = Speculator(DraftModel(load("demo-draft"), loaded), length=FixedLength(3))
    with Engine(loaded, speculator=speculator) as engine:
        healthy = engine.tokens("def add(", max_tokens=60, stop_ids=[], sampling=Sampling(0.0))
        next(healthy)
        with pytest.raises(InputError, match="wants what no token continues"):
            engine.generate("a", regex="a{6}y", stop_ids=ends, max_tokens=30)
        assert [token.result.finish_reason for token in healthy if token.result] == ["length"]


def test_a_stop_id_that_is_none_changes_nothing():
    loaded = load("demo-draft")
    options = {"regex": "[a-z]{1,3}", "max_tokens": 8, "sampling": Sampling(0.0)}
    ids = [result.ids for result in loaded.generate("a", **options, stop_ids=[])]
    with contextlib.suppress(InputError):  # refused is fine, too
        assert [result.ids for result in loaded.generate("a", **options, stop_ids=[-1])] == ids
