"""Train the demo model with the reference reading's gradient, and save it beside the package's code.

From the repository's root:

    python -m training.train              # --resume goes on from a stopped run's last checkpoint
    python -m training.evaluate           # held-out bits per byte of what was saved

A checkpoint holds everything the next step depends on.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from ridgeline.errors import InputError
from ridgeline.models.model import Model
from ridgeline.models.registry import build, load_config
from ridgeline.ops.protocol import Span
from ridgeline.ops.reference import Reference
from training.corpus import collect
from training.data import batch_at, default_cache, tokenise
from training.grow import grown
from training.parameters import Parameters
from training.tokenizer import MODEL_FOLDER

CHECKPOINT_SECONDS = 180
SMOOTHING = 0.98  # of the loss shown


@dataclass(frozen=True)
class Recipe:
    """Everything but the data that decides the run. Rates are those at the top of the schedule."""

    tokens: int  # to train on
    layers: int
    packages: tuple[str, ...] = ()
    library_from: float = 0.0  # share of the tokens after which only the standard library is read
    grown_from: str = ""  # folder of the shallower model that this one continues
    seed: int = 0
    step_tokens: int = 2048
    matrix_rate: float = 1e-2  # Muon
    other_rate: float = 4e-3  # AdamW
    warmup: float = 0.02  # share of the tokens
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient
    short_length: int = 512
    long_from: float = 0.7  # share of the tokens after which sequences have the model's full window

    def rate(self, progress: float) -> float:
        """Share of the top rate: rises over the warm-up, then falls to 0 along a cosine."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))

    def length(self, progress: float, window: int) -> int:
        """Tokens a sequence; short ones first, whose attention costs less."""
        return window if progress >= self.long_from else min(self.short_length, window)


class Optimizers:
    """Muon for the layers' matrices, AdamW for tables and vectors, one schedule for both.

    Only matrices and tables decay. Muon (Jordan et al. 2024, scaled to AdamW's step as in Liu et al. 2025,
    arXiv:2502.16982) reaches a given loss in far fewer steps, which is what counts in a run this short.
    """

    def __init__(self, parameters: Parameters, recipe: Recipe) -> None:
        decay = recipe.weight_decay
        self._parts: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.Muon(
                    [p.data for p in parameters.matrices],
                    weight_decay=decay,
                    adjust_lr_fn="match_rms_adamw",
                ),
                recipe.matrix_rate,
            ),
            (
                torch.optim.AdamW(
                    [
                        {"params": [p.data for p in parameters.tables], "weight_decay": decay},
                        {"params": [p.data for p in parameters.vectors], "weight_decay": 0.0},
                    ],
                    betas=(0.9, 0.95),
                    fused=True,
                ),
                recipe.other_rate,
            ),
        ]

    def step(self, share: float) -> None:
        """Update with `share` of each optimizer's top rate, and clear the gradients."""
        for optimizer, top_rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = share * top_rate
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _ in self._parts]

    def load(self, state: list[dict[str, Any]]) -> None:
        for (optimizer, _), saved in zip(self._parts, state, strict=True):
            optimizer.load_state_dict(saved)


class Run:
    """A training run: the model, its optimizers, and how far it has come."""

    def __init__(self, recipe: Recipe, library: np.ndarray, mixture: np.ndarray) -> None:
        self.recipe = recipe
        self.library = library
        self.mixture = mixture
        config = replace(load_config(MODEL_FOLDER), layers=recipe.layers, windows=(-1,) * recipe.layers)
        self.parameters = Parameters(recipe.seed)
        self.model = build(config, self.parameters)
        if recipe.grown_from:
            self.parameters.load(grown(Path(recipe.grown_from), recipe.layers))
        self.ops = Reference()
        self.optimizers = Optimizers(self.parameters, recipe)
        self.window = config.window
        self.steps = 0
        self.seconds = 0.0

    @property
    def progress(self) -> float:
        """Share of the recipe's tokens that the run has seen."""
        return self.steps * self.recipe.step_tokens / self.recipe.tokens

    def step(self) -> float:
        """Train on the next batch; returns its mean loss in nats a token."""
        started = time.process_time()
        length = self.recipe.length(self.progress, self.window)
        tokens = self.library if self.progress >= self.recipe.library_from else self.mixture
        batch = batch_at(tokens, self.recipe.step_tokens // length, length, self.recipe.seed, self.steps)
        with torch.autocast("cpu", torch.bfloat16):
            mean = losses(self.model, self.ops, torch.from_numpy(batch)).mean()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.all(), self.recipe.clip)
        self.optimizers.step(self.recipe.rate(self.progress))
        self.steps += 1
        self.seconds += time.process_time() - started
        return mean.item()

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "tensors": self.parameters.tensors(),
            "optimizers": self.optimizers.state(),
            "steps": self.steps,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises InputError when there is none, or it is of another recipe."""
        if not path.exists():
            raise InputError(f"no checkpoint at {path}: leave out --resume to start a run")
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise InputError(f"{path} was made with {state['recipe']}: give the same, or leave out --resume")
        self.parameters.load(state["tensors"])
        self.optimizers.load(state["optimizers"])
        self.steps, self.seconds = state["steps"], state["seconds"]


def losses(model: Model, ops: Reference, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every next token in nats, float32 [batch, length], of tokens [batch, length + 1]."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch, length = inputs.shape
    packed = ops.batch(inputs.flatten(), [Span(rows=length)] * batch, logits="all")
    logits = model.forward(ops, packed).float()
    return torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none").view(batch, length)


def follow(run: Run, checkpoint: Path) -> None:
    """Train until the budget is used, with a progress bar and a checkpoint every few minutes."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    figures = TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s")
    with Progress("training", BarColumn(), figures, TimeRemainingColumn()) as bar:
        seen = run.steps * run.recipe.step_tokens
        task = bar.add_task("", total=run.recipe.tokens, completed=seen, loss=math.nan, rate=0.0)
        shown, saved_at = math.nan, run.seconds
        while run.progress < 1:
            before = run.seconds
            loss = run.step()
            shown = loss if math.isnan(shown) else SMOOTHING * shown + (1 - SMOOTHING) * loss
            rate = run.recipe.step_tokens / (run.seconds - before)
            bar.update(task, advance=run.recipe.step_tokens, loss=shown, rate=rate)
            if run.seconds - saved_at > CHECKPOINT_SECONDS:
                run.save(checkpoint)
                saved_at = run.seconds
                bar.console.print(f"{run.seconds / 60:5.1f} min  step {run.steps}  loss {shown:.3f}")


def main(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = 7_450_624,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 6,
    grow_from: Annotated[str, typer.Option(help="Folder of a shallower model to continue.")] = "",
    library_from: Annotated[
        float, typer.Option(help="Share of the tokens after which packages are left out.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the noise and the order of the data.")] = 0,
    package: Annotated[list[str] | None, typer.Option(help="Train on this package's source too.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    cache: Annotated[Path | None, typer.Option(help="Folder of tokens and checkpoint.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the trained weights.")] = MODEL_FOLDER,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint.")] = False,
) -> None:
    """Train the demo model. Example: python -m training.train --minutes 25"""
    from tokenizers import Tokenizer

    torch.set_num_threads(threads)
    cache = cache or default_cache()
    packages = tuple(package or ())
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    library = tokenise(collect(), tokenizer, cache).training
    mixture = tokenise(collect(packages), tokenizer, cache).training if packages else library
    run = Run(Recipe(tokens, layers, packages, library_from, grow_from, seed), library, mixture)
    if resume:
        run.load(cache / "checkpoint.pt")
    follow(run, cache / "checkpoint.pt")
    run.save(cache / "checkpoint.pt")
    out.mkdir(parents=True, exist_ok=True)
    run.parameters.save(out)
    figures = {
        "steps": run.steps,
        "tokens_seen": run.steps * run.recipe.step_tokens,
        "tokens_in_library": len(library),
        "tokens_in_mixture": len(mixture),
        "cpu_minutes": round(run.seconds / 60, 2),
    }
    print(json.dumps(figures, indent=2))


def command(function: Callable[..., None]) -> None:
    """Run `function` as a command line; bad input prints its one line and exits with code 2."""
    try:
        typer.run(function)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command(main)
