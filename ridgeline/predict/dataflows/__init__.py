"""Dataflows of attention: traffic, live memory and time as functions of on-chip memory and tiles."""

from ridgeline.predict.dataflows.crossover import Crossover, by_on_chip, crossover
from ridgeline.predict.dataflows.evaluate import Chip, DataflowCost, Outcome, best, choices, cost, outcome
from ridgeline.predict.dataflows.flows import DATAFLOWS, Dataflow
from ridgeline.predict.dataflows.limits import overflows
from ridgeline.predict.dataflows.shape import AttentionShape, Tiles, paper_tiles

__all__ = [
    "DATAFLOWS",
    "AttentionShape",
    "Chip",
    "Crossover",
    "Dataflow",
    "DataflowCost",
    "Outcome",
    "Tiles",
    "best",
    "by_on_chip",
    "choices",
    "cost",
    "crossover",
    "outcome",
    "overflows",
    "paper_tiles",
]
