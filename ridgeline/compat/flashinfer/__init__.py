"""FlashInfer's attention, states, paged caches and sampling on the CPU.

``import ridgeline.compat.flashinfer as flashinfer`` is all that code for it needs to change; the functions
are also in its modules ``decode``, ``prefill``, ``page``, ``cascade`` and ``sampling``.

Conventions are FlashInfer's, and mostly ours: ``NHD`` (tokens before heads) or ``HND`` keys and values;
causal masks and windows aligned to the last key, ``window_left`` inclusive, -1 for no limit; the soft cap
after the scale. An LSE is a logarithm to base 2, float32 ``[tokens, heads]``, where :mod:`ridgeline.kernels`
has the natural one, ``[heads, tokens]``; a row without keys gives 0 and -inf in both. Different from
FlashInfer are:

- dtypes: float32 and bfloat16, where FlashInfer has float16, bfloat16 and 8 bits;
- ``pos_encoding_mode`` is ``NONE`` only. Rotate with :func:`ridgeline.kernels.rotate`. FlashInfer's ALiBi
  comes before the soft cap, where ours comes after, and counts from the first query, not from the last;
- sampled tokens: drawn from the same distribution with noise of our own. See ``sampling``.
"""

from ridgeline.compat.flashinfer.cascade import merge_state, merge_state_in_place, merge_states
from ridgeline.compat.flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper, single_decode_with_kv_cache
from ridgeline.compat.flashinfer.page import append_paged_kv_cache, get_batch_indices_positions, get_seq_lens
from ridgeline.compat.flashinfer.prefill import (
    BatchPrefillWithPagedKVCacheWrapper,
    single_prefill_with_kv_cache,
)
from ridgeline.compat.flashinfer.sampling import (
    chain_speculative_sampling,
    min_p_sampling_from_probs,
    sampling_from_logits,
    sampling_from_probs,
    softmax,
    top_k_mask_logits,
    top_k_renorm_probs,
    top_k_sampling_from_probs,
    top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs,
    top_p_renorm_probs,
    top_p_sampling_from_probs,
)

__all__ = [
    "BatchDecodeWithPagedKVCacheWrapper",
    "BatchPrefillWithPagedKVCacheWrapper",
    "append_paged_kv_cache",
    "chain_speculative_sampling",
    "get_batch_indices_positions",
    "get_seq_lens",
    "merge_state",
    "merge_state_in_place",
    "merge_states",
    "min_p_sampling_from_probs",
    "sampling_from_logits",
    "sampling_from_probs",
    "single_decode_with_kv_cache",
    "single_prefill_with_kv_cache",
    "softmax",
    "top_k_mask_logits",
    "top_k_renorm_probs",
    "top_k_sampling_from_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_probs",
    "top_p_sampling_from_probs",
]
