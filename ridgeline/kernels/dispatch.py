"""Handing a call over to the GPU's kernels where its tensors lie on one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, or that of its name in :mod:`ridgeline.kernels.triton` if the first argument is a tensor
    on a GPU. Triton is imported then, and InputError raised if it is missing."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        first = args[0] if args else next(iter(options.values()), None)
        if isinstance(first, torch.Tensor) and first.is_cuda:
            from ridgeline.kernels import triton

            return getattr(triton, function.__name__)(*args, **options)
        return function(*args, **options)

    return call
