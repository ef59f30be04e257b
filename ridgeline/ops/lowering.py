"""Which parts of an operator an implementation runs as one kernel."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.ops.latent import Mla


@dataclass(frozen=True)
class Lowering:
    """Which kinds of part are merged into the part before them, by the kind of the operator.

    ``activations`` is the format that this implementation keeps activations in, None for that of the
    weights. ``mla`` is the form in which it runs latent attention, fixed when a pass is counted. A reading
    that executes is measured under the ``name`` of its lowering.
    """

    name: str
    fused: frozenset[tuple[str, str]]
    activations: str | None = None
    mla: Mla = Mla.AUTO

    def merges(self, op_kind: str, part_kind: str) -> bool:
        return (op_kind, part_kind) in self.fused


_NATIVE_EPILOGUE = frozenset(("linear", part) for part in ("bias", "activation", "gate", "residual"))
_EPILOGUE = _NATIVE_EPILOGUE | {("linear", "dropout")}
_MODULATED_NORM = frozenset({("norm", "modulate")})
#: What becomes of scores before the softmax runs where they are made.
_SCORES = frozenset(("attend", part) for part in ("softcap", "bias"))
_ATTENTION = _SCORES | frozenset(
    (op, part) for op in ("attend", "attend_latent") for part in ("softmax", "dropout", "values")
)
_CACHED_ATTENTION = frozenset(("attend", part) for part in ("append", "scores"))
#: A product reads its rows where they are and keeps its hidden values on chip until they are gated.
_EXPERTS = frozenset(("experts", part) for part in ("matmul", "activation"))
_BIAS_GRADIENT = frozenset({("linear_backward", "bias")})
_ROTATED_GRADIENT = frozenset(("attend_backward", part) for part in ("attend_backward", "rotate"))

#: Every operator is one kernel: what a fused implementation runs. Backward, a linear layer is one
#: kernel for its activation and one for each product.
FUSED = Lowering(
    "fused",
    _EPILOGUE
    | _MODULATED_NORM
    | _ATTENTION
    | _CACHED_ATTENTION
    | _EXPERTS
    | _BIAS_GRADIENT
    | _ROTATED_GRADIENT,
)
#: What engines such as vLLM run on GPUs: gated activations are kernels of their own, and so are rotations,
#: with which keys and values go into the cache. Residuals are added by the next norm, at the same traffic.
GPU_ENGINE = Lowering("gpu engine", FUSED.fused - {("linear", "activation"), ("attend", "scores")})
#: Linear layers keep their epilogue, attention writes its scores to memory.
NAIVE_ATTENTION = Lowering(
    "naive attention", _EPILOGUE | _MODULATED_NORM | _SCORES | _EXPERTS | _BIAS_GRADIENT
)
#: Every part is a kernel of its own.
UNFUSED = Lowering("unfused", frozenset())
_NATIVE = _NATIVE_EPILOGUE | _MODULATED_NORM | {("experts", "activation")}
#: The cpu reading: every operator is one kernel, but for routing and experts, whose products are native.
CPU = Lowering("cpu", _NATIVE | _ATTENTION | _CACHED_ATTENTION, "fp32", Mla.EXPANDED)
#: The same, with the scores written to memory.
CPU_NAIVE = Lowering("cpu, naive attention", _NATIVE | _SCORES, "fp32", Mla.EXPANDED)
#: PyTorch on a CPU: addmm takes the bias, SDPA keeps the scores on chip, the rest is separate.
TORCH_CPU = Lowering("torch-cpu", frozenset({("linear", "bias")}) | _ATTENTION)

#: What a token stores of latents is normalised, rotated and appended in one kernel.
_STORED_LATENT = frozenset(("attend_latent", part) for part in ("rotate", "append"))
#: The gpu reading: one kernel rotates and appends, one attends; products are PyTorch's, but for experts'.
GPU = Lowering(
    "gpu", frozenset({("linear", "bias"), ("attend", "append")}) | _ATTENTION | _EXPERTS | _STORED_LATENT
)
#: The same with quantised weights, whose kernel has the epilogue in it.
GPU_QUANTISED = Lowering("gpu, quantised", GPU.fused | _NATIVE_EPILOGUE - {("linear", "gate")})
#: The same where a row's bits depend on that row alone: a kernel of that kind takes plain weights, too.
GPU_INVARIANT = Lowering("gpu, invariant", GPU_QUANTISED.fused, mla=Mla.EXPANDED)
