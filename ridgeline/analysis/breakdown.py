"""Time by class of layer as the FLAT document divides it: attention, fully connected, activation and norm.

Attention is the whole module with its projections, fully connected the products of the MLP with their
biases, activation and norm all that works element by element between them: norms, activations, sums of
residuals; and in a diffusion Transformer what makes the shifts, scales and gates of these. What stands
outside the layers, embedding and output matrix, is none of the three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ridgeline.analysis.arguments import device_of, whole_number
from ridgeline.analysis.overtake import is_attention
from ridgeline.errors import InputError
from ridgeline.hardware import Device, rates_only
from ridgeline.models import ModelConfig, declare, load_config
from ridgeline.models.denoising import count_denoising, grid_of
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.formats import storage_format
from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION, UNFUSED
from ridgeline.ops.trace import MATRIX_PARTS
from ridgeline.predict import predict

ATTENTION, FULLY_CONNECTED, ACTIVATION_AND_NORM = GROUPS = (
    "attention",
    "fully connected",
    "activation and norm",
)
#: What DSQ's authors measured of OPT-1.3B, on a machine and at lengths that they do not name (Yang et al.
#: 2023, arXiv:2303.05295), and the share of matrix products in an attention module.
PUBLISHED = {ATTENTION: 0.4793, FULLY_CONNECTED: 0.3220, ACTIVATION_AND_NORM: 0.1987}
PUBLISHED_MODEL, PUBLISHED_PRODUCTS = "opt-1.3b", 0.66
#: The parts of an attention module's products that are element-wise layers of their own.
BETWEEN_LAYERS = ("residual", "activation", "dropout")


@dataclass(frozen=True)
class Breakdown:
    """Seconds of each of :data:`GROUPS`, those of attention's matrix products, and those of all else."""

    seconds: Mapping[str, float]
    attention_products: float
    outside: float

    @property
    def shares(self) -> dict[str, float]:
        """Of the three groups together, as the document has it."""
        total = sum(self.seconds.values())
        return {name: t / total if total else 0.0 for name, t in self.seconds.items()}

    @property
    def products_of_attention(self) -> float:
        """The share of matrix products in attention's time."""
        attention = self.seconds[ATTENTION]
        return self.attention_products / attention if attention else 0.0


def group_of(op: str, op_kind: str, part: str) -> str | None:
    """The group of a part of an operator, by their names and kinds; None outside the layers."""
    if op_kind == "linear" and part in BETWEEN_LAYERS:
        return ACTIVATION_AND_NORM
    if op_kind in ("norm", "add"):
        return ACTIVATION_AND_NORM
    if is_attention(op) or op_kind == "split":
        return ATTENTION
    if op_kind in ("route", "experts") or "mlp" in op.split("."):
        return FULLY_CONNECTED
    return ACTIVATION_AND_NORM if "modulation" in op and not op.startswith("final") else None


def _length(config: ModelConfig, given: int | None) -> int:
    """Tokens of a sequence: 2,048, or the window if that is shorter, unless given; all of an image."""
    if config.is_diffusion:
        if given is not None:
            raise InputError(f"{config.name} denoises images as trained: it has no prompt, so leave it out")
        return grid_of(config).tokens
    length = min(2048, config.window) if given is None else given
    if not 1 <= length <= config.window:
        raise InputError(f"prompt must be 1 to {config.window} tokens for {config.name}, not {length}")
    return length


def breakdown(pieces: Iterable[tuple[str, str, str, float]]) -> Breakdown:
    """Add up (operator, its kind, the part's kind, seconds). A kernel that merges an operator's parts has
    the operator's kind, and counts as what the operator mostly is."""
    seconds = dict.fromkeys(GROUPS, 0.0)
    products = outside = 0.0
    for op, op_kind, part, took in pieces:
        group = group_of(op, op_kind, part)
        if group is None:
            outside += took
            continue
        seconds[group] += took
        if group == ATTENTION and (part in MATRIX_PARTS or part == "linear"):
            products += took
    return Breakdown(seconds, products, outside)


@dataclass(frozen=True)
class PredictedBreakdown:
    """One pass of a model on a device, divided for each way to run it: every part a kernel of its own
    (unfused), scores in memory (naive), or whole operators (fused)."""

    model: str
    device: str
    device_title: str
    prompt: int
    batch: int
    training: bool
    format: str
    ways: Mapping[str, Breakdown]
    basis: Mapping[str, str]


def predict_breakdown(
    model: str,
    on: str | Device = "this",
    *,
    prompt: int | None = None,
    batch: int = 1,
    training: bool = False,
    weights: str | None = None,
    tier: str | None = None,
) -> PredictedBreakdown:
    """Divide the predicted time of a pass over ``batch`` whole sequences of ``prompt`` tokens (of an
    encoder-decoder, over so long sources and targets); with ``training`` its backward pass belongs to it.
    ``tier`` is what times stand on, the best that the device has unless given.
    Implementations that keep scores compute all pairs.

    Raises InputError for lengths out of range and formats that nothing is stored in.
    """
    config = load_config(model)
    device = rates_only(device_of(on))
    prompt = _length(config, prompt)
    whole_number("batch", batch)
    built = declare(config, None if weights is None else storage_format(weights))
    ways, basis = {}, {}
    for lowering in (UNFUSED, NAIVE_ATTENTION, FUSED):
        pairs = Pairs.VISIBLE if lowering is FUSED else Pairs.SQUARE
        ops = Count(activations=built.plain_format, lowering=lowering, pairs=pairs, train=training)
        if config.is_diffusion:
            trace = ops.trace(built.forward(ops, count_denoising(ops, config, grid_of(config), batch)))
        else:
            trace = ops.trace(built.whole(ops, ops.batch([Span(prompt, 0, batch)], logits="all")))
        prediction = predict(trace.backward() if training else trace, device, tier)
        name = lowering.name.removesuffix(" attention")
        ways[name] = breakdown(
            (forward_name(k.op), forward_name(k.op_kind), k.kind, float(k.seconds) * k.repeat)
            for k in prediction.kernels
        )
        basis.update({section: str(source) for section, source in prediction.basis.items()})
    return PredictedBreakdown(
        config.name, device.name, device.title, prompt, batch, training, built.plain_format, ways, basis
    )


def forward_name(name: str) -> str:
    """The name or the kind of the operator whose backward pass this is of."""
    return name.removesuffix(".backward").removesuffix("_backward")
