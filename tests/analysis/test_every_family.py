"""Every analysis on every family of models: it answers, or refuses in one line that says what else to do."""

from __future__ import annotations

import json
import math

import pytest

from ridgeline.cli import main

DECODERS = (
    "llama-3.2-1b",
    "gemma-3-1b",  # layers with a window, and some without
    "gemma-2-2b",  # these in turn, and capped scores
    "mistral-7b",  # a window in each
    "qwen1.5-moe-a2.7b",
    "mixtral-8x7b",
    "deepseek-v2-lite",
    "gpt2",
    "opt-125m",
    "falcon-7b",
    "pythia-1.4b",
)
ENCODER, ENCODER_DECODERS = "bert-base", ("t5-small", "flan-t5-xxl")
DIFFUSION = ("dit-s-2", "pixart-alpha-xl-2", "sd3-medium", "latte-1", "cogvideox-2b")
ALL = (*DECODERS, ENCODER, *ENCODER_DECODERS, *DIFFUSION)

ON = ("--on", "h100-sxm")
REQUEST = ("--prompt", "40", "--output", "6")
#: By command: what is given beside the model, and the models that it refuses, each with words of the reason.
COMMANDS = {
    "explain": (ON, {}),
    "compare": (
        ("--on", "h100-sxm,phone-ufs-4.0", "--batch", "1,4"),
        dict.fromkeys(DIFFUSION, "explain, report"),
    ),
    "capacity": ((*ON, "--weights", "auto,int8"), dict.fromkeys(DIFFUSION, "explain, report")),
    "advise": (ON, dict.fromkeys(DIFFUSION, "explain, report")),
    "decoding": (
        ("--on", "phone-ufs-4.0", *REQUEST),
        {**dict.fromkeys(DIFFUSION, "explain, report"), ENCODER: "it decodes nothing; `explain`, `compare`"},
    ),
    "parallel": (
        (*ON, "--tensor", "2"),
        {
            **dict.fromkeys(DIFFUSION, "explain, report"),
            ENCODER: "`compare` predicts it",
            "falcon-7b": "2 ranks can't share 71 heads",
        },
    ),
    "breakdown": (ON, {}),
    "training": (ON, {}),
    "simulate": (
        (*ON, "--requests", "poisson:8", "--count", "3", "--weights", "int4-g128"),
        {
            **dict.fromkeys(DIFFUSION, "explain, report"),
            ENCODER: "use a decoder",
            **dict.fromkeys(ENCODER_DECODERS, "`ridgeline compare` predicts batches"),
        },
    ),
    "dataflows": ((*ON, "--rows", "16", "--keys", "64"), {}),
    "place": (("--on", "h100-sxm,epyc-9654"), {}),
}


def run(arguments, capsys, monkeypatch) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["ridgeline", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err.strip()


def numbers_of(value):
    """All numbers in a JSON value, by where they stand."""
    if isinstance(value, dict):
        for name, item in value.items():
            for where, number in numbers_of(item):
                yield f"{name}.{where}", number
    elif isinstance(value, list):
        for item in value:
            yield from numbers_of(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield "", value


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_for_every_family_or_says_why_not(command, model, capsys, monkeypatch):
    options, refused = COMMANDS[command]
    code, out, err = run((command, model, *options, "--json"), capsys, monkeypatch)
    if model in refused:
        assert code == 2
        assert err.startswith("ridgeline: ")
        assert len(err.splitlines()) == 1
        assert refused[model] in err
        return
    assert (code, err) == (0, "")
    for where, number in numbers_of(json.loads(out)):
        assert math.isfinite(number), where
        if "suggestions" not in where and where.endswith(
            ("seconds.", "bytes.", "flops.", "tokens_per_second.")
        ):
            assert number >= 0, where


@pytest.mark.parametrize("model", ["gemma-3-1b", ENCODER, "t5-small", "dit-s-2"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_what_it_found(command, model, capsys, monkeypatch):
    """As text: no unknown number or empty record is put into words."""
    options, refused = COMMANDS[command]
    if model in refused:
        pytest.skip("refused")
    code, out, _ = run((command, model, *options), capsys, monkeypatch)
    assert code == 0
    assert model in out
    assert not {"nan", "inf", "None"} & set(out.replace(",", " ").split())


@pytest.mark.parametrize("model", ["t5-small", "dit-s-2", "bert-base"])
def test_a_report_is_written_of_each_kind_of_model(model, capsys, monkeypatch, tmp_path):
    out = tmp_path / "report.html"
    code, _, err = run(("report", model, *ON, "--out", str(out)), capsys, monkeypatch)
    assert (code, err) == (0, "")
    assert model in out.read_text(encoding="utf-8")
