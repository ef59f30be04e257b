"""The harness beside peers: turns, who is left out, what becomes of the seconds, and the model files."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

import ridgeline
from benchmarks import record
from benchmarks.peers import results
from benchmarks.peers.cases import ENCODER_LENGTHS, MEMORY, PADDED_LENGTH, PEERS, ROWS, Case, Contestant, Row
from benchmarks.peers.files import write_checkpoint
from benchmarks.peers.protocol import Task
from benchmarks.peers.turns import NEEDED, ROOT, Failed, Turns, take_turns
from ridgeline.hardware.fingerprint import Fingerprint
from tests.benchmarks.fake_worker import BROKEN, DIES, UNABLE, WELL

MACHINE = Fingerprint("2026-01-01", "some", 2, 2, "portable", "Linux", "3.11", "2.13", "0.1")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """``fake(tokens, seconds)``: a contestant whose interpreter runs the fake worker."""
    python = tmp_path / "python"
    worker = Path(__file__).with_name("fake_worker.py")
    python.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' '{worker}'\n")
    python.chmod(0o755)
    monkeypatch.setenv("RIDGELINE_LLAMA_CPP_PYTHON", str(python))

    def make(tokens, seconds):
        return Contestant(f"takes {seconds} s", "llama_cpp", Case("generate", "4-bit", tokens, depth=seconds))

    return make


def test_contestants_take_turns_once_all_are_loaded(fake, tmp_path):
    told = []
    loaded = lambda: told.append((tmp_path / "turns").exists())  # noqa: E731
    found = take_turns([fake(WELL, 5), fake(WELL, 7)], 3, 2, tmp_path, loaded)
    assert told == [False]
    assert (tmp_path / "turns").read_text().split() == ["5", "7"] * 3
    assert [turns.seconds for turns in found] == [(5.0,) * 3, (7.0,) * 3]
    assert found[0].ready == {"weights": "2 threads", "versions": {"fake": "1.0"}, "step_bytes": 1000}


@pytest.mark.parametrize(
    ("tokens", "reason"), [(UNABLE, "it has no such case"), (BROKEN, "ZeroDivisionError: by 0")]
)
def test_who_cannot_take_part_is_left_out_with_the_reason(tokens, reason, fake, tmp_path, capsys):
    found = take_turns([fake(tokens, 5), fake(WELL, 7)], 1, 2, tmp_path)
    assert [turns.contestant for turns in found] == [fake(WELL, 7)]
    assert capsys.readouterr().out == f"  takes 5 s is left out: {reason}\n  round 1: 7.000 s\n"


def test_a_peer_that_is_not_installed_is_left_out_with_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RIDGELINE_LLAMA_CPP_PYTHON", raising=False)
    monkeypatch.setitem(NEEDED, "llama_cpp", ("no_such_package", "pip install '.[peers]'"))
    assert (
        take_turns([Contestant("llama.cpp", "llama_cpp", Case("prompt", "4-bit", 1))], 1, 2, tmp_path) == []
    )
    said = capsys.readouterr().out
    assert "pip install '.[peers]'" in said
    assert "RIDGELINE_LLAMA_CPP_PYTHON" in said


def test_an_interpreter_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RIDGELINE_OPENVINO_PYTHON", "/no/such/python")
    take_turns([Contestant("OpenVINO", "openvino", Case("prompt", "4-bit", 1))], 0, 2, tmp_path)
    assert capsys.readouterr().out == "  OpenVINO is left out: /no/such/python: No such file or directory\n"


def test_a_worker_that_dies_says_its_last_words(fake, tmp_path):
    with pytest.raises(Failed, match=r"takes 5 s: its process ended \(killed by a signal\)"):
        take_turns([fake(DIES, 5)], 1, 2, tmp_path)


def test_a_task_survives_its_way_to_the_worker():
    task = Task(Case("generate", "4-bit", 64, depth=4096, batch=16), 2, Path("/some/folder"))
    assert Task.from_json(task.to_json()) == task


def test_every_row_begins_with_us_and_has_workers_that_exist():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.contestants[0].worker == "own"
        for contestant in row.contestants:
            assert contestant.worker in (*PEERS, MEMORY)
            assert (ROOT / "benchmarks/peers/workers" / f"{contestant.worker}.py").is_file()


def test_the_encoders_sequences_are_40_tokens_on_average_and_fit():
    assert sum(ENCODER_LENGTHS) / len(ENCODER_LENGTHS) == 40
    assert max(ENCODER_LENGTHS) == PADDED_LENGTH


# -- what becomes of the seconds -------------------------------------------------------------------

OURS = Contestant("Ridgeline", "own", Case("generate", "4-bit", 10, batch=2))
THEIRS = Contestant("llama.cpp", "llama_cpp", OURS.case)
ROW = Row("row", "a row", (OURS, THEIRS))
READY = {"weights": "Q4_0", "versions": {}, "step_bytes": 10**9}


def test_the_speedup_is_the_median_of_the_rounds_ratios():
    own = Turns(OURS, READY, (1.0, 2.0, 10.0))
    peer = Turns(THEIRS, READY, (3.0, 2.0, 20.0))
    found = results.summary(ROW, [own, peer])
    mine, other = found["contestants"]
    assert (mine["tokens_per_second"], other["tokens_per_second"]) == (10.0, 6.67)
    assert other["speedup"] == 2.0
    assert "speedup" not in mine
    assert found["rounds"] == 3


def test_a_generating_contestant_reads_its_weights_once_a_step():
    (found,) = results.summary(ROW, [Turns(THEIRS, READY, (0.5,))])["contestants"]
    assert found["gbytes_per_second"] == 10 / 0.5
    assert "speedup" not in found
    prompt = Contestant("llama.cpp", "llama_cpp", Case("prompt", "4-bit", 10))
    assert "gbytes_per_second" not in results.summary(ROW, [Turns(prompt, READY, (0.5,))])["contestants"][0]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """``stored(rows, **changes)``: the file after storing from a machine with changes."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)

    def store(rows, **changes):
        path = results.store(rows, replace(MACHINE, **changes))
        return json.loads(path.read_text())

    return store


def test_rows_are_merged_by_name(stored):
    stored([{"name": "a", "x": 1}, {"name": "b", "x": 1}])
    found = stored([{"name": "b", "x": 2}])
    assert found["rows"] == [{"name": "a", "x": 1}, {"name": "b", "x": 2}]
    assert found["machine"]["cpu"] == "some"


def test_another_machines_rows_are_dropped(stored):
    stored([{"name": "a"}])
    found = stored([{"name": "b"}], cpu="other")
    assert [row["name"] for row in found["rows"]] == ["b"]


# -- the files that contestants share --------------------------------------------------------------


def test_the_checkpoint_is_one_that_loads(tmp_path):
    write_checkpoint(LLAMA, tmp_path / "model")
    model = ridgeline.load(tmp_path / "model", weights="auto").model
    assert model.config.layers == 2
    assert model.parameter_count() == sum(w.numel for w in model.weights())


def test_llama_cpps_file_holds_the_checkpoints_tensors(tmp_path):
    gguf = pytest.importorskip("gguf")
    from benchmarks.peers.workers.gguf_file import embedding_bytes, from_checkpoint

    write_checkpoint(LLAMA, tmp_path / "tinyllama")
    path = from_checkpoint(tmp_path)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert len(tensors) == 3 + 2 * 9
    assert embedding_bytes(path) == 50 * 32 * 2
    down = torch.from_numpy(numpy.array(tensors["blk.1.ffn_down.weight"].data)).view(torch.bfloat16)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "tinyllama" / "model.safetensors")
    assert torch.equal(down.view(32, 64), saved["model.layers.1.mlp.down_proj.weight"])


def test_memory_is_read_as_often_as_there_are_tokens(tmp_path, monkeypatch):
    from benchmarks.peers.workers import memory

    monkeypatch.setattr(memory, "RING_BYTES", 1 << 16)
    ready = memory.prepare(Task(Case("generate", "4-bit", 9), 1, tmp_path))
    assert ready.step_bytes == 1 << 16
    assert ready.run() > 0
