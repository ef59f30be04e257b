"""What quantisation costs the demo model, in bits per byte of its held-out text.

Run as ``python -m benchmarks.quality [--only FORMAT] [--files N]``. Our formats are evaluated as they run,
their activations in 8 bits included. Beside them stands llama.cpp's Q4_0, computed in float32 with its
weights but with activations that nothing rounds, which can only favour it; in two forms: every matrix in
Q4_0, and with the tied embedding, which is the output head, left as it is. The files that llama.cpp writes
lie between the two: the head is Q6_K there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy

import ridgeline
from benchmarks.record import write_result
from ridgeline.analysis.evaluate import evaluate
from ridgeline.demo.heldout import held_out_texts
from ridgeline.models.products import products

if TYPE_CHECKING:
    from ridgeline.loading import Loaded
    from ridgeline.ops.records import Weight

#: Weights that share a scale in Q4_0, and the bytes that they take: 16 of nibbles and a scale in fp16.
Q4_0_GROUP, Q4_0_BYTES = 32, 18
OURS = ("bf16", "int8", "int4-g32", "int4-g64", "int4-g128", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp")
Q4_0, Q4_0_BUT_HEAD = "Q4_0", "Q4_0 but the head"


def q4_0(weights: numpy.ndarray) -> numpy.ndarray:
    """What Q4_0 makes of float32 weights ``[..., n]`` with n a multiple of 32, in the same shape.

    Of every 32 weights the one m of largest size, sign included, gives the scale d = m / -8, kept in fp16. A
    weight w becomes q = min(15, floor(w / d + 8.5)), with d before it is rounded, and is read as (q - 8) d.
    Source: ggml's ``quantize_row_q4_0_ref`` and ``dequantize_row_q4_0``.
    """
    groups = weights.reshape(-1, Q4_0_GROUP)
    largest = numpy.take_along_axis(groups, numpy.abs(groups).argmax(1)[:, None], 1)
    scale = largest / numpy.float32(-8)
    inverse = numpy.divide(numpy.float32(1), scale, out=numpy.zeros_like(scale), where=scale != 0)
    q = numpy.minimum(numpy.floor(groups * inverse + numpy.float32(8.5)), numpy.float32(15))
    return ((q - 8) * scale.astype(numpy.float16).astype(numpy.float32)).reshape(weights.shape)


def run(formats: tuple[str, ...], texts: list[str]) -> list[dict[str, Any]]:
    """Each format's bits per byte and size."""
    found = []
    for name in formats:
        loaded, nbytes = _loaded(name)
        result = evaluate(loaded, texts)
        found.append(
            {
                "format": name,
                "bits_per_weight": round(8 * nbytes / loaded.model.parameter_count(), 3),
                "bits_per_byte": round(result.bits_per_byte, 5),
                "perplexity": round(result.perplexity, 4),
            }
        )
        print(
            "{format:18} {bits_per_weight:7.3f} bits {bits_per_byte:9.5f} bits/byte".format(**found[-1]),
            flush=True,
        )
    return found


def _loaded(name: str) -> tuple[Loaded, float]:
    """The demo model in a format, and the bytes of its weights there."""
    if name not in (Q4_0, Q4_0_BUT_HEAD):
        loaded = ridgeline.load("demo", weights=name)
        return loaded, loaded.model.weight_bytes()
    loaded = ridgeline.load("demo", weights="fp32")
    model = loaded.model
    kept = [model.embedding] if name == Q4_0_BUT_HEAD else []
    quantised = [weight for weight, _ in products(model) if weight not in kept]
    for weight in quantised:
        _quantise(weight)
    nbytes = sum(w.numel * (Q4_0_BYTES / Q4_0_GROUP if w in quantised else 2) for w in model.weights())
    return loaded, nbytes


def _quantise(weight: Weight) -> None:
    """A packed float32 weight becomes what Q4_0 keeps of it."""
    import torch

    from ridgeline.kernels import pack_linear

    read = torch.from_numpy(q4_0(weight.data.unpack().numpy()))
    weight.data = pack_linear(read, "fp32", gated=weight.data.gated)


def main() -> None:
    formats = (*OURS, Q4_0, Q4_0_BUT_HEAD)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--only", action="append", choices=formats, help="a format; may be repeated")
    parser.add_argument("--files", type=int, help="the first so many held-out files; all if not given")
    options = parser.parse_args()
    texts = list(held_out_texts().values())[: options.files]
    found = run(tuple(options.only or formats), texts)
    if not options.only and options.files is None:
        print(f"wrote {write_result('quality', {'files': len(texts), 'formats': found})}")


if __name__ == "__main__":
    main()
