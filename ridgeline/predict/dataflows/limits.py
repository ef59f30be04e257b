"""Where a dataflow's sizes pass what 32-bit counts, a GPU's grid or main memory can hold."""

from __future__ import annotations

from collections.abc import Iterator

from ridgeline.predict.dataflows.flows import Dataflow, Launch
from ridgeline.predict.dataflows.shape import AttentionShape, Tiles

#: The most elements that a signed 32-bit index can count.
MOST_INDEXED = 2**31 - 1
#: Blocks of a grid in x, y and z (CUDA C++ Programming Guide, technical specifications).
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)


def overflows(flow: Dataflow, shape: AttentionShape, tiles: Tiles, on_chip: float) -> Iterator[str]:
    """One line for every count that does not fit, with what it counts and the limit."""
    q, k = shape.operand_elements
    counted = {"Q and O": q, "K and V": k, **flow.stored_elements(shape, tiles)}
    for name, elements in counted.items():
        if elements > MOST_INDEXED:
            yield f"{name}: {elements:,} elements do not fit a 32-bit index; index in 64 bits"
    for launch in flow.launches(shape, tiles, on_chip):
        yield from _grid_overflows(launch)


def _grid_overflows(launch: Launch) -> Iterator[str]:
    for axis, blocks, most in zip("xyz", launch.grid or (), MOST_BLOCKS, strict=False):
        if blocks > most:
            size = f"{blocks:,} blocks in grid {axis}, where a GPU takes {most:,}"
            yield f"{launch.name}: {size}; run fewer at once"


def footprint(flow: Dataflow, shape: AttentionShape, tiles: Tiles) -> float:
    """Bytes in main memory: Q, K, V, O and what the dataflow keeps there beside them."""
    return shape.operand_bytes + flow.stored_bytes(shape, tiles)
