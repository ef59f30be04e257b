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

__all__ = ["attention", "attention_paged", "attention_varlen", "merge_states"]
