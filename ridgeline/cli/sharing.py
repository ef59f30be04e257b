"""Commands that share a model among devices: nothing is run."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import CountedWeights, Json, Model, app
from ridgeline.errors import InputError


@app.command(
    epilog="Example: ridgeline parallel llama-3-405b --on h100-sxm --devices 16,64 --goal throughput "
    "--tpot-limit 0.05"
)
def parallel(
    model: Model,
    on: Annotated[str, typer.Option(help="A device, or a cluster such as h100-sxm:8x4: 4 nodes of 8.")],
    devices: Annotated[str | None, typer.Option(help="How many; several numbers for a search.")] = None,
    per_node: Annotated[int | None, typer.Option(help="Devices of a node; the vendor's own number.")] = None,
    tensor: Annotated[int | None, typer.Option(help="Ranks that share every layer.")] = None,
    pipeline: Annotated[int | None, typer.Option(help="Stages of some layers each.")] = None,
    data: Annotated[int | None, typer.Option(help="Replicas with requests of their own.")] = None,
    context: Annotated[int | None, typer.Option(help="Ranks that share every sequence.")] = None,
    expert: Annotated[int | None, typer.Option(help="Ranks that share experts by their number.")] = None,
    context_kind: Annotated[str, typer.Option(help="ring, ulysses or allgather.")] = "ring",
    goal: Annotated[
        str | None, typer.Option(help="Search for the layout of best latency or throughput.")
    ] = None,
    ttft_limit: Annotated[float | None, typer.Option(help="Seconds to the first token at most.")] = None,
    tpot_limit: Annotated[float | None, typer.Option(help="Seconds a further token at most.")] = None,
    prompt: Annotated[int, typer.Option(help="Prompt tokens of each request.")] = 512,
    output: Annotated[int, typer.Option(help="New tokens of each request.")] = 128,
    batch: Annotated[
        int | None, typer.Option(help="Requests at once on all devices; 1, or what gives most throughput.")
    ] = None,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    as_json: Json = False,
) -> None:
    """Share a model among devices: latency, throughput, memory and communication; or find the best layout."""
    from ridgeline.analysis.compare import Limits
    from ridgeline.analysis.layout_search import Fixed
    from ridgeline.analysis.parallel import best_layouts
    from ridgeline.analysis.parallel import parallel as run
    from ridgeline.predict.layout import Layout
    from ridgeline.report.parallel import show_layout, show_searches

    numbers = None if devices is None else support.numbers("--devices", devices)
    load = {"prompt": prompt, "output": output, "cache": cache, "weights": support.counted_format(weights)}
    given = {"tensor": tensor, "pipeline": pipeline, "data": data, "context": context, "expert": expert}
    limited = ttft_limit is not None or tpot_limit is not None
    if goal is None and not limited and any(number is not None for number in given.values()):
        if numbers is not None and len(numbers) > 1:
            raise InputError("--devices has several numbers, which only a search (--goal) can take")
        ranks = {axis: 1 if number is None else number for axis, number in given.items()}
        layout = Layout(**ranks, context_kind=context_kind)
        count = numbers[0] if numbers else None
        found = run(
            model, on, layout, devices=count, per_node=per_node, batch=1 if batch is None else batch, **load
        )
        show = show_layout
    else:
        if data is not None:
            raise InputError("a search chooses the replicas itself: leave --data out, or --goal and limits")
        found = best_layouts(
            model,
            on,
            numbers,
            per_node=per_node,
            goal="latency" if goal is None else goal,
            batch=batch,
            limits=Limits(ttft_limit, tpot_limit),
            fixed=Fixed(tensor, pipeline, context, context_kind, expert),
            **load,
        )
        show = show_searches
    if as_json:
        support.print_json(found)
        return
    show(support.console(), found)


@app.command(
    epilog="Example: ridgeline place llama-2-7b --on h100-sxm,epyc-9654 --batch 64 --prompt 3000 --output 512"
)
def place(
    model: Model,
    on: Annotated[str, typer.Option(help="Two or more unlike devices, separated by commas.")],
    phase: Annotated[
        str | None,
        typer.Option(help="decode or prefill; of an encoder encode, of a diffusion Transformer denoise."),
    ] = None,
    prompt: Annotated[
        int | None, typer.Option(help="Prompt tokens of each request; 512 if not given.")
    ] = None,
    output: Annotated[int | None, typer.Option(help="New tokens of each request; 128 if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Requests, or images, at once.")] = 1,
    weights: CountedWeights = "auto",
    cache: Annotated[str | None, typer.Option(help="Storage format of the KV cache.")] = None,
    link: Annotated[float | None, typer.Option(help="GB/s between the devices; 32, PCIe 4 x16.")] = None,
    latency: Annotated[float | None, typer.Option(help="Microseconds of a transfer's start; 10.")] = None,
    as_json: Json = False,
) -> None:
    """Split a model over unlike devices: each operator where the step takes least, transfers counted."""
    from ridgeline.analysis.placement import LINK_BANDWIDTH, LINK_LATENCY
    from ridgeline.analysis.placement import place as run
    from ridgeline.report.placement import show_placement

    found = run(
        model,
        [name.strip() for name in on.split(",")],
        phase=phase,
        prompt=prompt,
        output=output,
        batch=batch,
        weights=support.counted_format(weights),
        cache=cache,
        link_bandwidth=LINK_BANDWIDTH if link is None else link * 1e9,
        link_latency=LINK_LATENCY if latency is None else latency * 1e-6,
    )
    if as_json:
        support.print_json(found)
        return
    show_placement(support.console(), found)
