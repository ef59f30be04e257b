"""The README's figures are those of the committed results."""

from benchmarks.readme import README, filled, peers_table


def test_the_readme_holds_the_figures_of_the_results():
    text = README.read_text()
    assert "<!-- figures: check_cpu -->" in text
    assert filled(text) == text, "run `python -m benchmarks.readme`"


def contestant(worker, name, rate, **more):
    return {"worker": worker, "name": name, "tokens_per_second": rate, "weights": "w", "versions": {}, **more}


def test_the_peers_table_holds_every_run_and_the_ratio_to_the_fastest():
    row = {
        "name": "decode-4bit",
        "title": "generate",
        "contestants": [
            contestant("own", "Ridgeline", 100.4, gbytes_per_second=50.0),
            contestant("own", "Ridgeline, padded", 50),
            contestant("llama_cpp", "llama.cpp", 80, speedup=1.25, versions={"llama": "1.0"}),
            contestant("transformers", "transformers", 20, speedup=5.0),
            contestant("memory", "memory, only read", 200, speedup=0.5, gbytes_per_second=60.0),
        ],
    }
    machine = {"date": "today", "cpu": "a chip", "threads": 2}
    table = peers_table({"machine": machine, "rows": [row]})
    header, rule, first, second, *_ = table.splitlines()
    assert header == "| tokens/s | Ridgeline | llama.cpp | OpenVINO | transformers | times the fastest peer |"
    assert first == "| generate | 100 | 80 |  | 20 | 1.25 |"
    assert second == "| - Ridgeline, padded | 50 |  |  |  |  |"
    assert len({line.count("|") for line in (header, rule, first, second)}) == 1
    assert (
        "generate: weights are read at 50 GB/s, and memory by itself in the same rounds at 60 GB/s" in table
    )
    assert "llama 1.0" in table
