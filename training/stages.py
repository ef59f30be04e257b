"""How the demo pair came about: five stages, each with its schedule and what it begins from."""

from dataclasses import dataclass
from pathlib import Path

from ridgeline.errors import InputError
from training.run import Recipe
from training.tokenizer import DRAFT_FOLDER, MODEL_FOLDER

PACKAGES = ("numpy", "torch")


@dataclass(frozen=True)
class Stage:
    """A run whose weights are kept. The model is that of `model`'s config.json, with `layers` layers.

    `begins_from` and `teacher` name earlier stages: the one whose weights the run goes on from, None for
    noise, and the one that it is distilled from, None for plain next-token prediction. `truth` is the share
    of the tokens that came in what a distilled model is to predict.
    """

    name: str
    model: Path
    layers: int
    recipe: Recipe
    begins_from: str | None = None
    teacher: str | None = None
    truth: float = 1.0


STAGES = (
    Stage("shallow-target", MODEL_FOLDER, layers=6, recipe=Recipe(7_450_624)),
    Stage(
        "target",
        MODEL_FOLDER,
        layers=10,
        recipe=Recipe(10_000_000, PACKAGES, library_from=0.6, seed=1),
        begins_from="shallow-target",
    ),
    # The draft learns most from the shallow target, whose answers cost half as much.
    Stage(
        "early-draft",
        DRAFT_FOLDER,
        layers=3,
        recipe=Recipe(10_000_000, PACKAGES, library_from=0.5, seed=2, last_rate=0.4),
        teacher="shallow-target",
        truth=0.1,
    ),
    Stage(
        "later-draft",
        DRAFT_FOLDER,
        layers=3,
        recipe=Recipe(
            5_000_000,
            PACKAGES,
            library_from=0.5,
            seed=3,
            matrix_rate=4e-3,
            other_rate=1.6e-3,
            last_rate=1.0,
        ),
        begins_from="early-draft",
        teacher="shallow-target",
        truth=0.1,
    ),
    Stage(
        "draft",
        DRAFT_FOLDER,
        layers=3,
        recipe=Recipe(2_000_000, seed=4, matrix_rate=4e-3, other_rate=1.6e-3),
        begins_from="later-draft",
        teacher="target",
        truth=0.1,
    ),
)


def stage_named(name: str) -> Stage:
    """Raises InputError that names the stages there are."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"no stage is called {name!r}: choose {', '.join(stage.name for stage in STAGES)}")


def last_stages() -> tuple[Stage, ...]:
    """For every model, the stage whose weights ship."""
    return tuple({stage.model: stage for stage in STAGES}.values())
