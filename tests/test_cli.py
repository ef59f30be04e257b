"""The command line as a user meets it: outputs, refusals, exit codes, and a light start."""

import json
import os
import subprocess
import sys

import pytest

from ridgeline.cli.support import formats

RUNNING = ("generate", "measure", "check", "bench", "eval", "demo", "tune")
PREDICTING = (
    "explain",
    "simulate",
    "compare",
    "capacity",
    "advise",
    "decoding",
    "calibrate",
    "validate",
    "parallel",
    "place",
    "dataflows",
    "training",
    "breakdown",
)
COMMANDS = (*RUNNING, *PREDICTING, "models", "devices")


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


@pytest.mark.parametrize("command", [*COMMANDS, "chat", "serve", "report"])
def test_every_command_has_help_with_an_example(command, tmp_path):
    shown = ridgeline(command, "--help", cache=tmp_path)
    assert shown.returncode == 0
    assert f"Example: ridgeline {command}" in shown.stdout
    assert ("--json" in shown.stdout) == (command in COMMANDS)  # what lasts gives no result


def test_explain_prints_phases_memory_and_what_they_stand_on(tmp_path):
    shown = ridgeline("explain", "llama-3-8b", "--on", "h100", cache=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in ("prefill", "decode", "bound by", "The ridge point", "Memory:", "Stands on:", "datasheet"):
        assert words in shown.stdout


def test_simulate_serves_drawn_requests_and_those_of_a_file(tmp_path):
    drawn = ("simulate", "llama-3-8b", "--on", "h100", "--requests", "poisson:8", "--count", "20")
    shown = ridgeline(*drawn, cache=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in ("20 requests", "TTFT", "TPOT", "ITL", "output tokens/s", "preemptions"):
        assert words in shown.stdout
    (tmp_path / "a.csv").write_text("arrival,prompt,output\n0,100,9\n1,50,3\n")
    asked = ("simulate", "llama-3-8b", "--on", "h100", "--requests", str(tmp_path / "a.csv"))
    found = json.loads(ridgeline(*asked, "--json", cache=tmp_path).stdout)
    assert found["simulation"]["serving"]["output_tokens"] == 12
    refused = ridgeline(*asked, "--count", "5", cache=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


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


def test_generated_text_follows_a_regex_or_a_schema(tmp_path):
    shown = ridgeline("generate", "demo", "x =", "--regex", "[0-9]{2,4}", "--json", cache=tmp_path)
    assert 10 <= int(json.loads(shown.stdout)["text"]) <= 9999
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}')
    shown = ridgeline("generate", "demo", "x =", "--json-schema", str(schema), "--json", cache=tmp_path)
    assert 1 <= len(json.loads(json.loads(shown.stdout)["text"])) <= 3


def test_what_ends_a_stream_is_said_on_a_line_of_its_own(tmp_path):
    """Behind the prompt, which is shown by then."""
    code = (
        "import sys; from ridgeline.cli import main; from ridgeline.engine.constrained import Matcher\n"
        "from ridgeline.errors import InputError\n"
        "def fail(self, output, stop_ids): raise InputError('regex is too complex: so many states')\n"
        "Matcher.allowed = fail; sys.argv[1:] = ['generate', 'demo-draft', 'x =', '--regex', 'a+']; main()"
    )
    environment = {**os.environ, "RIDGELINE_CACHE": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert shown.returncode == 2
    assert shown.stdout.splitlines()[-2:][0].endswith("x =")
    assert "regex is too complex: so many states" in shown.stdout.splitlines()[-1]
    assert "x =" not in shown.stdout.splitlines()[-1]


def test_a_schema_that_is_not_json_is_named_by_its_file(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text("{'type': 'object'}")
    shown = ridgeline("generate", "demo-draft", "x", "--json-schema", str(file), cache=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)
    assert f"--json-schema {file} is not JSON (Expecting property name" in shown.stderr


def test_bench_writes_a_line_a_test_to_a_file(tmp_path):
    path = tmp_path / "found" / "bench.csv"
    lengths = ("--prompt", "8,4", "--generate", "2", "--depth", "0,3", "--repeat", "1", "--threads", "1")
    shown = ridgeline("bench", "demo", *lengths, "--format", "csv", "--output", str(path), cache=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, ""), shown.stderr
    header, *lines = path.read_text().splitlines()
    assert header.startswith("model,format,")
    assert [line.split(",")[3] for line in lines] == [
        *("pp8", "pp8 @ d3", "pp4", "pp4 @ d3", "tg2", "tg2 @ d3"),
    ]


def test_bench_traces_an_engine_run(tmp_path):
    file = tmp_path / "new" / "trace.json"
    arguments = ("--prompt", "4", "--generate", "2", "--repeat", "1", "--trace", str(file))
    shown = ridgeline("bench", "demo", *arguments, cache=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "ui.perfetto.dev" in shown.stderr
    categories = {event.get("cat") for event in json.loads(file.read_text())["traceEvents"]}
    assert categories >= {"request", "step", "profile", "operator"}


def test_validate_holds_and_shows_the_errata(tmp_path):
    shown = ridgeline("validate", cache=tmp_path)
    assert shown.returncode == 0
    assert "erratum" in shown.stdout
    assert "h100-sxm" in shown.stdout
    results = json.loads(ridgeline("validate", "--json", cache=tmp_path).stdout)
    assert all(r["ok"] for r in (*results["figures"], *results["profiles"]))


POINTS = "rows,width,op,time_us\n1,4096,add,2\n64,4096,add,2\n512,4096,add,4\n4096,4096,add,31\n"


def test_calibrate_writes_a_device_that_explain_uses(tmp_path):
    (tmp_path / "points.csv").write_text(POINTS)
    gemm = "m,n,k,time_us\n" + "".join(f"{m},4096,4096,{20 + m / 20}\n" for m in range(1, 400, 40))
    (tmp_path / "gemm.csv").write_text(gemm)
    asked = ("calibrate", "--from", str(tmp_path / "points.csv"), "--from", str(tmp_path / "gemm.csv"))
    output = str(tmp_path / "my.toml")
    shown = ridgeline(*asked, "--on", "h200", "--points", "9", "--output", output, cache=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in ("calibrated with 9 points", "launch_us", "start_us", "fitted to", "the rest", "my.toml"):
        assert words in shown.stdout
    explained = json.loads(ridgeline("explain", "gpt2", "--on", output, "--json", cache=tmp_path).stdout)
    assert explained["tier"] == "calibrated"
    assert explained["basis"]["gemm"] == explained["basis"]["elementwise"] == "calibrated"
    assert list(explained["phases"][0]["seconds_by_tier"]) == ["datasheet", "generic", "calibrated"]


def test_calibrate_judges_by_other_files(tmp_path):
    (tmp_path / "points.csv").write_text(POINTS)
    (tmp_path / "others.csv").write_text(POINTS.replace(",31", ",62"))
    asked = ("calibrate", "--from", "points.csv", "--on", "h100", "--judge", "others.csv", "--json")
    asked = [str(tmp_path / word) if word.endswith("csv") else word for word in asked]
    found = json.loads(ridgeline(*asked, cache=tmp_path).stdout)
    assert found["judged"]["elementwise"]["points"] == 4
    assert found["judged"]["elementwise"]["mean"] > found["kinds"][0]["fitted"]["mean"]
    refused = ridgeline(*asked[:4], "epyc-9654", cache=tmp_path)
    assert refused.returncode == 2
    assert "no GPU: run `ridgeline measure`" in refused.stderr
    refused = ridgeline(*asked, "--model", "llama-3-8b", cache=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no file has a column layer" in refused.stderr


def test_a_tier_is_chosen_and_an_absent_one_refused(tmp_path):
    shown = ridgeline("explain", "gpt2", "--on", "h100", "--tier", "datasheet", cache=tmp_path)
    assert "By tier: datasheet" in shown.stdout
    assert "optimistic" in shown.stdout
    refused = ridgeline("explain", "gpt2", "--on", "h200", "--tier", "calibrated", cache=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "it has: datasheet, generic" in refused.stderr


def broken_folder(path, config):
    path.mkdir()
    (path / "config.json").write_text(config)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("explain", "/no/such/folder", "--on", "a100"), "/no/such/folder"),
        (("explain", "/etc/passwd/x", "--on", "a100"), "/etc/passwd/x"),
        (("explain", "", "--on", "a100"), "no model ''"),
        (("explain", "lama-2-7b", "--on", "a100"), "llama-2-7b"),
        (("explain", "gpt2", "--on", "h1000"), "h1000"),
        (("explain", "gpt2", "--on", "this"), "ridgeline measure"),
        (("explain", "gpt2", "--on", "a100", "--batch", "-1"), "batch"),
        (("explain", "gpt2", "--on", "a100", "--batch", "1" + 400 * "0"), "batch"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "1" + 5000 * "0"), "--prompt"),
        (("explain", "gpt2", "--on", "a100", "--weights", "int7"), "int7"),
        (("explain", "gpt2", "--on", "a100", "--pairs", "some"), "some"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "0"), "prompt"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "5000"), "1024"),
        (("explain", "gpt2", "--on", "a100", "--prompt", "many"), "--prompt"),
        (("explain", "gpt2", "--on", "a100", "--attention", "slow"), "slow"),
        (("explain", "gpt2", "--on", "a100", "--frobnicate"), "--frobnicate"),
        (("advise", "gpt2", "--on", "a100", "--text", "a.txt"), "leave --text out"),
        (("place", "dit-s-2", "--on", "a100,epyc-9654", "--prompt", "512"), "it has no prompt"),
        (("explain",), "model"),
        (("frobnicate",), "frobnicate"),
        (("generate", "gpt2", "hello"), "--weights random"),
        (("generate", "gpt2", "hello", "--weights", "random"), "token ids"),
        (("generate", "gpt2", "", "--weights", "random"), "as token ids"),
        (("generate", "bert-base", "hello", "--weights", "random"), "is an encoder"),
        (("generate", "llama-3-405b", "1", "--weights", "random", "--top-p", "2"), "top_p"),
        (("chat", "llama-3-405b", "--weights", "random", "--min-p", "-1"), "min_p"),
        (("chat", "bert-base", "--weights", "random"), "is an encoder"),
        (("generate", "gpt2", "1 2", "--weights", "random", "--max-tokens", "-1"), "max_tokens"),
        (("generate", "gpt2", "1 2", "--weights", "random", "--temperature", "-1"), "temperature"),
        (("generate", "gpt2", "1 2 99999999", "--weights", "random"), "99999999"),
        (("generate", "no/such-model", "hello"), "no/such-model"),
        (("generate", "demo", "x", "--regex", "(a"), "regex cannot be used: unclosed group"),
        (("generate", "demo", "x", "--json-schema", "/no/such.json"), "/no/such.json"),
        (("generate", "demo", "x", "--weights", "int5"), "int4-g128"),
        (("generate", "demo", "x", "--speculate", "much"), "draft:MODEL"),
        (("generate", "gpt2", "1", "--weights", "random:int5"), "random:int5"),
        (("check", "gpt2", "--weights", "random"), "ridgeline measure"),
        (("check", "gpt2", "--weights", "random", "--on", "a100"), "datasheet"),
        (("eval", "demo", "--heldout", "--weights", "bf16,fp8"), "'fp8' cannot be evaluated on the cpu"),
        (("bench", "gpt2"), "--weights random"),
        (("bench", "gpt2", "--depth", "0,many"), "--depth"),
        (("bench", "gpt2", "--depth", "1000"), "pp512 @ d1000 reaches 1512 tokens"),
        (("bench", "gpt2", "--format", "xml"), "table, csv, json"),
        (("bench", "bert-base", "--generate", "8"), "is an encoder"),
        (("bench", "demo", "--output", "/etc/passwd/bench.csv"), "/etc/passwd/bench.csv"),
        (("bench", "demo", "--trace", "/etc/passwd/trace.json"), "/etc/passwd/trace.json"),
        (("bench", "bert-base", "--weights", "random", "--trace", "trace.json"), "is an encoder"),
        (("measure", "--threads", "0"), "threads"),
        (("measure", "--out", "/etc/passwd/this.toml"), "/etc/passwd/this.toml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, tmp_path):
    shown = ridgeline(*arguments, cache=tmp_path)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert shown.stderr.count("\n") == 1, shown.stderr
    assert shown.stderr.startswith("ridgeline: ")
    assert named in shown.stderr


def test_formats_that_only_a_gpu_runs_are_evaluated_there():
    assert formats("bf16, fp8-128x128", "cuda") == ["bf16", "fp8-128x128"]


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


@pytest.mark.parametrize("reader", ["true", "head -n 1 > /dev/null"])
@pytest.mark.parametrize(
    "command",
    ["explain gpt2 --on a100", "explain gpt2 --on a100 --json", "validate", "validate --json", "models"],
)
def test_output_to_a_closed_pipe_is_no_error(command, reader, tmp_path):
    piped = f"{sys.executable} -m ridgeline.cli {command} | {reader}; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "RIDGELINE_CACHE": str(tmp_path)}
    shown = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, env=environment, timeout=60)
    assert (shown.stdout, shown.stderr) == ("0\n", "")


def test_what_a_folder_asks_for_in_vain_is_said_once(tmp_path):
    folder = broken_folder(
        tmp_path / "model",
        '{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 9, "n_positions": 16}',
    )
    (tmp_path / "model" / "generation_config.json").write_text('{"num_beams": 4, "typical_p": 0.9}')
    shown = ridgeline(
        "generate", folder, "1 2", "--weights", "random", "--max-tokens", "3", "--json", cache=tmp_path
    )
    assert shown.returncode == 0
    assert shown.stderr == (
        "ridgeline: generation_config.json asks for num_beams, typical_p, which ridgeline does not do yet: "
        "ignored\n"
    )
    assert len(json.loads(shown.stdout)["ids"]) > 0


@pytest.mark.parametrize(("variable", "value"), [("RIDGELINE_ISA", "foo"), ("RIDGELINE_THREADS", "0")])
def test_an_environment_that_asks_for_what_there_is_not_is_named(variable, value, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    shown = ridgeline("generate", "demo-draft", "x", "--max-tokens", "1", cache=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"ridgeline: {variable} is '{value}'")
    assert shown.stderr.count("\n") == 1


def test_the_table_and_the_trace_are_two_files(tmp_path):
    same = str(tmp_path / "both")
    shown = ridgeline("bench", "demo-draft", "--output", same, "--trace", same, cache=tmp_path)
    assert (shown.returncode, shown.stderr) == (
        2,
        f"ridgeline: --output and --trace are both {same}: give two files\n",
    )


def test_an_error_of_the_system_is_one_line(monkeypatch, capsys):
    from ridgeline import cli, models

    def refuse():
        raise PermissionError(13, "Permission denied", "/closed/config.json")

    monkeypatch.setattr(models, "builtin_names", refuse)
    monkeypatch.setattr(sys, "argv", ["ridgeline", "models"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "ridgeline: /closed/config.json: Permission denied\n"


@pytest.mark.parametrize(
    ("weights", "format"),
    [("auto", "bf16"), ("random", "bf16"), ("random:int8", "int8"), ("int4-g32", "int4-g32")],
)
def test_explain_takes_the_weights_that_running_takes(weights, format, tmp_path):
    shown = ridgeline("explain", "gpt2", "--on", "a100", "--weights", weights, "--json", cache=tmp_path)
    assert json.loads(shown.stdout)["weight_format"] == format


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
import ridgeline.analysis.observe, ridgeline.analysis.serving, ridgeline.report.chrome_trace
import ridgeline.engine.constrained, ridgeline.engine.steps
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
