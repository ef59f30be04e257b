"""The key/value cache of the cpu reading: all layers in one piece of memory, in the kernels' own layout."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.attention_cache import BLOCK_TOKENS, KV_FORMATS, KVCache
from ridgeline.ops.batch import CacheSpec

#: About the standard deviation of a random int8 element, by whose inverse a random cache is scaled.
_INT8_SPREAD = 74.0


class NativeCache:
    """A cache of ``blocks`` blocks, allocated at once and not filled: memory is taken as tokens come.

    ``addresses`` are those of the layers' blocks. Raises InputError for another block size than the
    kernels', and for a format that they don't read.
    """

    def __init__(self, spec: CacheSpec, blocks: int) -> None:
        if spec.block_size != BLOCK_TOKENS:
            raise InputError(
                f"block_size is {spec.block_size}; the kernels' blocks hold {BLOCK_TOKENS} tokens"
            )
        if spec.format not in KV_FORMATS:
            known = ", ".join(KV_FORMATS)
            raise InputError(f"a cache on the CPU can't be kept as {spec.format}: choose one of {known}")
        self.spec = spec
        self.blocks = blocks
        whole = KVCache.empty(spec.layers * blocks, spec.kv_heads, spec.head_dim, spec.format)
        self.layout = whole.layout
        self._data = whole.data.view(spec.layers, blocks, -1)
        self._layers = [KVCache(layer, spec.kv_heads, spec.head_dim, spec.format) for layer in self._data]
        self.addresses = array("Q", (layer.data.data_ptr() for layer in self._layers))

    def layer(self, index: int) -> KVCache:
        return self._layers[index]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy block ``source`` to block ``target`` in every layer, for each of ``pairs``."""
        for source, target in pairs:
            self._data[:, target] = self._data[:, source]

    def randomise(self) -> None:
        """Fill every block with noise of variance 1, as if tokens had been computed, to time them."""
        if self.spec.format == "int8":
            scales = 2 * BLOCK_TOKENS
            records = self._data.view(-1, self.spec.kv_heads, self._data.shape[-1] // self.spec.kv_heads)
            records.view(torch.int8).random_(-127, 128)
            records[..., -4 * scales :].view(torch.float32).fill_(1 / _INT8_SPREAD)
        else:
            self._data.view(torch.float32 if self.spec.format == "fp32" else torch.bfloat16).normal_()
