"""FlashInfer's attention in float64, and the options that its tests draw."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from tests.compat.tensors import attention_each

options = st.fixed_dictionaries(
    {
        "window_left": st.integers(-1, 20),
        "logits_soft_cap": st.sampled_from([None, 0.0, 3.0]),
        "sm_scale": st.sampled_from([None, 0.3]),
    }
)


def wanted(queries, keys, values, *, window_left=-1, logits_soft_cap=None, sm_scale=None, **others):
    """Outputs [rows, heads, dim] and LSE [rows, heads] to base 2, of all sequences."""
    outs, lses = attention_each(
        list(queries),
        list(keys),
        list(values),
        window=(window_left, -1),
        softcap=logits_soft_cap or 0.0,
        scale=sm_scale,
        **others,
    )
    return torch.cat(outs), torch.cat(lses, 1).T / math.log(2)


def hnd(x: torch.Tensor) -> torch.Tensor:
    """The other layout's memory."""
    return x.transpose(-3, -2).contiguous()
