"""Speculation beside a grammar: what is proposed against it is rejected, and the output is the plain one."""

import pytest

from ridgeline.engine.sampling import Sampling
from ridgeline.engine.speculation.choice import choose
from ridgeline.loading import load

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
