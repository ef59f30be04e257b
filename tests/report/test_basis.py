"""The commands under a report's numbers: whoever types one gets the same numbers again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ridgeline.analysis.explain import explain
from ridgeline.report.basis import check_command


def test_a_built_in_config_is_checked_with_random_weights(measured_cpu):
    found = explain("smollm2-135m", measured_cpu, prompt=300, output=20)
    assert check_command(found) == (
        "ridgeline check smollm2-135m --weights random --prompt 300 --context 301"
    )


def test_an_encoder_has_no_context(measured_cpu):
    found = explain("bert-base", measured_cpu, prompt=64)
    assert check_command(found) == "ridgeline check bert-base --weights random --prompt 64"


def test_a_folder_is_checked_in_the_explained_format(measured_cpu):
    found = explain("demo", measured_cpu, prompt=64, output=2)
    folder = replace(found, model="my models/a", weight_format="fp32", cache_format="fp32")
    assert check_command(folder) == ("ridgeline check 'my models/a' --weights fp32 --prompt 64 --context 65")


@pytest.mark.parametrize(
    "options",
    [{"cache": "int8"}, {"batch": 2}, {"attention": "naive"}],
    ids=str,
)
def test_what_check_does_not_run_has_no_command(measured_cpu, options):
    assert check_command(explain("smollm2-135m", measured_cpu, prompt=64, **options)) is None


def test_random_weights_name_a_format_that_is_not_the_configs(measured_cpu):
    found = explain("smollm2-135m", measured_cpu, prompt=64, output=0, weights="int8")
    assert check_command(found) == "ridgeline check smollm2-135m --weights random:int8 --prompt 64"


def test_formats_that_nothing_executes_have_no_command(measured_cpu):
    found = explain("smollm2-135m", measured_cpu, prompt=64)
    assert check_command(replace(found, weight_format="fp8")) is None


def test_nor_has_a_device_whose_kernels_were_not_measured(decoder):
    assert check_command(decoder) is None
