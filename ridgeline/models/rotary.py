"""Reading RoPE's fields: the classic ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``."""

from __future__ import annotations

from ridgeline.errors import InputError
from ridgeline.models.fields import Fields
from ridgeline.ops.protocol import Rope, RopeScaling

_HARMLESS = ("type", "rope_type", "rope_theta", "finetuned")


def read_rope(fields: Fields, head_dim: int, window: int) -> Rope:
    """The rotation of a model with heads of ``head_dim`` and a window of ``window`` tokens."""
    new = fields.take("rope_parameters", dict, None)
    old = fields.take("rope_scaling", dict, None)
    theta = fields.take("rope_theta", float, 10000.0)
    fields.take("original_max_position_embeddings", int, None)
    raw = dict(new or old or {})
    where = f"{fields.where}: {'rope_parameters' if new else 'rope_scaling'}"
    scaling = Fields(raw, where)
    theta = scaling.take("rope_theta", float, theta)
    kind = raw.get("rope_type", raw.get("type", "default"))
    readers = {"default": _unscaled, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
    if kind not in readers:
        raise InputError(f"{where}: type '{kind}' is not supported; supported are: {', '.join(readers)}")
    read = readers[kind](scaling, window)
    scaling.finish(harmless=_HARMLESS, defaults={"partial_rotary_factor": 1.0})
    if theta <= 0:
        raise InputError(f"{where}: rope_theta must be positive, not {theta}")
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
    return RopeScaling(
        "llama3",
        _factor(fields),
        fields.size("original_max_position_embeddings"),
        low_frequency_factor=fields.take("low_freq_factor", float),
        high_frequency_factor=fields.take("high_freq_factor", float),
    )


def _yarn(fields: Fields, window: int) -> RopeScaling:
    return RopeScaling(
        "yarn",
        _factor(fields),
        fields.size("original_max_position_embeddings", window),
        beta_fast=fields.take("beta_fast", float, 32.0),
        beta_slow=fields.take("beta_slow", float, 1.0),
        attention_factor=fields.take("attention_factor", float, None),
        truncate=fields.take("truncate", bool, True),
    )
