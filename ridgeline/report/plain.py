"""Results as plain JSON values."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


def to_plain(value: Any) -> Any:
    """Records become objects of their fields and their computed properties, arrays lists."""
    if is_dataclass(value):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
        for name in _properties(type(value)):
            plain[name] = to_plain(getattr(value, name))
        return plain
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def to_json(value: Any) -> str:
    """The value as indented JSON; infinities and NaN, which JSON has not, are refused."""
    return json.dumps(to_plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def _properties(kind: type) -> list[str]:
    return [name for name in dir(kind) if isinstance(getattr(kind, name), property) and name[0] != "_"]
