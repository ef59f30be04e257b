"""Reading RoPE's fields: the classic ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``."""

from __future__ import annotations

import math

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.ops.records import Rope, RopeScaling

_HARMLESS = ("type", "rope_type", "rope_theta", "finetuned")


#: The kinds of layers that rotate differently, with their angles' base where the config has none, and the
#: older field for it.
KINDS = {
    "full_attention": ("rope_theta", 1e6),
    "sliding_attention": ("rope_local_base_freq", 1e4),
}


def read_ropes_by_kind(fields: Fields, head_dim: int, window: int) -> dict[str, Rope]:
    """The rotations of full and of sliding layers (Gemma 3): ``rope_parameters`` of each kind, or the older
    fields, whose ``rope_scaling`` is that of full layers alone."""
    new = fields.take("rope_parameters", dict, None) or {}
    old = fields.take("rope_scaling", dict, None)
    if set(new) - KINDS.keys():
        raise InputError(f"{fields.where}: rope_parameters must be those of {' and '.join(KINDS)}")
    ropes = {}
    for kind, (field, theta) in KINDS.items():
        theta = fields.take(field, float, theta)
        own = new.get(kind) or (old if kind == "full_attention" else None) or {}
        if not isinstance(own, dict):
            raise InputError(f"{fields.where}: rope_parameters of {kind} must be dict, not {own!r}")
        given = Fields({"rope_parameters": {"rope_theta": theta, **own}}, f"{fields.where}: {kind}")
        ropes[kind] = read_rope(given, head_dim, window)
    return ropes


def read_rope(fields: Fields, head_dim: int, window: int, share: float | None = None) -> Rope:
    """The rotation of a model with heads of ``head_dim`` and a window of ``window`` tokens.

    A family that can rotate the first elements of a head alone says which ``share`` of them its config
    rotates where it names none; others refuse another ``partial_rotary_factor`` than 1.
    """
    new = fields.take("rope_parameters", dict, None)
    old = fields.take("rope_scaling", dict, None)
    if new and old and new != old:
        raise InputError(f"{fields.where}: rope_parameters and rope_scaling differ; keep one of them")
    theta = fields.take("rope_theta", float, 10000.0)
    trained = fields.size("original_max_position_embeddings", None)
    raw = dict(new or old or {})
    where = f"{fields.where}: {'rope_parameters' if new else 'rope_scaling'}"
    kind = raw.get("rope_type", raw.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its first name, in Phi-3's files
    partial = share is not None
    if partial:
        share = fields.take("partial_rotary_factor", float, share)
    readers = {
        "default": _unscaled,
        "linear": _linear,
        "dynamic": _dynamic,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise InputError(f"{where}: type {kind!r} is not supported; supported are: {', '.join(readers)}")
    if trained is not None and kind in ("llama3", "yarn", "longrope"):
        beside = raw.setdefault("original_max_position_embeddings", trained)
        if beside != trained:
            raise InputError(
                f"{where}: original_max_position_embeddings is {beside!r} here, {trained} outside; keep one"
            )
    scaling = Fields(raw, where)
    theta = scaling.take("rope_theta", float, theta)
    read = readers[kind](scaling, window)
    if partial:
        share = scaling.take("partial_rotary_factor", float, share)
        if not 0 < share <= 1:
            raise InputError(f"{where}: partial_rotary_factor must be above 0 and at most 1, not {share}")
        head_dim = int(head_dim * share)
    scaling.finish(harmless=_HARMLESS, defaults={"partial_rotary_factor": 1.0})
    if theta <= 1:
        raise InputError(f"{where}: rope_theta must be greater than 1, not {theta}")
    if kind == "longrope" and any(len(factors) != head_dim // 2 for factors in (read.short, read.long)):
        raise InputError(f"{where}: short_factor and long_factor must have {head_dim // 2} numbers each")
    if head_dim % 2 or (kind == "dynamic" and head_dim == 2):
        raise InputError(f"{fields.where}: heads of {head_dim} elements cannot be rotated ({kind} RoPE)")
    return Rope(head_dim, theta, read)


def _factor(fields: Fields) -> float:
    factor = fields.take("factor", float)
    if factor < 1:
        raise InputError(f"{fields.where}: factor must be at least 1, not {factor}")
    return factor


def _unscaled(fields: Fields, window: int) -> None:
    return None


def _linear(fields: Fields, window: int) -> RopeScaling:
    return RopeScaling("linear", _factor(fields), window)


def _dynamic(fields: Fields, window: int) -> RopeScaling:
    return RopeScaling("dynamic", _factor(fields), window)


def _llama3(fields: Fields, window: int) -> RopeScaling:
    scaling = RopeScaling(
        "llama3",
        _factor(fields),
        fields.size("original_max_position_embeddings", window),
        low_frequency_factor=fields.take("low_freq_factor", float),
        high_frequency_factor=fields.take("high_freq_factor", float),
    )
    if not 0 < scaling.low_frequency_factor < scaling.high_frequency_factor:
        raise InputError(f"{fields.where}: low_freq_factor must be above 0 and below high_freq_factor")
    return scaling


def _longrope(fields: Fields, window: int) -> RopeScaling:
    original = fields.size("original_max_position_embeddings", window)
    return RopeScaling(
        "longrope",
        fields.take("factor", float, window / original),
        original,
        attention_factor=fields.take("attention_factor", float, None),
        short=_factors(fields, "short_factor"),
        long=_factors(fields, "long_factor"),
    )


def _factors(fields: Fields, name: str) -> tuple[float, ...]:
    factors = fields.take(name, list)
    if not all(type(f) in (int, float) and 0 < f < math.inf for f in factors):
        raise InputError(f"{fields.where}: {name} must hold numbers above 0")
    return tuple(float(f) for f in factors)


def _attention_factor(fields: Fields) -> float | None:
    """The config's own, or the quotient of the two that mscale and mscale_all_dim ask for."""
    given = fields.take("attention_factor", float, None)
    cosines, scores = (fields.take(name, float, None) for name in ("mscale", "mscale_all_dim"))
    if given is not None or not cosines or not scores:
        return given
    grown = math.log(_factor(fields))
    return (0.1 * cosines * grown + 1.0) / (0.1 * scores * grown + 1.0)


def _yarn(fields: Fields, window: int) -> RopeScaling:
    scaling = RopeScaling(
        "yarn",
        _factor(fields),
        fields.size("original_max_position_embeddings", window),
        beta_fast=fields.take("beta_fast", float, 32.0),
        beta_slow=fields.take("beta_slow", float, 1.0),
        attention_factor=_attention_factor(fields),
        truncate=fields.take("truncate", bool, True),
    )
    if not 0 < scaling.beta_slow < scaling.beta_fast:
        raise InputError(f"{fields.where}: beta_slow must be above 0 and below beta_fast")
    return scaling
