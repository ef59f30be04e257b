"""CPU kernels that can be used on their own: functions of PyTorch tensors, in C++ underneath.

They run on a pool of threads of their own (:func:`set_threads`, or the environment variable
RIDGELINE_THREADS) with the best instruction set that the machine has (:func:`isa`; RIDGELINE_ISA forces
one). Neither the number of threads nor what else is in a batch changes a result by a bit.
"""

from ridgeline.kernels.attention import attention, attention_paged, attention_varlen, merge_states
from ridgeline.kernels.attention_arguments import Sequences
from ridgeline.kernels.attention_cache import BLOCK_TOKENS, KVCache, attend
from ridgeline.kernels.linear import PackedLinear, linear, linear_weight_only, pack_linear
from ridgeline.kernels.runtime import available_isas, isa, set_isa, set_threads, threads

__all__ = [
    "BLOCK_TOKENS",
    "KVCache",
    "PackedLinear",
    "Sequences",
    "attend",
    "attention",
    "attention_paged",
    "attention_varlen",
    "available_isas",
    "isa",
    "linear",
    "linear_weight_only",
    "merge_states",
    "pack_linear",
    "set_isa",
    "set_threads",
    "threads",
]
