"""llama.cpp's file of TinyLlama-1.1B's shape, from the checkpoint that all peers share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from benchmarks.peers.files import CHECKPOINT

EMBEDDING = "token_embd.weight"
#: GGUF's name of a tensor outside of the layers, and of one inside (after ``blk.N.``).
OUTER = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def from_checkpoint(folder: Path) -> Path:
    """The bf16 file in ``folder``, made of the checkpoint there if need be.

    The rows of queries and keys stay in the checkpoint's order, where llama.cpp rotates neighbours together:
    with random weights that is another model, and as fast a one.
    """
    path = folder / "tinyllama-bf16.gguf"
    if path.is_file():
        return path
    config = json.loads((folder / CHECKPOINT / "config.json").read_text())
    draft = path.with_suffix(".draft")
    writer = GGUFWriter(draft, "llama")
    _describe(writer, config)
    for name, bits in _tensors(folder / CHECKPOINT / "model.safetensors"):
        if bits.ndim == 1:  # norms are float32 there
            writer.add_tensor(_gguf_name(name), (bits.astype(numpy.uint32) << 16).view(numpy.float32))
        else:
            writer.add_tensor(_gguf_name(name), bits.view(numpy.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return draft.rename(path)


def embedding_bytes(path: Path) -> int:
    """Bytes of the embedding table, of which a generated token reads one row."""
    return next(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors if tensor.name == EMBEDDING)


def _describe(writer: GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _tensors(path: Path) -> Iterator[tuple[str, numpy.ndarray]]:
    """The bf16 tensors of a safetensors file, as uint16: NumPy has no bf16."""
    data = numpy.memmap(path, mode="r")
    header = int.from_bytes(data[:8].tobytes(), "little")
    for name, tensor in json.loads(data[8 : 8 + header].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + header + offset for offset in tensor["data_offsets"])
        yield name, data[begin:end].view(numpy.uint16).reshape(tensor["shape"])


def _gguf_name(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{INNER[inner]}.weight"
