"""Quantities as short strings for people: three significant digits and a unit that fits; and the words
for what binds a kernel.

Prefixes are decimal throughout, as vendors and the hardware files count: 1 GB is 10^9 bytes.
"""

from __future__ import annotations

from math import floor, log10

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
#: What a kernel can be bound by, as said in a sentence.
BOUNDS = {
    "matrix": "matrix products",
    "vector": "vector operations",
    "exp": "exponentials",
    "memory": "reads and writes of memory",
    "launch": "launches of kernels",
}


def seconds(x: float) -> str:
    """A duration in seconds: ``12.3 ms``, ``1.05 s``."""
    x = _rounded(x)
    scale, unit = next((s for s in _SECONDS if abs(x) >= s[0]), _SECONDS[-1])
    return f"{_digits(x / scale)} {unit}"


def nbytes(x: float) -> str:
    """Bytes: ``512 B``, ``26.8 MB``, ``80.0 GB``."""
    return _prefixed(x, "B")


def rate(x: float, unit: str) -> str:
    """Units a second, with a decimal prefix: ``989 TFLOP/s`` of FLOP, ``3.35 TB/s`` of B."""
    return _prefixed(x, f"{unit}/s")


def count(x: float) -> str:
    """A number of things: ``512``, ``12,345``, ``1.10B`` (billion), ``0.950``."""
    if x == int(x) and abs(x) < 1e6:
        return f"{int(x):,}"
    rounded = _rounded(x)
    for scale, unit in _COUNTS:
        if abs(rounded) >= scale:
            return f"{_digits(rounded / scale)}{unit}"
    return f"{x:,.0f}" if abs(rounded) >= 1000 else _digits(rounded)


def parameters(total: int, active: int) -> str:
    """A model's size: ``1.10B parameters``, ``46.7B parameters (12.9B a token)`` of a mixture."""
    return f"{count(total)} parameters" + ("" if active == total else f" ({count(active)} a token)")


def signed_percent(x: float) -> str:
    """A relative error: ``+3.2 %``, ``−12 %``."""
    percent = 100 * x
    digits = f"{abs(percent):.1f}" if abs(percent) < 9.95 else f"{abs(percent):,.0f}"
    sign = "" if float(digits.replace(",", "")) == 0 else "+" if percent > 0 else "\N{MINUS SIGN}"
    return f"{sign}{digits} %"


def percent(x: float) -> str:
    """A share or an unsigned error: ``3.2 %``, ``57 %``."""
    return signed_percent(x).lstrip("+")


def _prefixed(x: float, unit: str) -> str:
    x = _rounded(x)
    power = min(max(floor(log10(abs(x)) / 3), 0), len(PREFIXES) - 1) if x else 0
    scaled = x / 1000**power
    digits = f"{scaled:.0f}" if unit == "B" and power == 0 else _digits(scaled)
    return f"{digits} {PREFIXES[power]}{unit}"


def _rounded(x: float) -> float:
    """To three significant digits, before the unit is chosen: 999.9 ms is 1.00 s."""
    return float(f"{x:.2e}")


def _digits(x: float) -> str:
    if x == 0:
        return "0"
    decimals = max(0, 2 - floor(log10(abs(x)) + 1e-9))
    return f"{x:,.{decimals}f}"
