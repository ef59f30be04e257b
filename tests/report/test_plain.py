"""Results as JSON."""

import json
from dataclasses import dataclass

import numpy
import pytest

from ridgeline.report.plain import to_json, to_plain


@dataclass(frozen=True)
class Inner:
    x: float

    @property
    def double(self) -> float:
        return 2 * self.x


def test_records_carry_their_fields_and_computed_properties():
    assert to_plain({"a": (Inner(1.5),)}) == {"a": [{"x": 1.5, "double": 3.0}]}


def test_arrays_become_lists():
    assert json.loads(to_json({"sweep": numpy.array([1.0, 2.0])})) == {"sweep": [1.0, 2.0]}


def test_json_holds_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))
