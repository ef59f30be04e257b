"""What the analyses take from their callers: models and devices by name or as they are, whole numbers."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from ridgeline.errors import InputError
from ridgeline.hardware import Device, load_device
from ridgeline.models import ModelConfig, load_config

Kind = TypeVar("Kind", bound=StrEnum)

#: The most tokens, requests or devices that are taken to be meant.
MOST = 2**30


def config_of(model: str | ModelConfig) -> ModelConfig:
    """The config itself, or that of a built-in name, a folder or a hub id."""
    return model if isinstance(model, ModelConfig) else load_config(model)


def device_of(on: str | Device) -> Device:
    """The device itself, or that of a name, a TOML file or ``this``."""
    return on if isinstance(on, Device) else load_device(on)


def whole_number(name: str, value: object, least: int = 1, most: int = MOST) -> int:
    """The value; raises InputError that names it unless it is a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number, not {value!r}")
    if not least <= value <= most:
        raise InputError(f"{name} must be {least:,} to {most:,}, not {_short(value)}")
    return value


def choice(name: str, value: str, kind: type[Kind]) -> Kind:
    """The value as one of ``kind``; InputError lists them."""
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name} must be {' or '.join(kind)}, not '{value}'") from None


def _short(value: int) -> str:
    text = str(value) if value.bit_length() < 1000 else "a number of thousands of digits"
    return text if len(text) <= 40 else f"a number of {len(text)} digits"
