"""Without PyTorch there is nothing to test here."""

import pytest

pytest.importorskip("torch")
