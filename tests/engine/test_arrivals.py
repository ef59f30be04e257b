"""Requests to simulate: drawn as said, read as written, refused by the line."""

import statistics
from itertools import pairwise

import pytest

from ridgeline.engine.arrivals import Arrival, Lengths, arrivals_of, poisson, read_arrivals
from ridgeline.engine.metrics import summarise_recorded
from ridgeline.errors import InputError


def test_gaps_have_the_mean_and_the_spread_of_a_poisson_process():
    arrivals = poisson(4.0, 20_000, Lengths(32, 512), Lengths(16, 256))
    gaps = [b.seconds - a.seconds for a, b in pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)


def test_lengths_fill_their_range_evenly():
    arrivals = poisson(1.0, 20_000, Lengths(32, 512), Lengths(16, 16))
    prompts = [arrival.prompt for arrival in arrivals]
    assert (min(prompts), max(prompts)) == (32, 512)
    assert statistics.mean(prompts) == pytest.approx(272, rel=0.02)
    assert {arrival.output for arrival in arrivals} == {16}


def test_the_same_seed_draws_the_same_requests():
    assert arrivals_of("poisson:2", seed=3) == arrivals_of("poisson:2", seed=3) != arrivals_of("poisson:2")
    assert len(arrivals_of("poisson:2")) == 1000


def test_json_lines_and_csv_say_the_same(tmp_path):
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    first = '{"arrival": 107.5, "prompt": 20, "output": 3}'
    lines.write_text(f'{first}\n\n{{"id": "x", "arrival": 100, "prompt": 9, "output": 1}}\n')
    table.write_text("prompt,arrival,output\n20,107.5,3\n9,100,1\n")
    expected = [Arrival(7.5, 20, 3), Arrival(0.0, 9, 1)]
    assert read_arrivals(lines) == read_arrivals(table) == expected


def test_a_record_of_vllm_is_read_on_the_engine_s_clock(tmp_path):
    """As LLMServingSim writes it: arrival_time is of the calendar, the other times of the engine's clock."""
    record = tmp_path / "run.jsonl"
    record.write_text(
        '{"request_id": "a", "input_toks": 9, "output_toks": 3, "arrival_time": 1787267980.1, '
        '"queued_ts": 500.5, "scheduled_ts": 500.6, "first_token_ts": 501.0, "last_token_ts": 503.0}\n'
        '{"input_toks": 4, "output_toks": 1, "arrival_time": 1787267979.6, "queued_ts": 500.0, '
        '"first_token_ts": 500.25, "last_token_ts": 500.25}\n'
    )
    found = read_arrivals(record)
    assert found == [Arrival(0.5, 9, 3, 1.0, 3.0), Arrival(0.0, 4, 1, 0.25, 0.25)]
    recorded = summarise_recorded(found)
    assert (recorded.seconds, recorded.output_tokens) == (3.0, 4)
    assert recorded.ttft.mean == pytest.approx((0.5 + 0.25) / 2)
    assert recorded.tpot.mean == pytest.approx(1.0)
    assert summarise_recorded([*found, Arrival(0.0, 1, 1)]) is None


@pytest.mark.parametrize("first", ["99", "9", "x", "NaN"])
def test_recorded_times_out_of_order_are_refused(tmp_path, first):
    record = tmp_path / "run.csv"
    record.write_text(f"arrival,prompt,output,first_token,last_token\n10,1,2,{first},20\n")
    with pytest.raises(InputError, match="line 2: expected first_token and last_token in seconds"):
        read_arrivals(record)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl holds no request"),
        ("a.jsonl", '{"arrival": 0, "prompt": 1, "output": 1}\n{', "line 2 is not JSON"),
        ("a.jsonl", "[1, 2, 3]", "line 1 has no arrival and no prompt and no output"),
        ("a.jsonl", '{"arrival": 0, "prompt": 1}', "line 1 has no output"),
        ("a.jsonl", '{"arrival": 0, "prompt": 0, "output": 1}', "line 1: expected arrival in seconds"),
        ("a.jsonl", '{"arrival": 0, "prompt": 1.5, "output": 1}', "line 1: expected"),
        ("a.jsonl", '{"arrival": NaN, "prompt": 1, "output": 1}', "line 1: expected"),
        ("a.csv", "arrival,prompt,output\n0,1,1\n0,x,1\n", "line 3: expected"),
        ("a.csv", "time,prompt\n0,1\n", "line 2 has no arrival and no output"),
        ("a.csv", "arrival,prompt,output\n0,1\n", "line 2 has no output"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_arrivals(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_and_a_folder_are_told_what_there_is(tmp_path):
    (tmp_path / "r.txt").write_text("arrival,prompt,output\n0,1,1\n")
    with pytest.raises(
        InputError, match=r"r\.txt is neither \.jsonl nor \.csv: give such a file, or poisson"
    ):
        arrivals_of(str(tmp_path / "r.txt"))
    with pytest.raises(InputError, match=r"is a folder: give a \.jsonl or \.csv file, or poisson:RATE"):
        arrivals_of(str(tmp_path))
    (tmp_path / "R.CSV").write_text("arrival,prompt,output\n0,1,1\n")
    assert arrivals_of(str(tmp_path / "R.CSV")) == [Arrival(0.0, 1, 1)]


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*nothing\.csv"):
        read_arrivals(tmp_path / "nothing.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        read_arrivals(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"requests": f"poisson:{rate}"}, f"poisson:{rate} has no rate from 1e-06 to 1e")
            for rate in ("fast", "", "0", "-1", "nan", "inf", "1e-300", "1e300")
        ),
        ({"requests": "poisson:1", "seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ({"requests": "poisson:1", "count": 0}, "count is 0, expected"),
        ({"requests": "poisson:1", "prompt": "0-5"}, "prompt is '0-5', expected a range from 1 token"),
        ({"requests": "poisson:1", "output": "9-5"}, "output is '9-5', expected a range"),
        ({"requests": "poisson:1", "output": "1-2-3"}, "output is '1-2-3', expected a number like"),
        ({"requests": "a.csv", "count": 5}, "count is for requests that are drawn"),
        ({"requests": "a.csv", "output": "5"}, "output is for requests that are drawn"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        arrivals_of(**options)
