"""Kernels that can be used on their own: functions of PyTorch tensors, in C++ underneath on the CPU.

Calls whose tensors lie on a GPU go to :mod:`ridgeline.kernels.triton`. What follows is about the CPU's.

They run on a pool of threads of their own (:func:`set_threads`, or the environment variable
RIDGELINE_THREADS) with the best instruction set that the machine has (:func:`isa`; RIDGELINE_ISA forces
one). Neither the number of threads nor what else is in a batch changes a result by a bit.
"""

from ridgeline.kernels.attention import attention, attention_paged, attention_varlen, merge_states
from ridgeline.kernels.attention_arguments import Sequences
from ridgeline.kernels.attention_cache import BLOCK_TOKENS, KVCache, attend, attend_stored, store
from ridgeline.kernels.experts import mix_experts, route
from ridgeline.kernels.linear import (
    PackedLinear,
    linear,
    linear_weight_only,
    modulated_linear,
    pack_linear,
)
from ridgeline.kernels.packed_file import PackedFile, open_packed, save_packed
from ridgeline.kernels.rows import (
    activate,
    add,
    add_layer_norm,
    add_rms_norm,
    embed,
    layer_norm,
    modulated_norm,
    rms_norm,
    rotate,
    softcap,
    take_rows,
)
from ridgeline.kernels.runtime import available_isas, isa, set_isa, set_threads, threads, use_own_pool
from ridgeline.kernels.sample import log_probabilities, sample

__all__ = [
    "BLOCK_TOKENS",
    "KVCache",
    "PackedFile",
    "PackedLinear",
    "Sequences",
    "activate",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "attend",
    "attend_stored",
    "attention",
    "attention_paged",
    "attention_varlen",
    "available_isas",
    "embed",
    "isa",
    "layer_norm",
    "linear",
    "linear_weight_only",
    "log_probabilities",
    "merge_states",
    "mix_experts",
    "modulated_linear",
    "modulated_norm",
    "open_packed",
    "pack_linear",
    "rms_norm",
    "rotate",
    "route",
    "sample",
    "save_packed",
    "set_isa",
    "set_threads",
    "softcap",
    "store",
    "take_rows",
    "threads",
    "use_own_pool",
]
