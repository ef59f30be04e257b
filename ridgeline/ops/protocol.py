"""What a forward pass may ask for: the operators.

A model is written once against :class:`Ops`. Whoever supplies the operators decides what the
pass means: a count, a reference computation, a fast execution, a profile. Nothing here imports
PyTorch.

Tensors are packed: ``x`` is ``[rows, width]``, the rows of all sequences of a batch one after
another, prefill and decode alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ridgeline.ops.batch import Cache, CacheSpec, LayerCache, Spans, T
from ridgeline.ops.layers import Layer
from ridgeline.ops.records import Activation, Heads, Mask, Norm, Rope, Score, Weight

if TYPE_CHECKING:
    from ridgeline.ops.latent import Latent
    from ridgeline.ops.mixture import Experts, Router


class Ops(Protocol):
    """The operators. Every method names what it does in the field's own terms."""

    def embed(self, ids: T, weight: Weight, *, offset: int = 0, scale: float = 1.0) -> T:
        """Rows ``ids + offset`` of the table, times ``scale``: [rows] -> [rows, width]."""

    def norm(
        self,
        x: T,
        norm: Norm,
        *,
        shift: T | None = None,
        scale: T | None = None,
        spans: Spans | None = None,
    ) -> T:
        """Each row normalised; same shape. With ``shift`` and ``scale``, [sequences, width], the result is
        then times 1 + scale plus shift, those of the row's sequence among ``spans`` (adaLN)."""

    def linear(
        self,
        x: T,
        weight: Weight,
        *,
        bias: Weight | None = None,
        activation: Activation | None = None,
        residual: T | None = None,
        name: str | None = None,
        gate: T | None = None,
        spans: Spans | None = None,
    ) -> T:
        """residual + act(x W^T + bias): [rows, in] -> [rows, out]; a gated activation takes
        act of the first half of the columns times the second half, so [rows, out / 2].

        ``gate``, [sequences, out], is multiplied with what is added to the residual: every row with that of
        its sequence among ``spans`` (adaLN-Zero). It takes a residual.
        ``name`` is the operator's in traces where the weight's own would mislead (a tied head)."""

    def split_heads(self, qkv: T, heads: Heads) -> tuple[T, T, T]:
        """[rows, (query + 2 kv) dim] -> q, k, v of [rows, heads, dim], q and k normalised if
        the heads say so."""

    def attend(
        self,
        q: T,
        k: T | None,
        v: T | None,
        *,
        spans: Spans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: LayerCache | None = None,
        name: str = "attention",
    ) -> T:
        """Rotates q and k, appends k and v to the cache, attends: [rows, query * dim].

        Without a cache each sequence attends to its ``keys`` rows of k and v: its own, or another's in
        cross-attention. With k and v None it reads a cache that :meth:`store` has filled, and appends
        nothing. A row that sees no key is 0. ``name`` is the operator's in traces.
        """

    def store(self, k: T, v: T, *, spans: Spans, cache: LayerCache) -> None:
        """Fills a cache with keys and values, which later attention reads and doesn't append to."""

    def softcap(self, x: T, cap: float) -> T:
        """cap tanh(x / cap); same shape."""

    def attend_latent(
        self,
        q: T,
        kv: T,
        latent: Latent,
        *,
        spans: Spans,
        mask: Mask,
        score: Score,
        rope: Rope | None = None,
        cache: LayerCache | None = None,
    ) -> T:
        """Attention to keys and values that are made of latents: [rows, heads * value].

        ``q`` is [rows, heads * (content + rotated)], ``kv`` [rows, rank + rotated]: the latent before its
        norm and the key that all heads share. Rotates, appends latents and rotated keys to the cache,
        attends.
        """

    def route(self, x: T, router: Router) -> T:
        """Which experts every row takes, and with which weights: what :meth:`experts` is handed."""

    def experts(self, x: T, routes: T, experts: Experts, *, residual: T | None = None) -> T:
        """residual + sum over a row's experts of weight * down(act(gate x) * (up x)): [rows, width]."""

    def add(self, a: T, b: T) -> T: ...

    def take_rows(self, x: T, rows: T | None) -> T:
        """The rows of x whose results are wanted; None keeps them all."""

    def activate(self, x: T, activation: Activation) -> T:
        """act(x); same shape."""

    def add_vector(self, x: T, vector: Weight) -> T:
        """The vector added to every row; a row that is n times shorter stands n times side by side."""

    def columns(self, x: T, parts: int) -> tuple[T, ...]:
        """x cut into ``parts`` of equally many columns: views."""

    def stack_columns(self, x: T, parts: int) -> T:
        """Each row cut into ``parts`` of equally many columns, laid one below the other: a view,
        [rows * parts, columns / parts]."""

    def unstack_rows(self, x: T, parts: int) -> T:
        """Every ``parts`` rows side by side as one: a view, what :meth:`stack_columns` undoes."""

    def join_columns(self, a: T, b: T) -> T:
        """The columns of a, then those of b."""

    def permute_rows(self, x: T, order: T) -> T:
        """Row i of the result is row ``order[i]`` of x; every row is taken once."""

    def join_rows(self, a: T, b: T, *, first: Spans, second: Spans) -> T:
        """Of each sequence its rows in a, then its rows in b: [rows of a + rows of b, ...]. ``first`` are the
        spans of a, ``second`` those of b."""

    def split_rows(self, x: T, *, first: Spans, second: Spans) -> tuple[T, T]:
        """What :meth:`join_rows` made one, taken apart again."""

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, T], T], x: T) -> T:
        """body(layer, x) for each layer in turn; identical layers are counted once. ``x`` may be a tuple of
        tensors, and then body's result is one, too."""

    def alloc_cache(self, spec: CacheSpec, blocks: int) -> Cache: ...
