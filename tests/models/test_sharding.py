"""A model's shard: weights, operations and exchanges of all ranks together against the whole model's."""

from dataclasses import replace

import pytest

from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.models import declare, load_config
from ridgeline.models.sharding import shard
from ridgeline.ops.batch import Span

MODELS = ("llama-3.1-8b", "qwen3-8b", "qwen2.5-7b", "gpt2", "opt-1.3b", "bert-base", "mistral-7b")


def model(name):
    return declare(load_config(name))


def step(built, rows=16, past=48, sequences=4):
    past = past if built.config.is_decoder else 0
    return trace_step(built, [Span(rows, past, sequences)])


def exchanges(trace):
    return [(op.name, op.repeat, part.comm) for op in trace.ops for part in op.parts if part.comm is not None]


@pytest.mark.parametrize(
    ("name", "ranks"), [(m, n) for m in MODELS for n in (2, 4) if load_config(m).heads % n == 0]
)
def test_ranks_together_multiply_as_much_as_the_whole_model(name, ranks):
    whole = model(name)
    padded = -(-whole.config.vocab // ranks) * ranks
    one, all_ranks = step(whole), step(shard(whole, ranks))
    for ours, theirs in zip(one.ops, all_ranks.ops, strict=True):
        if ours.kind not in ("linear", "attend"):
            continue
        factor = padded / whole.config.vocab if ours.name == "head" else 1
        if ours.name == "transform":  # what is normalised is computed by every rank
            factor = ranks
        assert theirs.flops.matrix * ranks == pytest.approx(ours.flops.matrix * factor), ours.name
        assert theirs.flops.exp * ranks == pytest.approx(ours.flops.exp * factor), ours.name


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_divided_or_held_by_every_rank(name):
    whole = model(name)
    ours = shard(whole, 2)
    for theirs, part in zip(whole.weights(), ours.weights(), strict=True):
        if part.shard is None:
            assert part is theirs
        elif part.shard.cut == "vocab":
            assert part.shape == (-(-theirs.shape[0] // 2), *theirs.shape[1:])
        else:
            assert 2 * part.numel == theirs.numel
    divided = sum(w.numel for w in ours.weights() if w.shard is not None)
    assert divided > 0.49 * whole.parameter_count() - whole.config.window * whole.config.width


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt2", "opt-1.3b"])
def test_a_layer_exchanges_two_all_reduces_of_all_its_rows(name):
    """Megatron-LM's count (Shoeybi et al., 2019): one after attention and one after the MLP."""
    built = model(name)
    rows, width = 64, built.config.width
    found = exchanges(step(shard(built, 2)))
    layer = [comm for _, repeat, comm in found if repeat == built.config.layers]
    assert [comm.collective for comm in layer] == ["all_reduce", "all_reduce"]
    assert all(comm.bytes == rows * width * 2 for comm in layer)
    ends = {name: comm for name, repeat, comm in found if repeat == 1}
    assert set(ends) == {"embedding", "head"}
    assert ends["embedding"].bytes == rows * width * 2
    assert ends["head"].bytes == pytest.approx(4 * built.config.vocab * 2, rel=1e-3)


def test_fewer_key_value_heads_than_ranks_are_held_by_several():
    built = model("llama-3.1-8b")  # 32 heads over 8 key/value heads
    ours = shard(built, 16)
    assert (ours.config.heads, ours.config.kv_heads) == (2, 1)
    qkv = next(w for w in ours.weights() if w.name == "attention.qkv")
    assert qkv.shape == ((2 + 2) * 128, 4096)
    eight, sixteen = (shard(built, n).cache_spec("bf16").elements_per_token for n in (8, 16))
    assert eight == sixteen == built.cache_spec("bf16").elements_per_token // 8


def test_the_epilogue_follows_the_reduction_and_is_no_product():
    trace = step(shard(model("opt-1.3b"), 2))
    out = next(op for op in trace.ops if op.name == "attention.out")
    assert [part.kind for part in out.parts] == ["matmul", "all_reduce", "bias", "residual"]
    product, reduction, epilogue = out.kernels(trace.lowering)
    assert (product.kind, reduction.kind, epilogue.kind) == ("matmul", "all_reduce", "bias")
    assert epilogue.flops.matrix == 0
    assert epilogue.flops.vector == 2 * 64 * 2048


def test_one_rank_is_the_model_itself():
    built = model("llama-3.1-8b")
    assert shard(built, 1) is built


def test_a_tied_table_stays_tied():
    ours = shard(model("qwen3-0.6b"), 4)
    assert ours.embedding is ours.head


def test_quantised_weights_keep_their_format_and_scales():
    built = declare(load_config("llama-3.1-8b"), "int4-g128")
    ours = shard(built, 2)
    down = next(w for w in ours.weights() if w.name == "mlp.down")
    assert (down.format, down.shape) == ("int4-g128", (4096, 7168))
    assert down.nbytes == 4096 * 7168 * (0.5 + 2 / 128)


def test_weights_of_the_trace_are_those_of_the_shard():
    ours = shard(model("llama-3.1-8b"), 4)
    trace = step(ours)
    assert trace.memory().weights == ours.weight_bytes()


@pytest.mark.parametrize(
    ("name", "ranks", "said"),
    [
        ("llama-3.1-8b", 3, "3 ranks can't share 32 heads evenly"),
        ("llama-3.1-8b", 64, "64 ranks can't share 32 heads evenly"),
        ("qwen2.5-7b", 14, "14 ranks can't share 4 key/value heads evenly"),
    ],
)
def test_what_ranks_cannot_share_is_refused(name, ranks, said):
    with pytest.raises(InputError, match=said):
        shard(model(name), ranks)


def test_a_product_that_feeds_a_norm_is_left_whole():
    """BERT's transform before its head is normalised, which takes whole rows."""
    ours = shard(model("bert-base"), 2)
    transform = next(w for w in ours.weights() if w.name == "transform")
    assert transform.shard is None


def test_the_backward_pass_of_a_shard_is_refused():
    ours = shard(model("gpt2"), 2)
    with pytest.raises(InputError, match="shared among ranks is not counted yet"):
        step(ours).backward()


def test_a_cut_of_one_weight_alone_would_be_noticed():
    """The check above sums what ranks do; a rank that kept a whole matrix would show in it."""
    whole = model("gpt2")
    ours = shard(whole, 2)
    layer = replace(ours.layers[0], up=whole.layers[0].up, up_bias=whole.layers[0].up_bias)
    wrong = replace(ours, layers=(layer, *ours.layers[1:]))
    up = next(op for op in step(wrong).ops if op.name == "mlp.up")
    expected = next(op for op in step(whole).ops if op.name == "mlp.up").flops.matrix
    assert up.flops.matrix * 2 != pytest.approx(expected)
