"""The command line as a user meets it: outputs, refusals, exit codes, and a light start."""

import json
import os
import subprocess
import sys

import pytest

COMMANDS = ("explain", "generate", "measure", "check", "eval", "validate", "demo", "models", "devices")


def ridgeline(*arguments, cache, **environment):
    """Runs the installed command with an empty home."""
    return subprocess.run(
        [sys.executable, "-m", "ridgeline.cli", *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "RIDGELINE_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "100",
            **environment,
        },
        timeout=120,
    )


@pytest.mark.parametrize("command", [*COMMANDS, "chat"])
def test_every_command_has_help_with_an_example(command, tmp_path):
    shown = ridgeline(command, "--help", cache=tmp_path)
    assert shown.returncode == 0
    assert f"Example: ridgeline {command}" in shown.stdout
    assert ("--json" in shown.stdout) == (command != "chat")  # a conversation is not a result


def test_explain_prints_phases_memory_and_what_they_stand_on(tmp_path):
    shown = ridgeline("explain", "llama-3-8b", "--on", "h100", cache=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in ("prefill", "decode", "bound by", "The ridge point", "Memory:", "Stands on:", "datasheet"):
        assert words in shown.stdout


def test_explain_shows_elements_when_asked(tmp_path):
    shown = ridgeline("explain", "llama-2-7b", "--on", "a100", "--elements", cache=tmp_path)
    header = next(line for line in shown.stdout.splitlines() if line.startswith("phase"))
    assert "elements" in header
    assert "FLOP/element" in header
    assert "bytes" not in header


def test_json_is_json_and_nothing_else(tmp_path):
    shown = ridgeline("explain", "llama-3-405b", "--on", "h100", "--json", cache=tmp_path)
    found = json.loads(shown.stdout)
    assert found["parameters"] == 405853388800
    assert found["phases"][0]["kernels"][0]["name"] == "embedding"
    assert found["memory"]["fits"] is False
    assert json.loads(ridgeline("models", "--json", cache=tmp_path).stdout)[0] == "demo"
    assert "h200" in json.loads(ridgeline("devices", "--json", cache=tmp_path).stdout)


def test_validate_holds_and_shows_the_errata(tmp_path):
    shown = ridgeline("validate", cache=tmp_path)
    assert shown.returncode == 0
    assert "erratum" in shown.stdout
    results = json.loads(ridgeline("validate", "--json", cache=tmp_path).stdout)
    assert all(r["ok"] for r in results)


def broken_folder(path, config):
    path.mkdir()
    (path / "config.json").write_text(config)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("explain", "/no/such/folder", "--on", "a100"), "/no/such/folder"),
        (("explain", "lama-2-7b", "--on", "a100"), "llama-2-7b"),
        (("explain", "gpt2", "--on", "h1000"), "h1000"),
        (("explain", "gpt2", "--on", "this"), "ridgeline measure"),
        (("explain", "gpt2", "--on", "a100", "--batch", "-1"), "batch"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "0"), "prompt"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "5000"), "1024"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "many"), "--prompt"),
        (("explain", "gpt2", "--on", "a100", "--attention", "slow"), "slow"),
        (("explain", "gpt2", "--on", "a100", "--frobnicate"), "--frobnicate"),
        (("explain",), "model"),
        (("frobnicate",), "frobnicate"),
        (("generate", "gpt2", "hello"), "--weights random"),
        (("generate", "gpt2", "hello", "--weights", "random"), "token ids"),
        (("generate", "gpt2", "1 2", "--weights", "random", "--max-tokens", "-1"), "max_tokens"),
        (("generate", "gpt2", "1 2", "--weights", "random", "--temperature", "-1"), "temperature"),
        (("generate", "gpt2", "1 2 99999999", "--weights", "random"), "99999999"),
        (("generate", "no/such-model", "hello"), "no/such-model"),
        (("check", "gpt2", "--weights", "random"), "ridgeline measure"),
        (("check", "gpt2", "--weights", "random", "--on", "a100"), "datasheet"),
        (("measure", "--threads", "0"), "threads"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, tmp_path):
    shown = ridgeline(*arguments, cache=tmp_path)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr
    lines = [line for line in shown.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, shown.stderr
    assert lines[0].startswith("ridgeline: ")
    assert named in lines[0]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("{not json", "config.json"),
        ("{}", "model_type"),
        ('{"model_type": "rwkv"}', "rwkv"),
        ('{"model_type": "llama", "hidden_size": 64}', "num_attention_heads"),
        (
            '{"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 9, "surprise": 3}',
            "surprise",
        ),
    ],
)
def test_a_broken_config_is_named(config, named, tmp_path):
    folder = broken_folder(tmp_path / "model", config)
    shown = ridgeline("explain", folder, "--on", "a100", cache=tmp_path)
    assert shown.returncode == 2
    assert named in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1


def test_a_truncated_checkpoint_is_named(tmp_path):
    config = (
        '{"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 1, "vocab_size": 9, "n_positions": 16}'
    )
    folder = broken_folder(tmp_path / "model", config)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    shown = ridgeline("generate", folder, "1 2", cache=tmp_path)
    assert shown.returncode == 2
    assert "model.safetensors" in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1


def test_output_to_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m ridgeline.cli validate --json | head -n 1"
    environment = {**os.environ, "RIDGELINE_CACHE": str(tmp_path)}
    shown = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60
    )
    assert shown.stderr == ""


def test_analysis_needs_no_pytorch():
    """A light install has no torch: nothing that only analyses may import it."""
    script = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'tokenizers', 'safetensors', 'huggingface_hub', 'transformers'):
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
import ridgeline
found = ridgeline.explain('llama-3-8b', 'h100')
assert found.phases[0].seconds > 0
assert all(r.ok for r in ridgeline.validate())
import ridgeline.cli, ridgeline.report.tables, ridgeline.hardware.measure
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
