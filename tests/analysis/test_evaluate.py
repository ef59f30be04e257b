"""evaluate: every token is scored once, from the context that is promised, whatever the passes."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import ridgeline
from ridgeline.analysis.evaluate import Evaluation, evaluate, evaluate_tokens, read_text, windows
from ridgeline.cli import app
from ridgeline.demo import heldout
from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.reference import Reference
from ridgeline.report.tables import show_evaluation
from ridgeline.weights.generation import GenerationDefaults

VOCAB = 130
WINDOW = 32
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
}
FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": {**LLAMA, "sliding_window": 9},
    "GPT2LMHeadModel": {
        "vocab_size": VOCAB,
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": WINDOW,
        "bos_token_id": 1,
        "eos_token_id": 0,
    },
}
BEGIN = 129


class Letters:
    """A token for each ASCII character."""

    def __init__(self, bos_id=BEGIN):
        self.bos_id = bos_id

    def encode(self, text, add_special_tokens=True):
        return [BEGIN] * add_special_tokens + [ord(letter) for letter in text]


@pytest.fixture(scope="module")
def model(make_twin):
    return make_twin("LlamaForCausalLM", **LLAMA).packed


@pytest.fixture(scope="module")
def loaded(model):
    ops = Cpu()
    return Loaded(model.config, model, ops, Letters(), None, GenerationDefaults(), None)


def some_tokens(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (length,), generator=generator).tolist()


def nats_token_by_token(model, tokens, window=WINDOW, stride=WINDOW // 2):
    """By the definition: each token from a pass of the reference over the context that is its own."""
    ops, nats = Reference(), 0.0
    with torch.inference_mode():
        for index in range(1, len(tokens)):
            past_first = max(0, index - window)
            start = -(-past_first // stride) * stride  # the first window that reaches this token
            context = tokens[start:index]
            logits = model.forward(ops, ops.batch(context, [Span(len(context))]))[0]
            nats -= torch.log_softmax(logits.double(), -1)[tokens[index]].item()
    return nats


# -- the figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("length", [2, WINDOW, WINDOW + 1, WINDOW + 2, 77])
def test_the_nats_are_those_of_reading_token_by_token(make_twin, architecture, length):
    model = make_twin(architecture, **FAMILIES[architecture]).packed
    tokens = some_tokens(length)
    found = evaluate_tokens(model, Cpu(), [tokens], text_bytes=100)
    assert found.tokens == length - 1
    assert found.nats == pytest.approx(nats_token_by_token(model, tokens), rel=1e-5)


@given(
    length=st.integers(2, 60),
    lengths=st.integers(1, WINDOW).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w))),
    chunk=st.integers(1, 40),
)
@settings(max_examples=20)
def test_windows_decide_and_chunks_do_not(model, length, lengths, chunk):
    window, stride = lengths
    tokens = some_tokens(length, seed=length)
    found = evaluate_tokens(model, Cpu(), [tokens], 100, window=window, stride=stride, chunk=chunk)
    assert found.nats == pytest.approx(nats_token_by_token(model, tokens, window, stride), rel=1e-5)


def test_documents_do_not_see_one_another(model):
    ops = Cpu()
    documents = [some_tokens(length, seed=length) for length in (50, 5, 33)]
    alone = [evaluate_tokens(model, ops, [document], 10) for document in documents]
    found = evaluate_tokens(model, ops, documents, 30)
    assert found.documents == 3
    assert found.tokens == sum(e.tokens for e in alone) == 49 + 4 + 32
    assert found.nats == pytest.approx(sum(e.nats for e in alone), rel=1e-6)


@given(
    tokens=st.integers(1, 10**6),
    nats_per_token=st.floats(0, 20),
    nbytes=st.integers(1, 10**7),
)
def test_perplexity_and_bits_per_byte_come_from_the_same_nats(tokens, nats_per_token, nbytes):
    e = Evaluation("m", "fp32", 1e6, 1, 1024, 512, tokens, nbytes, nats_per_token * tokens, 2.0)
    assert e.perplexity == pytest.approx(math.exp(e.nats / e.tokens))
    assert 2 ** (e.bits_per_byte * nbytes / tokens) == pytest.approx(e.perplexity)
    assert e.tokens_per_second == tokens / 2


# -- windows ---------------------------------------------------------------------------------------


@given(
    tokens=st.integers(0, 300),
    lengths=st.integers(1, 40).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w))),
)
def test_every_token_but_the_first_is_scored_once_with_the_promised_context(tokens, lengths):
    window, stride = lengths
    scored = []
    for part in windows(tokens, window, stride):
        assert part.start % stride == 0
        assert 1 <= part.rows <= window
        for index in range(part.scored, part.stop):
            scored.append(index)
            context = index - part.start
            assert min(index, window - stride + 1) <= context <= window
    assert scored == list(range(1, tokens))


def test_the_window_is_the_models_if_that_is_below_1024(model):
    found = evaluate_tokens(model, Cpu(), [some_tokens(40)], 10)
    assert (found.window, found.stride) == (WINDOW, WINDOW // 2)
    longer = replace(model, config=replace(model.config, window=4096))
    found = evaluate_tokens(longer, Cpu(), [some_tokens(40)], 10)
    assert (found.window, found.stride) == (1024, 512)


# -- text ------------------------------------------------------------------------------------------


def test_a_document_follows_the_beginning_token_which_is_not_scored(loaded):
    found = evaluate(loaded, ["ridge", "line"])
    expected = evaluate_tokens(
        loaded.model, loaded.ops, [[BEGIN, *map(ord, text)] for text in ("ridge", "line")], 9
    )
    assert (found.documents, found.tokens, found.bytes) == (2, 9, 9)
    assert found.nats == expected.nats


def test_without_a_beginning_token_the_first_one_is_given(loaded):
    found = evaluate(replace(loaded, tokenizer=Letters(bos_id=None)), "ridge")
    expected = evaluate_tokens(loaded.model, loaded.ops, [[ord(letter) for letter in "ridge"]], 5)
    assert (found.documents, found.tokens, found.bytes) == (1, 4, 5)
    assert found.nats == expected.nats


def test_bytes_are_those_of_the_text_in_utf8():
    text = "naïve café — 山\n"
    assert evaluate(ridgeline.load("demo"), text).bytes == len(text.encode()) > len(text)


def test_the_demo_model_knows_python_better_than_noise():
    demo = ridgeline.load("demo")
    python = evaluate(demo, "def add(a, b):\n    return a + b\n")
    noise = evaluate(demo, "kq9 ;zR( w]4 xq:: J{u mm%v 8}p <o\n")
    assert python.bits_per_byte < 0.5 * noise.bits_per_byte


def test_progress_tells_the_format_and_never_goes_back(loaded):
    told = []
    evaluate(loaded, ["a" * 100, "b" * 50], progress=lambda doing, share: told.append((doing, share)))
    assert "fp32" in told[0][0]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.5 < shares[-1] < 1


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window": 33}, "window is 33, expected a whole number of tokens from 1 to 32"),
        ({"window": 0}, "window is 0"),
        ({"window": 16, "stride": 17}, "stride is 17, expected a whole number of tokens from 1 to 16"),
        ({"stride": 0}, "stride is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"window": 8.0}, r"window is 8\.0"),
    ],
)
def test_a_length_out_of_range_is_refused(loaded, options, named):
    with pytest.raises(InputError, match=named):
        evaluate(loaded, "text", **options)


@pytest.mark.parametrize("texts", ["", [], [""]])
def test_nothing_to_score_is_refused(loaded, texts):
    with pytest.raises(InputError, match="empty"):
        evaluate(loaded, texts)


def test_an_unknown_token_is_refused(model):
    with pytest.raises(InputError, match=r"documents\[1\] holds the token id 130, expected 0 to 129"):
        evaluate_tokens(model, Cpu(), [[1, 2], [3, 130]], 10)


def test_a_model_without_a_tokenizer_is_refused(loaded):
    with pytest.raises(InputError, match="no tokenizer"):
        evaluate(replace(loaded, tokenizer=None), "text")


def test_an_encoder_is_refused(loaded):
    bert = ridgeline.declare(ridgeline.load_config("bert-base"))
    with pytest.raises(InputError, match="bert-base is an encoder"):
        evaluate(replace(loaded, config=bert.config, tokenizer=None), "text")
    with pytest.raises(InputError, match="bert-base is an encoder"):
        evaluate_tokens(bert, loaded.ops, [[1, 2]], 10)


def test_an_overflow_is_refused_with_its_format(model, loaded):
    class Overflowing(Cpu):
        def run(self, *args, **options):
            return super().run(*args, **options) * torch.inf

    with pytest.raises(InputError, match="overflows in fp32"):
        evaluate(replace(loaded, ops=Overflowing()), "text")


def test_a_text_comes_byte_for_byte(tmp_path):
    file = tmp_path / "text.py"
    file.write_bytes("é\r\nx\n".encode())
    assert read_text(file).encode() == file.read_bytes()


@pytest.mark.parametrize(
    ("data", "named"),
    [(b"", "empty"), (b"abc\xff", "byte 3"), (b"a\0b\0", "binary"), (None, "No such file")],
)
def test_a_file_that_is_no_text_is_named(tmp_path, data, named):
    file = tmp_path / "text.py"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(InputError, match=named) as refused:
        read_text(file)
    assert str(file) in str(refused.value)


# -- the held-out modules --------------------------------------------------------------------------


def test_the_held_out_files_are_whole_modules_of_the_library():
    texts = heldout.held_out_texts()
    assert {path.parts[0].removesuffix(".py") for path in texts} == heldout.HELD_OUT_MODULES
    assert all(heldout.held_out(path) for path in texts)
    assert texts[Path("heapq.py")] == Path(heldout.standard_library() / "heapq.py").read_text()


def test_a_library_without_source_is_refused(tmp_path, monkeypatch):
    (tmp_path / "csv.py").write_text("x = 1\n")
    monkeypatch.setattr(heldout, "standard_library", lambda: tmp_path)
    with pytest.raises(InputError, match="no source of colorsys, configparser, fractions"):
        heldout.held_out_texts()


# -- the command -----------------------------------------------------------------------------------


def test_formats_stand_in_one_table_compared_with_the_first():
    first = Evaluation("demo", "bf16", 2e6, 1, 1024, 512, 1000, 5000, 1000 * math.log(64), 2.0)
    second = replace(first, format="fp32", weight_bytes=4e6, nats=1000 * math.log(65.28), seconds=4.0)
    console = Console(width=100, file=io.StringIO())
    show_evaluation(console, [first, second], "some [odd] text")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "demo on some [odd] text, 5.00 kB in 1,000 tokens"
    assert lines[1].split() == ["weights", "size", "bits/byte", "perplexity", "vs", "bf16", "tokens/s"]
    assert lines[2].split() == ["bf16", "2.00", "MB", "1.2000", "64.00", "-", "500"]
    assert lines[3].split() == ["fp32", "4.00", "MB", "1.2057", "65.28", "+2.00%", "250"]
    assert "15.0% of its bytes" in lines[4]


def test_the_command_compares_formats_in_one_table(tmp_path):
    text = tmp_path / "text.py"
    text.write_text("def add(a, b):\n    return a + b\n" * 3)
    shown = CliRunner().invoke(app, ["eval", "demo", "--text", str(text), "--weights", "bf16,int8,int4-g128"])
    rows = {words[0]: words for words in map(str.split, shown.stdout.splitlines()) if words}
    bf16, int8, int4 = (float(rows[format][1]) for format in ("bf16", "int8", "int4-g128"))
    assert bf16 / int8 == pytest.approx(2, rel=0.05)
    assert int8 / int4 == pytest.approx(2, rel=0.1)
    assert rows["bf16"][5] == "-"
    assert all(rows[format][5].endswith("%") for format in ("int8", "int4-g128"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("demo",), "--text FILE or --heldout"),
        (("demo", "--text", __file__, "--heldout"), "--text FILE or --heldout"),
        (("demo", "--text", __file__, "--weights", "bf16,int5"), "'int5'"),
        (("demo", "--text", __file__, "--weights", "random"), "'random'"),
        (("demo", "--text", "no-such-file.txt"), "no-such-file.txt"),
        (("gpt2", "--text", __file__), "gpt2 is a built-in config without weights"),
    ],
)
def test_the_command_refuses_by_name_before_anything_is_loaded(arguments, named):
    shown = CliRunner().invoke(app, ["eval", *arguments])
    assert isinstance(shown.exception, InputError)
    assert named in str(shown.exception)
