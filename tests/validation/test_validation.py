"""Every published figure is reproduced, and the comparison that says so can fail."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ridgeline.validation import FIGURES, Figure, compare, validate
from ridgeline.validation.performance import crossover

PLAIN = [figure for figure in FIGURES if figure.right is None]
ERRATA = [figure for figure in FIGURES if figure.right is not None]

#: What the documents get wrong: part of the item, what they print, the right value.
DOCUMENT_ERRATA = [
    ("left for the KV cache on four A100 40 GB", "16", "56"),
    ("tokens that fit on four A100 40 GB", "8e3", "26.7e3"),
    ("act-to-act matmuls), length 32768", "8192", "16384"),
    ("FFN (projections) as it really is", "5504", "8256"),
    ("llama-2-7b, KV cache a token", "512", "256"),
    ("llama-2-7b, KV cache a token, fp16", "256", "512"),
    ("llama-2-7b, KV cache of 32k tokens", "16", "8"),
    ("llama-2-7b, KV cache of 32k tokens, fp16", "8", "16"),
    ("RTX 4060, memory bandwidth", "768", "272"),
    ("RTX 4060, the document's FLOP/s over the bandwidth", "20", "57"),
    ("decode intensity to hold against that ratio", "2", "1"),
    ("loading over computing a token's KV, 40 GB card", "208", "201"),
    ("loading over computing a token's KV, 80 GB card", "208", "153"),
    ("FlashAttention, memory at twice the length", "4.0", "2.0"),
    ("Differential attention, KV cache", "2.0", "1.0"),
    ("pass, draft in the same memory", "1.05", "1.8"),
    ("draft in the same memory", "0.95", "0.56"),
]


def name(figure):
    return f"{figure.source}: {figure.item} ({figure.unit})"


def moved(printed, units):
    """The printed number with its last digit moved by so many units."""
    number = Decimal(printed)
    return str(number + units * Decimal(1).scaleb(number.as_tuple().exponent))


def tampered(figure, printed):
    """Values that a slip of the pen could have left in place of ``printed``."""
    if figure.tolerance is None:
        return [slip for slip in (moved(printed, -1), moved(printed, 1)) if float(slip)]
    return [str(float(printed) * factor) for factor in (1 - 3 * figure.tolerance, 1 + 3 * figure.tolerance)]


@pytest.fixture(scope="module")
def results():
    return validate()


def test_every_figure_is_reproduced(results):
    assert [result for result in results if not result.ok] == []


def test_the_results_are_in_the_order_of_the_figures(results):
    assert [(r.source, r.item, r.unit) for r in results] == [(f.source, f.item, f.unit) for f in FIGURES]


@pytest.mark.parametrize("figure", PLAIN, ids=name)
def test_a_published_number_that_is_off_by_its_last_digit_is_not_reproduced(figure):
    for printed in tampered(figure, figure.published):
        assert not compare(replace(figure, published=printed)).ok


@pytest.mark.parametrize("figure", ERRATA, ids=name)
def test_an_erratum_holds_only_for_the_right_value(figure):
    for right in tampered(figure, figure.right):
        assert not compare(replace(figure, right=right)).ok


@pytest.mark.parametrize("figure", ERRATA, ids=name)
def test_an_erratum_that_prints_the_right_value_is_none(figure):
    assert not compare(replace(figure, published=figure.right)).ok
    assert compare(replace(figure, published=figure.right, right=None)).ok


@pytest.mark.parametrize(("item", "published", "right"), DOCUMENT_ERRATA)
def test_the_errata_of_the_documents_are_among_the_figures(item, published, right):
    assert any(item in f.item and (f.published, f.right) == (published, right) for f in ERRATA)


def test_attention_overtakes_the_mlp_at_exactly_twice_the_width():
    assert crossover() == 2 * 1536


def test_no_figure_is_listed_twice():
    assert len({(f.source, f.section, f.item, f.unit) for f in FIGURES}) == len(FIGURES)


@pytest.mark.parametrize("operator", ["MHA (casting)", "MHA (act-to-act)", "FFN"])
def test_every_printed_cell_of_the_intensity_tables_is_a_figure(operator):
    cells = [f for f in FIGURES if f.item.startswith(f"{operator}, n=")]
    assert len(cells) == 5 + 6 + 7 + 7  # more new tokens than the sequence has are left blank


def test_the_llama_table_has_four_lengths_of_four_rows_of_two_columns():
    assert len([f for f in FIGURES if f.section == "Long Context" and ", length " in f.item]) == 4 * 4 * 2


@given(st.floats(0.01, 1e6), st.integers(0, 4), st.integers(2, 1000))
@example(0.125, 0, 2)  # a tie: 0.12 is the rounded one, and 0.125 - 0.12 is a little over 0.005
def test_a_number_agrees_with_itself_rounded_and_not_with_what_is_further_off(value, digits, units):
    printed = f"{value:.{digits + 2}f}"
    figure = Figure("source", "section", "item", "unit", printed, lambda: value)
    assert compare(figure).ok
    assert not compare(replace(figure, published=moved(printed, units))).ok


@pytest.mark.parametrize(("computed", "ok"), [(2501, True), (3499, True), (2499, False), (3501, False)])
def test_an_exponent_leaves_the_digits_below_it_open(computed, ok):
    assert compare(Figure("source", "section", "item", "unit", "3e3", lambda: computed)).ok is ok


def test_the_error_is_signed_and_relative_to_what_was_published():
    figure = Figure("source", "section", "item", "unit", "200", lambda: 150, right="150")
    assert compare(figure).error == -0.25
    assert compare(figure).right == 150


def test_the_results_are_plain_data(results):
    rows = json.loads(json.dumps([asdict(result) for result in results]))
    assert rows[0].keys() >= {
        "source",
        "item",
        "unit",
        "published",
        "computed",
        "error",
        "right",
        "note",
        "ok",
    }


def test_validation_needs_no_pytorch_and_a_few_seconds_of_computing():
    """Most of it goes into the serving run that is simulated."""
    program = (
        "import sys, time; from ridgeline.validation import validate; validate(); "
        "print('torch' in sys.modules, time.process_time())"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported, seconds = output.stdout.split()
    assert imported == "False"
    assert float(seconds) < 6
