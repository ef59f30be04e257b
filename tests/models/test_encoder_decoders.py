"""T5 computes what transformers computes: the encoder's states, the decoder's logits, greedy tokens."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import ridgeline
from ridgeline.analysis.step import trace_step
from ridgeline.engine.sampling import BeamSearch
from ridgeline.errors import InputError
from ridgeline.models import declare, load_config, read_config
from ridgeline.ops.batch import Memory, Span
from ridgeline.ops.count import Count
from ridgeline.ops.relative import buckets
from ridgeline.weights.load import load_model
from ridgeline.weights.pack import load_packed
from tests.models.family_twins import VOCAB
from tests.models.test_families import READINGS, assert_close

T5 = {
    **VOCAB,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,  # more would be too many for the cache that transformers makes
    "num_heads": 4,
    "initializer_factor": 0.1,  # scores are not scaled: at 1 the softmax magnifies what rounding leaves
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 30,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
FLAN = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SOURCE, TARGET = 50, 40


@pytest.fixture(scope="module", autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=READINGS)
def ops(request):
    return READINGS[request.param]


@pytest.fixture(scope="module")
def untied(make_twin, tmp_path_factory):
    """transformers 5 builds T5 with a tied head only, but loads a checkpoint that has another, as Flan-T5's
    do."""
    made = make_twin("T5ForConditionalGeneration", **FLAN)
    folder = tmp_path_factory.mktemp("untied")
    tensors = load_file(made.folder / "model.safetensors")
    head = torch.randn(101, 48, generator=torch.Generator().manual_seed(3))
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    raw = json.loads((made.folder / "config.json").read_text())
    raw["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(raw))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    assert not torch.equal(theirs.lm_head.weight, theirs.shared.weight)
    config = load_config(folder)
    return type(made)(theirs, load_model(config, folder), load_packed(config, folder, "fp32"), folder)


@pytest.fixture(scope="module", params=["t5", "flan"])
def twin(request, make_twin):
    if request.param == "flan":
        return request.getfixturevalue("untied")
    return make_twin("T5ForConditionalGeneration", **T5)


def some_ids(count, seed):
    return torch.randint(1, 101, (count,), generator=torch.Generator().manual_seed(seed))


def test_logits_of_a_whole_pass_are_those_of_transformers(twin, ops):
    source, target = some_ids(SOURCE, 1), some_ids(TARGET, 2)
    memory = ops.encode(twin.on(ops), source, [Span(SOURCE)])
    logits = ops.run(twin.on(ops), target, [Span(TARGET)], logits="all", memory=memory)
    theirs = twin.theirs(input_ids=source[None], decoder_input_ids=target[None])
    assert_close(memory.states, theirs.encoder_last_hidden_state[0])
    assert_close(logits, theirs.logits[0])


def test_steps_over_both_caches_give_the_logits_of_one_pass(twin, ops):
    """Two packed requests of other lengths; one source is shorter than the chunk that reads it."""
    model, lengths = twin.on(ops), (SOURCE, 3)
    sources = [some_ids(n, seed) for seed, n in enumerate(lengths)]
    targets = [some_ids(TARGET, 7), some_ids(TARGET, 8)]
    stored = ops.alloc_cache(model.memory_spec("fp32"), 4)
    spans = [Span(SOURCE, table=(2, 0)), Span(3, table=(3,))]
    memory = ops.encode(model, torch.cat(sources), spans, stored)
    cache, tables = ops.alloc_cache(model.cache_spec("fp32"), 4), ((3, 1), (0, 2))
    rows = []
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, TARGET)):
        step = [Span(stop - start, start, table=table) for table in tables]
        ids = torch.cat([target[start:stop] for target in targets])
        reading = Memory(memory.spans, cache=stored)
        rows.append(ops.run(model, ids, step, logits="all", cache=cache, memory=reading).view(2, -1, 101))
    for logits, source, target in zip(torch.cat(rows, 1), sources, targets, strict=True):
        theirs = twin.theirs(input_ids=source[None], decoder_input_ids=target[None])
        assert_close(logits, theirs.logits[0])


def test_on_the_native_kernels_a_request_has_the_same_bits_alone_and_beside_another(twin):
    ops, model = READINGS["cpu"], twin.packed
    source, target, other = some_ids(SOURCE, 1), some_ids(TARGET, 2), some_ids(33, 3)

    def decoded(sources, targets):
        """The logits of the last of the requests, its target in two pieces."""
        stored = ops.alloc_cache(model.memory_spec("fp32"), 8)
        cache = ops.alloc_cache(model.cache_spec("fp32"), 8)
        tables = [(7, 1), (4, 2)][-len(sources) :]
        spans = [Span(len(s), table=table) for s, table in zip(sources, tables, strict=True)]
        memory = Memory(ops.encode(model, torch.cat(sources), spans, stored).spans, cache=stored)
        rows, past = [], 0
        for size in (TARGET - 9, 9):
            pieces = [t[past : past + size] for t in targets]
            step = [Span(len(p), past, table=table) for p, table in zip(pieces, tables, strict=True)]
            logits = ops.run(model, torch.cat(pieces), step, logits="all", cache=cache, memory=memory)
            rows.append(logits[-size:])
            past += size
        return torch.cat(rows)

    alone = decoded([source], [target])
    assert torch.equal(decoded([other, source], [some_ids(TARGET, 4), target]), alone)


STEPS = 60


def test_greedy_tokens_are_those_of_transformers(twin):
    """Through ``ridgeline.load``, for several prompts: with these seeds no two best logits are close."""
    prompts = [some_ids(n, seed).tolist() for n, seed in ((SOURCE, 1), (1, 5), (33, 6))]
    results = ridgeline.load(twin.folder).generate(prompts, max_tokens=STEPS)
    for prompt, result in zip(prompts, results, strict=True):
        expected = twin.theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=STEPS,
            do_sample=False,
        )
        assert list(result.ids) == expected[0, 1:].tolist()
        assert (result.prompt_tokens, result.finish_reason) == (len(prompt), "length")


def test_a_stop_token_ends_an_output_and_samples_repeat_by_seed(twin):
    loaded = ridgeline.load(twin.folder)
    prompt = some_ids(9, 3).tolist()
    [whole] = loaded.generate(prompt, max_tokens=9)
    stop = whole.ids[4]
    [cut] = loaded.generate(prompt, max_tokens=9, stop_ids=[stop], logprobs=2)
    assert cut.ids == whole.ids[: whole.ids.index(stop) + 1]
    assert (cut.finish_reason, len(cut.logprobs)) == ("stop", len(cut.ids))
    hot = loaded.sampling(temperature=20.0, seed=5)
    again = [loaded.generate(prompt, max_tokens=9, n=2, sampling=hot) for _ in range(2)]
    ids = [[result.ids for result in results] for results in again]
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[0][1]


def test_the_decoder_begins_with_the_token_that_the_folder_names(twin, tmp_path):
    for file in twin.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 7}')
    prompt = some_ids(20, 1)
    [result] = ridgeline.load(tmp_path).generate(prompt.tolist(), max_tokens=5)
    expected = twin.theirs.generate(
        prompt[None],
        attention_mask=torch.ones(1, 20),
        max_new_tokens=5,
        do_sample=False,
        decoder_start_token_id=7,
    )
    assert list(result.ids) == expected[0, 1:].tolist()
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 101}')
    with pytest.raises(InputError, match="decoder_start_token_id is 101"):
        ridgeline.load(tmp_path).generate(prompt.tolist(), max_tokens=5)


def test_what_does_not_go_with_an_encoder_decoder_is_refused_in_one_line(twin):
    loaded = ridgeline.load(twin.folder)
    for refused in (
        lambda: ridgeline.Engine(loaded),
        lambda: loaded.generate([1, 2], beams=BeamSearch(2)),
        lambda: loaded.generator(prefix_cache=False),
        lambda: loaded.generator(speculator=object()),
        lambda: trace_step(loaded.model, [Span(3)]),
        lambda: check_scoring(loaded.config),
    ):
        with pytest.raises(InputError) as caught:
            refused()
        assert "encoder-decoder" in str(caught.value)
        assert "\n" not in str(caught.value)


def check_scoring(config):
    from ridgeline.analysis.evaluate import _require_decoder

    _require_decoder(config)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "most"), [(32, 128), (16, 30), (4, 3), (8, 1000)])
def test_distances_fall_into_the_buckets_of_transformers(bidirectional, count, most):
    distances = torch.arange(-3000, 3001)
    attention = transformers.models.t5.modeling_t5.T5Attention
    expected = attention._relative_position_bucket(distances, bidirectional, count, most)
    assert torch.equal(buckets(distances, count, most, bidirectional), expected)


def test_one_token_uses_every_parameter_once():
    model = declare(load_config("t5-small"))
    assert model.active_parameters() == model.parameter_count()


def test_a_pass_holds_every_weight_once():
    """The layers of both stacks, and one table of biases a stack."""
    model, ops = declare(load_config("t5-small")), Count()
    trace = ops.trace(model.whole(ops, ops.batch([Span(3)], logits="all")))
    assert trace.memory().weights == model.weight_bytes()


# -- the config -----------------------------------------------------------------------------------------

MINIMAL = {"model_type": "t5", "vocab_size": 101, "d_model": 48, "d_ff": 80, "num_layers": 3}


def test_a_field_left_out_has_the_value_that_transformers_gives_it():
    theirs = transformers.AutoConfig.for_model(**MINIMAL)
    ours = read_config(MINIMAL, "x")
    assert (ours.heads, ours.head_dim, ours.layers) == (theirs.num_heads, theirs.d_kv, 3)
    assert (ours.buckets, ours.max_distance) == (
        theirs.relative_attention_num_buckets,
        theirs.relative_attention_max_distance,
    )
    assert (ours.eps, ours.scaled, ours.tied) == (theirs.layer_norm_epsilon, True, True)
    assert ours.activation == theirs.dense_act_fn == "relu"


@pytest.mark.parametrize("tied", [True, False, None])
def test_what_transformers_saves_is_read(tied, tmp_path):
    """It ties the head whatever the config said, and keeps whether that meant to scale."""
    raw = {**MINIMAL, "tie_word_embeddings": tied, "feed_forward_proj": "gated-gelu"}
    transformers.AutoConfig.for_model(**raw).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    ours = read_config({**saved, "dtype": None}, "x")
    assert ours == replace(read_config(raw, "x"), tied=True)
    assert ours.scaled == (tied is not False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feed_forward_proj", "gated-tanh"),
        ("relative_attention_num_buckets", 2),
        ("relative_attention_max_distance", 16),
        ("is_encoder_decoder", False),
        ("d_kv", 0),
        ("logit_softcap", 30.0),
        ("num_decoder_layers", 0),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused_by_name(field, value):
    with pytest.raises(InputError) as caught:
        read_config({**MINIMAL, field: value}, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert field in str(caught.value)


@pytest.mark.parametrize("field", MINIMAL)
def test_every_field_of_a_minimal_config_is_needed(field):
    with pytest.raises(InputError, match=field):
        read_config({k: v for k, v in MINIMAL.items() if k != field}, "x")


def test_copies_of_the_embedding_may_be_stored_beside_it_or_in_its_place(make_twin, tmp_path):
    twin = make_twin("T5ForConditionalGeneration", **T5)
    tensors = load_file(twin.folder / "model.safetensors")
    (tmp_path / "config.json").write_text((twin.folder / "config.json").read_text())
    config, shared = load_config(tmp_path), tensors.pop("shared.weight")
    copies = {f"{stack}.embed_tokens.weight": shared.clone() for stack in ("encoder", "decoder")}
    unread = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(16, 4)}
    for stored in ({**copies, **unread}, {"shared.weight": shared, **copies}):
        save_file({**tensors, **stored}, tmp_path / "model.safetensors")
        assert torch.equal(load_model(config, tmp_path).embedding.data, shared)
    copies["decoder.embed_tokens.weight"][3, 4] += 1
    save_file({**tensors, "shared.weight": shared, **copies}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"decoder\.embed_tokens\.weight"):
        load_model(config, tmp_path)
