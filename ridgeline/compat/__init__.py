"""Other libraries' interfaces over :mod:`ridgeline.kernels`, so that code written for them runs on a CPU.

- :mod:`ridgeline.compat.flash_attn`: FlashAttention 2.8.
- :mod:`ridgeline.compat.flashinfer`: FlashInfer's attention over paged caches, states and sampling.

Names, argument order, defaults, shapes and conventions are those libraries' own; each module says where a
result differs. What cannot be done here is refused by name with :class:`ridgeline.errors.InputError`, never
ignored; only choices of how a GPU does its work (``deterministic``, ``num_splits``, ``backend``) are accepted
without an effect, since no result depends on them.
"""
