"""A calibration on the terminal says what it stands on, and what it passed over."""

from io import StringIO

import pytest
from rich.console import Console

from ridgeline.analysis.calibrate import calibrate
from ridgeline.errors import InputError
from ridgeline.report.calibrate import show_calibration

LAYERS = "layer,tokens,time_us\n" + "".join(
    f"qkv_proj,{m},{20 + m / 20}\no_proj,{m},{15 + m / 20}\nmoe,{m},900\n" for m in (1, 16, 64, 256, 1024)
)


def test_layers_of_a_mixture_are_fitted_and_its_experts_named_as_passed_over(tmp_path):
    path = tmp_path / "dense.csv"
    path.write_text(LAYERS)
    found = calibrate("h200", [path], model="qwen3-30b-a3b", tensor=2, most=6)
    assert found.passed == {"moe": 5}
    assert [kind.fitted.points for kind in found.kinds] == [6]
    text = StringIO()
    show_calibration(Console(file=text, width=120), found, None)
    assert "calibrated with 6 points" in text.getvalue()
    assert "Passed over: moe (5 points)" in text.getvalue()


@pytest.mark.parametrize(
    ("tensor", "message"), [(0, "tensor must be 1 or more"), (3, "3 ranks can't share 32 heads evenly")]
)
def test_ranks_that_cannot_share_the_model_are_refused(tmp_path, tensor, message):
    path = tmp_path / "dense.csv"
    path.write_text(LAYERS)
    with pytest.raises(InputError, match=message):
        calibrate("h200", [path], model="qwen3-30b-a3b", tensor=tensor)
