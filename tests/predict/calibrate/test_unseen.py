"""What nothing was fitted to: devices that do not exist, their times noisy, and shapes held out whole."""

from dataclasses import replace

import numpy as np
import pytest

from ridgeline.hardware import load_device
from ridgeline.predict.calibrate.calibrate import calibrate
from ridgeline.predict.calibrate.choose import choose
from ridgeline.predict.gpu import elementwise, flash, gemm
from ridgeline.predict.gpu.kinds import Points, kind
from ridgeline.validation.profiles import profiled_points

PRIORS = {"gemm": gemm.PRIORS, "elementwise": elementwise.PRIORS, "attention": flash.PRIORS}

#: A card of 24 GB, one of 188 multiprocessors, a data-centre GPU with more bandwidth, a small one.
DEVICES = ("l4", "rtx-pro-6000", "h200", "b200", "rtx-4060", "t4")
NOISE = 0.03


def drawn(random, of, **fixed):
    """Constants within two thirds of their priors' spreads."""
    constants = {}
    for name, prior in PRIORS[of].items():
        constants[name] = prior.outward(
            prior.inward(prior.usual) + random.uniform(-0.67, 0.67) * prior.spread
        )
    return kind(of).constants(**constants, **fixed)


def grid(of, random):
    """Unmeasured points of a model that is not among the profiled ones, of many sizes."""
    sizes = np.unique(np.geomspace(1, 4096, 60).astype(int)).astype(float)
    if of == "gemm":
        shapes = [(7168, 5120), (5120, 5120), (27648, 5120), (5120, 13824), (1792, 5120), (5120, 640)]
        m, which = (x.ravel() for x in np.meshgrid(sizes, np.arange(len(shapes))))
        n, k = np.array(shapes, float)[which.astype(int)].T
        columns = {"m": m, "n": n, "k": k}
    elif of == "elementwise":
        ops = ["add", "rms_norm", "rope", "silu_mul"]
        rows, which = (x.ravel() for x in np.meshgrid(sizes, np.arange(len(ops))))
        width = np.array([5120.0, 5120.0, 6144.0, 13824.0])[which.astype(int)]
        columns = {"rows": rows, "width": width, "op": np.array(ops)[which.astype(int)]}
    else:
        chunk = random.choice([0, 16, 128, 512, 2048], 400).astype(float)
        past = np.where(chunk > 0, random.choice([0, 512, 4096], 400), 0).astype(float)
        count = np.where(chunk > 0, random.choice([0, 8, 64, 200], 400), random.choice([1, 8, 64, 200], 400))
        cached = np.where(count > 0, random.choice([64, 1024, 8192], 400), 0).astype(float)
        heads = {"heads": 28.0, "kv_heads": 4.0, "head_dim": 128.0}
        columns = {
            "prefill_chunk": chunk,
            "kv_prefill": past,
            "n_decode": count.astype(float),
            "kv_decode": cached,
        }
        columns |= {name: np.full(400, value) for name, value in heads.items()}
    first = next(iter(columns.values()))
    return Points(of, columns, np.ones(len(first)))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("of", ["gemm", "elementwise", "attention"])
def test_noisy_times_of_an_imagined_device_are_recovered(name, of):
    device = load_device(name)
    random = np.random.default_rng([DEVICES.index(name), len(of)])
    for _ in range(2):
        true = drawn(random, of)
        points = grid(of, random)
        exact = kind(of).seconds(device, true, points)
        noisy = replace(points, seconds=exact * np.exp(random.normal(0, NOISE, len(points))))
        (found,) = calibrate(replace(device, calibration={}), {of: noisy}).kinds
        off = np.abs(kind(of).seconds(device, found.constants, points) / exact - 1)
        assert off.mean() <= 0.05


@pytest.mark.parametrize(
    ("name", "most"), [("a100-80gb", 0.1), ("h100-sxm", 0.1), ("a40", 0.12), ("rtx-4090", 0.11)]
)
@pytest.mark.parametrize("family", ["deep", "wide", "narrow", "small m", "large m"])
def test_a_family_of_shapes_that_was_not_seen_is_predicted(name, most, family):
    """As other models have them: the fit sees 40 points of the other families."""
    points = profiled_points(name)["gemm"]
    unseen = {
        "deep": points["k"] > 4096,
        "wide": points["n"] >= 11008,
        "narrow": points["n"] < 4096,
        "small m": points["m"] <= 128,
        "large m": points["m"] > 1024,
    }[family]
    if not unseen.any():
        pytest.skip("the profile has no such shapes")
    seen, device = points.take(~unseen), load_device(name)
    constants = kind("gemm").fit(device, seen.take(choose(seen, 40)))
    judged = points.take(unseen)
    assert np.abs(kind("gemm").seconds(device, constants, judged) / judged.seconds - 1).mean() <= most
