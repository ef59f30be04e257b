"""Whole models of ``benchmarks.gpu``: decoding a Llama-3-8B of random weights; ``measure`` and ``check``."""

from __future__ import annotations

import argparse
import gc
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_results import Results, Row
from benchmarks.gpu_timing import step_seconds
from ridgeline.ops.batch import Span

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

MODEL, FORMAT = "llama-3-8b", "bf16"
#: Sequences that decode, and tokens that each has cached.
BATCHES, CONTEXT = (1, 16), 512
#: Spread of random weights.
STD = 0.02
#: Prompt and contexts of the check.
PROMPT, CONTEXTS = 2048, (512, 8000)
#: Seconds that measuring may take of the part's.
MEASURED = 70.0


def random_on_gpu(name: str, device: torch.device, **changes: Any) -> Loaded:
    """A built-in model with random weights that are drawn where they lie."""
    from ridgeline.loading import Loaded
    from ridgeline.models import declare, load_config
    from ridgeline.ops.gpu import Gpu
    from ridgeline.ops.torch_batch import TORCH_DTYPE
    from ridgeline.weights.generation import GenerationDefaults

    config = replace(load_config(name), format=FORMAT, **changes)
    model, dtype = declare(config, FORMAT), TORCH_DTYPE[FORMAT]
    for weight in model.weights():
        if weight.data is None:
            data = torch.empty(weight.shape, dtype=dtype, device=device)
            weight.data = data.fill_(1.0) if data.dim() == 1 else data.normal_(0.0, STD)
    return Loaded(config, model, Gpu(dtype, device), None, None, GenerationDefaults(), None)


def decode_step(loaded: Loaded, batch: int, context: int) -> Callable[[], Any]:
    """A decode step of ``batch`` sequences behind ``context`` tokens each."""
    model, ops = loaded.model, loaded.ops
    spec = model.cache_spec(FORMAT)
    blocks = -(-(context + 1) // spec.block_size)
    cache = ops.alloc_cache(spec, batch * blocks)
    cache.randomise()
    tables = [tuple(range(i * blocks, (i + 1) * blocks)) for i in range(batch)]
    spans = [Span(1, context, table=table) for table in tables]
    return partial(ops.run, model, [1] * batch, spans, cache=cache)


def bytes_read(loaded: Loaded, batch: int, context: int) -> float:
    """Those of a decode step: every weight that is multiplied, and the cache."""
    model = loaded.model
    looked_up = 0 if model.config.tied else model.embedding.numel * 2
    return model.weight_bytes() - looked_up + batch * context * model.cache_spec(FORMAT).bytes_per_token


def model_part(found: Results, device: torch.device, options: argparse.Namespace) -> None:
    """Our decode steps, then those of transformers with torch.compile."""
    loaded = random_on_gpu(MODEL, device)
    with torch.inference_mode():
        for batch in BATCHES:
            row = Row("model", f"{MODEL} {FORMAT}, {batch}x1 after {CONTEXT}", 0.0, 0.0, 0.0, 0.0)
            row.bytes = bytes_read(loaded, batch, CONTEXT)
            row.seconds["ours"] = step_seconds(decode_step(loaded, batch, CONTEXT))
            row.seconds["copy bound"] = row.bytes / found.bandwidth
            found.rows.append(row)
            found.save()
    config = loaded.config
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    first = next(row for row in found.rows if row.part == "model")
    try:
        first.seconds["transformers, compiled"] = transformers_seconds(config, device)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        first.left_out["transformers, compiled"] = said[:200]
        print(f"  transformers is left out: {said[:90]}", file=sys.stderr)


def transformers_seconds(config: Any, device: torch.device) -> float:
    """A decode step of transformers' Llama with a static cache, compiled into a CUDA graph."""
    import transformers

    theirs = transformers.LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.window,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = transformers.LlamaForCausalLM(theirs).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    model = model.to(torch.bfloat16)
    cache = transformers.StaticCache(config=theirs, max_cache_len=1024)
    takes = inspect.signature(model.forward).parameters

    def given(first: int, end: int) -> dict[str, Any]:
        """Versions differ in what they call the cache, and whether it counts its tokens itself."""
        named: dict[str, Any] = {"cache" if "cache" in takes else "past_key_values": cache, "use_cache": True}
        if "cache_position" in takes:
            named["cache_position"] = torch.arange(first, end, device=device)
        return named

    with torch.inference_mode():
        prompt = torch.ones(1, CONTEXT, dtype=torch.long, device=device)
        model(prompt, **given(0, CONTEXT), logits_to_keep=1)
        compiled = torch.compile(model, mode="reduce-overhead")
        one, behind = prompt[:, :1].contiguous(), given(CONTEXT, CONTEXT + 1)

        def step() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(one, **behind).logits

        return step_seconds(step)


def measure_part(
    found: Results,
    device: torch.device,
    options: argparse.Namespace,
    measure: Callable[..., Any] | None = None,
) -> None:
    """The GPU's hardware file, its points, and a check of two models against it."""
    from ridgeline.analysis.check import check
    from ridgeline.hardware import gpu_file, save_device
    from ridgeline.hardware.gpu.measure import measure_gpu
    from ridgeline.hardware.gpu.plan import GpuPlan
    from ridgeline.hardware.gpu.points import write_points
    from ridgeline.hardware.gpu_kernels import GpuKernels

    plan = replace(GpuPlan.usual(), seconds=MEASURED)
    measured = (measure or measure_gpu)(plan=plan)
    kernels = GpuKernels.from_dict(measured.device.kernels)
    found.measured |= {f"{name} bytes/s": value for name, value in kernels.bandwidth.items()}
    found.measured |= {"replay s": kernels.replay, "step s": kernels.step, "gap s": kernels.gap}
    found.measured |= {"launch s": kernels.launch, "seconds": measured.seconds, "points": measured.measured}
    found.measured |= {"left out": measured.left_out, "failed": len(measured.failed)}
    for figure, said in measured.failed.items():
        print(f"  {figure} did not run: {said}", file=sys.stderr)
    paths = [gpu_file(measured.facts.name)]
    if options.output is not None:
        paths.append(options.output.with_suffix(".toml"))
    for path in paths:
        save_device(measured.device, path)
    points = options.points or (options.output and options.output.with_suffix(".csv"))
    if points is not None:
        write_points(points, list(measured.points), measured.facts)
    found.save()
    for name, window in ((MODEL, 8192), ("bert-base", 512)):
        gc.collect()
        torch.cuda.empty_cache()
        loaded = random_on_gpu(name, device)
        given = {"prompt": min(PROMPT, window)}
        if loaded.config.is_decoder:
            given["contexts"] = CONTEXTS
        for phase in check(loaded, on=measured.device, **given).phases:
            found.checked[f"{name} {phase.name} at {phase.context}"] = phase.error
            found.measured[f"{name} {phase.name} at {phase.context}, predicted s"] = phase.predicted
            found.measured[f"{name} {phase.name} at {phase.context}, measured s"] = phase.measured
            found.measured[f"{name} {phase.name} at {phase.context}, operators"] = phase.operator_mape
        del loaded
        found.save()
