"""The kernels of :mod:`ridgeline.kernels` for GPUs, in Triton: the same names, arguments and conventions.

Importing this needs Triton (the extra ``gpu``); InputError says so where it is missing. ``ridgeline.kernels``
hands a call over to it where the tensors lie on a GPU. With TRITON_INTERPRET=1 in the environment before
Triton is first imported, everything runs on the CPU, slowly, which is how it is tested without a GPU.
"""

from ridgeline.kernels.triton.attention import (
    attention,
    attention_paged,
    attention_varlen,
    merge_states,
)
from ridgeline.kernels.triton.attention_fp8 import attention_fp8
from ridgeline.kernels.triton.attention_gradient import attention_with_gradient
from ridgeline.kernels.triton.cache import KV_FORMATS, KVCache, Sequences, attend, attend_stored, store
from ridgeline.kernels.triton.experts import GpuExperts, mixture, route
from ridgeline.kernels.triton.latent import LatentCache, attend_latents, turn_append
from ridgeline.kernels.triton.linear import GpuLinear, gpu_linear, linear, linear_invariant
from ridgeline.kernels.triton.rows import (
    activate,
    add,
    add_layer_norm,
    add_rms_norm,
    embed,
    layer_norm,
    rms_norm,
    rotate,
    softcap,
    take_rows,
)
from ridgeline.kernels.triton.sample import log_probabilities, sample

__all__ = [
    "KV_FORMATS",
    "GpuExperts",
    "GpuLinear",
    "KVCache",
    "LatentCache",
    "Sequences",
    "activate",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "attend",
    "attend_latents",
    "attend_stored",
    "attention",
    "attention_fp8",
    "attention_paged",
    "attention_varlen",
    "attention_with_gradient",
    "embed",
    "gpu_linear",
    "layer_norm",
    "linear",
    "linear_invariant",
    "log_probabilities",
    "merge_states",
    "mixture",
    "rms_norm",
    "rotate",
    "route",
    "sample",
    "softcap",
    "store",
    "take_rows",
    "turn_append",
]
