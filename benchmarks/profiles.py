"""How far predicted times of GPU kernels are from measured ones: ``python -m benchmarks.profiles``.

The points are those that `ridgeline validate` judges by; nothing is run.
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.record import write_result
from ridgeline.validation.profiles import judge_profiles

if __name__ == "__main__":
    write_result("profiles", {"profiles": [asdict(judged) for judged in judge_profiles()]})
