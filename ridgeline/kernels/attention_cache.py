"""A key/value cache in the kernels' own layout, and attention that appends to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import (
    NO_ANGLES,
    Options,
    Sequences,
    check_groups,
    check_heads,
    check_sizes,
    head_rows,
    integers,
    result,
    run,
)
from ridgeline.kernels.checks import describe
from ridgeline.kernels.dispatch import on_gpu

#: What a cache can hold its elements as.
KV_FORMATS = {
    "fp32": _native.KvFormat.fp32,
    "bf16": _native.KvFormat.bf16,
    "int8": _native.KvFormat.int8,
}
#: Tokens of a block.
BLOCK_TOKENS: int = _native.kv_block_keys
_ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of one layer, in blocks of :data:`BLOCK_TOKENS` tokens.

    ``data`` is uint8 ``[blocks, bytes of a block]``, the same for every instruction set: a block may be
    copied, stored or shared as bytes. A block holds, head by head, its keys ``[panels, dim / s, 32, s]`` and
    its values ``[panels, 32 / s, dim, s]`` with s = 2 (fp32: 1), so that the lanes of a register are keys;
    int8 adds a float32 scale of each token's key and of its value. Memory need not be cleared: what no
    :func:`attend` has written is never seen.

    Raises InputError for an unknown format, sizes that are not positive (dim: 1 to 256), and data of another
    dtype, shape, stride or device, or at an address that is no multiple of 64.
    """

    data: torch.Tensor
    kv_heads: int
    dim: int
    format: str
    layout: _native.KvLayout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layout = _layout(self.kv_heads, self.dim, self.format)
        data = self.data
        fits = data.dim() == 2 and data.shape[1] == layout.block_bytes and data.dtype == torch.uint8
        if not fits or data.device.type != "cpu" or not data.is_contiguous():
            raise InputError(
                f"data is {describe(data)} on {data.device}; {self.kv_heads} heads of {self.dim} as "
                f"{self.format} take contiguous uint8 [blocks, {layout.block_bytes}] on the CPU"
            )
        if data.data_ptr() % 64:
            raise InputError("data begins at an address that is no multiple of 64; call data.clone()")
        object.__setattr__(self, "layout", layout)

    @classmethod
    def empty(cls, blocks: int, kv_heads: int, dim: int, format: str = "bf16") -> KVCache:
        """A cache of ``blocks`` blocks. Memory is taken from the system as blocks are first written."""
        data = torch.empty(blocks, _layout(kv_heads, dim, format).block_bytes, dtype=torch.uint8)
        _native.advise_large_pages(data.data_ptr(), data.nbytes)
        return cls(data, kv_heads, dim, format)

    @property
    def blocks(self) -> int:
        return self.data.shape[0]

    def read(self, table: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first ``tokens`` keys and values of the blocks that ``table`` lists, float32
        ``[tokens, kv_heads, dim]`` each, as attention sees them."""
        step, width = (1 if self.format == "fp32" else 2), -(-self.dim // 16) * 16
        padded = -(-self.dim // step) * step
        records = self.data[table.long()].unflatten(1, (self.kv_heads, -1))
        size = _ELEMENTS[self.format].itemsize
        panel, panels = _native.kv_panel_keys, BLOCK_TOKENS // _native.kv_panel_keys
        sizes = [padded * BLOCK_TOKENS * size, width * BLOCK_TOKENS * size]
        scales = 4 * BLOCK_TOKENS if self.format == "int8" else 0
        k, v, k_scales, v_scales = records.split([*sizes, scales, scales], dim=2)
        keys = _elements(k, self.format).unflatten(2, (panels, padded // step, panel, step))
        keys = keys.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(3)[..., : self.dim]
        values = _elements(v, self.format).unflatten(2, (panels, panel // step, width, step))
        values = values.permute(0, 2, 3, 5, 1, 4).flatten(1, 3)[..., : self.dim]
        if scales:
            keys = keys * _elements(k_scales, "fp32").transpose(1, 2)[..., None]
            values = values * _elements(v_scales, "fp32").transpose(1, 2)[..., None]
        return keys.flatten(0, 1)[:tokens].contiguous(), values.flatten(0, 1)[:tokens].contiguous()


@on_gpu
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: KVCache,
    sequences: Sequences,
    *,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    sinks: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    schedule: str = "auto",
    return_lse: bool = False,
    out: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Rotates q and k, appends k and v to the cache, and attends to all that is cached:
    ``[rows, heads, dim]``.

    - ``q``: float32 or bfloat16 ``[rows, heads, dim]``; ``k`` and ``v``: ``[rows, kv_heads, dim]``, each of
      either dtype. Views of one fused row do; only the elements of a head must lie side by side.
    - ``sequences``: whose rows these are, after how many tokens, and in which blocks.
    - ``cos``, ``sin``: float32 ``[angles, dim]``, both halves alike: x cos + (-x2, x1) sin, where x1 and x2
      are the halves of a head, or, with fewer columns, of its first elements. Row i takes angle
      ``positions[i]`` (int32 or int64 ``[rows]``), or angle i if ``positions`` is None. Without them nothing
      is rotated.
    - ``out``: where the result goes, float32 or bfloat16; a new tensor of q's dtype if None.

    The cache's format decides the arithmetic: ``fp32`` multiplies float32; ``bf16`` and ``int8`` round the
    rotated q to bf16, and read keys and values as they are stored, new ones too. int8 has a scale for each
    token's key and value of a head, max|x| / 127, q rounded to nearest, ties to even; one that holds a NaN
    or an infinity is NaN throughout. The other arguments and the result are those of
    :func:`ridgeline.kernels.attention_varlen`.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device, for tables and
    positions that name what is not there, and for a tensor that wants a gradient.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, "rows, heads, dim")
    if not isinstance(cache, KVCache):
        raise InputError(f"cache is a {type(cache).__name__}; give a KVCache")
    check_sizes("q", q, (q.shape[0], q.shape[1], cache.dim), "the cache")
    for name, tensor in (("k", k), ("v", v)):
        check_sizes(name, tensor, (q.shape[0], cache.kv_heads, cache.dim), "the cache")
    check_groups(q, cache.kv_heads, "cache")
    _check_sequences(sequences, q.shape[0], cache)
    _check_past(sequences)
    if positions is not None:
        positions = integers("positions", positions, 1, torch.int64)
    angles = _angles(cos, sin, positions, q)
    options = Options(
        causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, schedule, distance_bias
    )
    out = result(out, q, k, v)
    source = _native.KvSource.blocks(cache.layout, cache.data.data_ptr())
    _native.append(sequences.native, head_rows(k), head_rows(v), angles, cache.layout, cache.data.data_ptr())
    return run(q, sequences, source, options, out, angles, return_lse)


@on_gpu
def store(k: torch.Tensor, v: torch.Tensor, cache: KVCache, sequences: Sequences) -> None:
    """Stores keys and values, ``[rows, kv_heads, dim]``, after each sequence's past: :func:`attend` without
    its attention. Arguments and errors are :func:`attend`'s."""
    for name, tensor in (("k", k), ("v", v)):
        check_heads(name, tensor, "rows, kv_heads, dim")
        check_sizes(name, tensor, (k.shape[0], cache.kv_heads, cache.dim), "the cache")
    _check_sequences(sequences, k.shape[0], cache, "k")
    _check_past(sequences)
    native = sequences.native, head_rows(k), head_rows(v), NO_ANGLES, cache.layout, cache.data.data_ptr()
    _native.append(*native)


@on_gpu
def attend_stored(
    q: torch.Tensor,
    cache: KVCache,
    sequences: Sequences,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    distance_bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`attend` to what :func:`store` has stored, and to nothing new: ``[rows, heads, dim]``.

    A sequence's keys are its ``past`` and as many more as it has rows, so ``past`` is below 0 where there
    are fewer keys than rows. The other arguments and errors are :func:`attend`'s.
    """
    check_heads("q", q, "rows, heads, dim")
    check_sizes("q", q, (q.shape[0], q.shape[1], cache.dim), "the cache")
    check_groups(q, cache.kv_heads, "cache")
    _check_sequences(sequences, q.shape[0], cache)
    options = Options(causal, window, 0, scale, softcap, None, None, "auto", distance_bias)
    out = result(out, q, q, q)
    return run(q, sequences, _native.KvSource.blocks(cache.layout, cache.data.data_ptr()), options, out)


def _check_sequences(sequences: Sequences, rows: int, cache: KVCache, name: str = "q") -> None:
    if not isinstance(sequences, Sequences):
        raise InputError(f"sequences is a {type(sequences).__name__}; give kernels.Sequences")
    if sequences.tables is None:
        raise InputError("sequences has no tables; give the blocks of each sequence")
    if int(sequences.rows.sum()) != rows:
        raise InputError(f"sequences has {int(sequences.rows.sum())} rows and {name} {rows}; give the same")
    sequences.check("sequences", BLOCK_TOKENS, cache.blocks)


def _check_past(sequences: Sequences) -> None:
    if len(sequences.past) and int(sequences.past.min()) < 0:
        raise InputError(f"sequences has past {sequences.past.tolist()}; give numbers of at least 0")


def _angles(
    cos: torch.Tensor | None, sin: torch.Tensor | None, positions: torch.Tensor | None, q: torch.Tensor
) -> _native.Angles:
    if cos is None and sin is None:
        if positions is not None:
            raise InputError("positions is given without cos and sin; give all three or none")
        return NO_ANGLES
    rows = len(q)
    dim = cos.shape[-1] if isinstance(cos, torch.Tensor) and cos.dim() == 2 else q.shape[2]
    if dim % 2 or not 0 < dim <= q.shape[2]:
        raise InputError(
            f"cos turns {dim} elements of heads of {q.shape[2]}; a rotation takes an even number of them"
        )
    for name, tensor in (("cos", cos), ("sin", sin)):
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} is a {type(tensor).__name__}; give cos and sin, or neither")
        fits = tensor.dtype == torch.float32 and tensor.dim() == 2 and tensor.shape[1] == dim
        if not fits or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise InputError(
                f"{name} is {describe(tensor)}; give contiguous float32 [angles, {dim}] on the CPU"
            )
    if len(cos) != len(sin):
        raise InputError(f"sin has {len(sin)} rows and cos {len(cos)}; give the same")
    if positions is None:
        if len(cos) < rows:
            raise InputError(f"cos has {len(cos)} rows and q {rows}; give one a row, or positions")
        return _native.Angles(cos.data_ptr(), sin.data_ptr(), dim, 0)
    check_sizes("positions", positions, (rows,), "q")
    if rows and not 0 <= int(positions.min()) <= int(positions.max()) < len(cos):
        raise InputError(f"positions reach outside of cos, which has {len(cos)} rows")
    return _native.Angles(cos.data_ptr(), sin.data_ptr(), dim, positions.data_ptr())


def _layout(kv_heads: int, dim: int, format: str) -> _native.KvLayout:
    if format not in KV_FORMATS:
        raise InputError(f"format is {format!r}; choose one of: {', '.join(KV_FORMATS)}")
    if kv_heads < 1:
        raise InputError(f"kv_heads is {kv_heads}; give at least 1")
    if not 1 <= dim <= _native.most_head_dim:
        raise InputError(f"dim is {dim}; give 1 to {_native.most_head_dim}")
    return _native.KvLayout(KV_FORMATS[format], kv_heads, dim, dim)


def _elements(data: torch.Tensor, format: str) -> torch.Tensor:
    return data.contiguous().view(_ELEMENTS[format]).float()
