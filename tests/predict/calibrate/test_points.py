"""Points are read from CSV files, and a wrong file is refused with its name and line."""

import gzip
from collections import Counter

import numpy as np
import pytest

from ridgeline.analysis.calibrate import load_points
from ridgeline.errors import InputError
from ridgeline.predict.calibrate.points import read_file, read_points

GEMM = "m,n,k,time_us,op\n1,4096,1024,9.0,o_proj\n8,4096,1024,9.5,o_proj\n"
ROWS = "rows,width,time_us,op\n1,4096,2.0,add\n2,4096,2.5,rope\n"


def written(folder, text, name="points.csv"):
    path = folder / name
    path.write_text(text)
    return path


def refusal(folder, text, **options):
    path = written(folder, text)
    with pytest.raises(InputError) as caught:
        load_points([path], **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_the_columns_tell_the_kind(tmp_path):
    found = read_points([written(tmp_path, GEMM), written(tmp_path, ROWS, "rows.csv")])
    assert list(found) == ["gemm", "elementwise"]
    assert found["gemm"]["m"].tolist() == [1, 8]
    assert found["gemm"].seconds == pytest.approx([9e-6, 9.5e-6])
    assert found["elementwise"]["op"].tolist() == ["add", "rope"]


def test_a_column_may_say_the_kind_of_each_line(tmp_path):
    text = "kind,m,n,k,rows,width,op,time_us\ngemm,1,2,3,,,,4\nelementwise,,,,5,6,add,7\n"
    found = read_file(written(tmp_path, text))
    assert (found["gemm"]["k"].tolist(), found["elementwise"]["rows"].tolist()) == ([3], [5])


def test_points_of_several_files_are_joined(tmp_path):
    found = read_points([written(tmp_path, GEMM), written(tmp_path, GEMM, "again.csv")])
    assert len(found["gemm"]) == 4


def test_a_packed_file_is_read_too(tmp_path):
    path = tmp_path / "points.csv.gz"
    path.write_bytes(gzip.compress(GEMM.encode()))
    assert len(read_file(path)["gemm"]) == 2


def test_columns_with_a_default_may_be_left_out(tmp_path):
    text = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,16,9.3\n"
    found = read_file(written(tmp_path, text))["attention"]
    assert np.all(found["head_dim"] == 128)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("1,4096,1024,9.0", "x,4096,1024,9.0", "line 2: m must be a whole number, not 'x'"),
        ("8,4096,1024,9.5", "0,4096,1024,9.5", "line 3: m must be a whole number, 1 or more, not '0'"),
        ("8,4096", "8.5,4096", "line 3: m must be a whole number"),
        ("8,4096", "inf,4096", "line 3: m must be a whole number"),
        ("8,4096,1024", "8,,1024", "line 3: n is missing, which a point of kind gemm has"),
        ("9.5", "-1", "line 3: time_us must be microseconds above 0, not '-1'"),
        ("9.5", "nan", "line 3: time_us must be microseconds above 0"),
        ("9.5", "", "line 3: time_us must be microseconds above 0"),
        ("9.5,o_proj", "9.5", "line 3: 5 values are needed"),
        ("9.5,o_proj", "9.5,a,b", "line 3: 5 values are needed"),
        ("time_us", "seconds", "line 1: a column time_us is needed"),
        ("m,n,k", "m,n,depth", "line 1: its columns are those of no kind of kernel: "),
        (GEMM, "", "no points in it"),
        (GEMM, "m,n,k,time_us\n", "no points in it"),
    ],
)
def test_a_bad_line_is_named(tmp_path, old, new, expected):
    assert expected in refusal(tmp_path, GEMM.replace(old, new, 1))


def test_unknown_words_are_answered_with_the_known_ones(tmp_path):
    said = refusal(tmp_path, ROWS.replace("rope", "tanh"))
    assert "line 3: op is 'tanh'; choose one of: add, rms_norm" in said
    said = refusal(tmp_path, "kind,m,n,k,time_us\nfft,1,1,1,1\n")
    assert "line 2: unknown kind 'fft'; choose one of: gemm, elementwise" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no points file at .*absent\.csv"):
        read_file(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="cannot read the points file"):
        read_file(tmp_path)
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"cannot read the points file .*broken"):
        read_file(broken)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(InputError, match="not a text file"):
        read_file(binary)


# Files that name layers

LAYERS = "layer,tokens,time_us\nqkv_proj,16,60\nembedding,16,3\nact_fn,16,3.5\nrotary_emb,16,2\n"


def test_layers_get_the_sizes_of_the_model(tmp_path):
    path = written(tmp_path, LAYERS)
    heads = written(tmp_path, "layer,sequences,time_us\nlm_head,3,1100\nsampler,3,9\n", "heads.csv")
    found = load_points([path, heads], "llama-3.1-8b")
    sizes = [found["gemm"][name].tolist() for name in ("m", "n", "k")]
    assert sizes == [[16, 3], [6144, 128256], [4096, 4096]]
    assert found["elementwise"]["width"].tolist() == [4096, 14336, 5120, 128256]
    assert found["elementwise"]["op"].tolist() == ["embedding", "silu_mul", "rope", "sampler"]


def test_layers_of_a_tensor_parallel_rank_are_its_share(tmp_path):
    path = written(tmp_path, LAYERS.replace("qkv_proj,16,60", "qkv_proj,16,60\no_proj,16,50\nlayernorm,16,2"))
    found = load_points([path], "llama-3.1-8b", 4)
    assert found["gemm"]["n"].tolist() == [1536, 4096]
    assert found["gemm"]["k"].tolist() == [4096, 1024]
    sizes = dict(zip(found["elementwise"]["op"], found["elementwise"]["width"], strict=True))
    assert sizes == {"rms_norm": 4096, "embedding": 4096, "silu_mul": 3584, "rope": 1280}


def test_heads_are_rows_of_their_own_to_a_norm_and_experts_are_passed_over(tmp_path):
    text = "layer,tokens,time_us\nq_norm,5,2\nk_norm,5,2\nmoe,5,900\nrouter,5,4\nfinal_layernorm,5,3\n"
    passed = Counter()
    found = load_points([written(tmp_path, text)], "qwen3-30b-a3b", passed=passed)
    assert found["elementwise"]["rows"].tolist() == [160, 20, 5]
    assert found["elementwise"]["width"].tolist() == [128, 128, 2048]
    assert found["elementwise"]["op"].tolist() == ["rms_norm", "rms_norm", "add_rms_norm"]
    assert (found["gemm"]["n"].tolist(), found["gemm"]["k"].tolist()) == ([128], [2048])
    assert passed == {"moe": 1}
    assert "no layer 'gate_up_proj'" in refusal(
        tmp_path, text.replace("moe", "gate_up_proj"), model="qwen3-30b-a3b"
    )
    ungated = "layer,tokens,time_us\nact_fn,5,9\n"
    assert "gpt2 has no layer 'act_fn'" in refusal(tmp_path, ungated, model="gpt2")


def test_layers_without_a_model_or_of_another_are_refused(tmp_path):
    assert "say of which model with --model" in refusal(tmp_path, LAYERS)
    assert "line 2: gpt2 has no layer 'gate_up_proj'" in refusal(
        tmp_path, LAYERS.replace("qkv_proj", "gate_up_proj"), model="gpt2"
    )
    assert "line 1: a column tokens or sequences" in refusal(
        tmp_path, LAYERS.replace("tokens", "count"), model="gpt2"
    )
    only = "layer,tokens,time_us\nattention,16,3\n"
    assert "no layer in it has a time model" in refusal(tmp_path, only, model="gpt2")
    assert "line 2: m must be a whole number" in refusal(
        tmp_path, LAYERS.replace("16", "many", 1), model="llama-3.1-8b"
    )
