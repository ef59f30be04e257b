"""FlashAttention's functions (those of flash-attn 2.8) on the CPU.

``import ridgeline.compat.flash_attn as flash_attn`` is all that code for it needs to change: its functions
are also in ``flash_attn_interface``, its padding in ``bert_padding``.

Conventions are FlashAttention's, and mostly ours: tensors ``[batch, seq, heads, dim]`` or packed ``[total,
heads, dim]``; causal masks and windows aligned to the last key, windows inclusive at both ends, -1 for no
limit; softcap before ALiBi; LSE as a natural logarithm. Different from FlashAttention are:

- dtypes: float32 and bfloat16, where FlashAttention has float16 and bfloat16;
- head sizes 1 to 256 and pages of any size, instead of multiples of 8 and of 256;
- a row that sees no key gives 0, as FlashAttention documents, and an LSE of -inf, which it does not;
- the LSE with ``alibi_slopes`` and ``causal`` is that of the documented bias -slope |i + Sk - Sq - j|; the
  CUDA kernels leave the part that a row's keys share out, slope (i + Sk - Sq), which cancels in the output;
- no gradients, and no dropout.
"""

from ridgeline.compat.flash_attn.bert_padding import pad_input, unpad_input
from ridgeline.compat.flash_attn.flash_attn_interface import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "pad_input",
    "unpad_input",
]
