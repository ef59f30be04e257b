"""Mixtures and latents in what is predicted: assumptions that are said, cache and speed that follow."""

import json

import pytest
from typer.testing import CliRunner

import ridgeline
from ridgeline.analysis.explain import explain
from ridgeline.analysis.setting import settle
from ridgeline.cli.app import app
from ridgeline.engine.arrivals import Arrival
from ridgeline.errors import InputError


def test_explain_lists_which_experts_it_takes_to_be_touched():
    found = explain("qwen3-30b-a3b", "h100-sxm", prompt=4, batch=2)
    stated = [a for a in found.assumptions if "experts" in a]
    assert [a.split(":")[0] for a in stated] == ["prefill", "decode"]
    assert stated[1].endswith("15.5 of 128 are touched a layer")  # 128 (1 - (1 - 8 / 128)^2)
    assert not any("experts" in a for a in explain("llama-3-8b", "h100-sxm").assumptions)


def test_more_requests_touch_more_experts_until_all_are_read():
    def decode(batch):
        return explain("mixtral-8x7b", "h200", batch=batch).phases[1].bytes

    one, four, many, more = (decode(n) for n in (1, 4, 64, 128))
    assert 2.4 < four / one < 3
    assert more / many < 1.1


def test_the_json_of_explain_has_the_cache_and_what_a_token_uses():
    result = CliRunner().invoke(app, ["explain", "deepseek-v3", "--on", "h200", "--json"])
    found = json.loads(result.output)
    assert found["memory"]["cache_elements_per_token"] == 576 * 61
    assert found["memory"]["cache_bytes_per_token"] == 576 * 61 * 2
    assert (found["parameters"], found["active_parameters"]) == (671_026_404_352, 37_552_282_624)
    assert found["weight_format"] == "fp8-128x128"


def test_other_analyses_take_the_cache_of_latents_too():
    settled = settle("deepseek-v2-lite", "h200")
    assert settled.cache_bytes_per_token == 576 * 27 * 2
    found = ridgeline.simulate("deepseek-v2-lite", "h200", [Arrival(0.0, 64, 8)])
    free = 0.9 * 141e9 - settled.model.weight_bytes()
    assert found.limits.kv_tokens == pytest.approx(free / (576 * 27 * 2), rel=0.01)
    assert any("experts" in a for a in found.assumptions)


def test_the_form_of_latent_attention_is_a_choice():
    forms = {form: explain("deepseek-v3", "h200", prompt=2048, mla=form) for form in ("expanded", "absorbed")}
    auto = explain("deepseek-v3", "h200", prompt=2048)
    for phase, form in ((0, "expanded"), (1, "absorbed")):
        assert auto.phases[phase].seconds == forms[form].phases[phase].seconds
        assert f"{auto.phases[phase].name}: latent attention runs {form}" in auto.assumptions
    assert forms["expanded"].phases[1].flops.matrix > 20 * forms["absorbed"].phases[1].flops.matrix
    assert {f.memory.cache_elements_per_token for f in (auto, *forms.values())} == {576 * 61}


def test_a_form_that_is_not_one_or_not_for_the_model_is_refused():
    with pytest.raises(InputError, match="mla must be auto or expanded or absorbed, not 'x'"):
        explain("deepseek-v3", "h200", mla="x")
    with pytest.raises(InputError, match="llama-3-8b has no latent attention"):
        explain("llama-3-8b", "h200", mla="absorbed")
    with pytest.raises(InputError, match="bert-base has no latent attention"):
        explain("bert-base", "h200", mla="absorbed")
