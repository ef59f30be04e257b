"""A bench's result as a table, as CSV, and as JSON."""

import csv
import io
import json

import pytest

from ridgeline.analysis.bench import Bench, BenchResult, BenchTest
from ridgeline.hardware.fingerprint import Fingerprint
from ridgeline.report.bench import WRITERS

MACHINE = Fingerprint("2026-01-01", "a, chip", 4, 2, "avx2", "Linux", "3.11", "2.13", "0.1")
PROMPT = BenchResult(BenchTest("prompt", 512, 0, 1), (2.0, 2.0), predicted=1.6)
GENERATE = BenchResult(BenchTest("generate", 10, 4096, 4), (2.0, 4.0), predicted=None)


def written(form, *results):
    stream = io.StringIO()
    WRITERS[form](Bench("a-model", "int4-g32", 1_100_000_000, MACHINE, results), stream)
    return stream.getvalue()


def test_the_table_names_model_machine_and_every_test():
    title, header, prompt, generate, *_ = written("table", PROMPT, GENERATE).splitlines()
    assert title == "a-model, 1.10B parameters in int4-g32; 2 threads of a, chip"
    assert header.split() == ["test", "batch", "tokens/s", "±", "ms/token", "predicted", "error"]
    assert prompt.split() == ["pp512", "1", "256.0", "0.0", "3.906", "320.0", "-20.0%"]
    assert generate.split() == ["tg10", "@", "d4096", "4", "15.0", "7.1", "300.000", "-", "-"]


def test_without_predictions_the_table_has_no_such_columns():
    assert "predicted" not in written("table", GENERATE)


def test_csv_is_a_line_a_test_with_the_machines_fingerprint():
    prompt, generate = csv.DictReader(io.StringIO(written("csv", PROMPT, GENERATE)))
    assert prompt["test"] == "pp512"
    assert float(prompt["predicted_tokens_per_second"]) == 320
    assert generate["predicted_tokens_per_second"] == ""
    assert (generate["depth"], generate["batch"], generate["tokens"]) == ("4096", "4", "10")
    assert float(generate["deviation"]) == pytest.approx(50**0.5, abs=1e-3)
    assert (prompt["cpu"], prompt["threads"], prompt["isa"]) == ("a, chip", "2", "avx2")


def test_json_holds_the_seconds_of_every_repetition():
    found = json.loads(written("json", PROMPT, GENERATE))
    assert [result["seconds"] for result in found["results"]] == [[2, 2], [2, 4]]
    assert found["results"][1]["tokens_per_second"] == 15
    assert found["machine"]["cpu"] == "a, chip"
