"""A training run: a recipe, the optimizers it drives, and the steps, which can be stopped and resumed.

A checkpoint holds everything the next step depends on.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ridgeline.errors import InputError
from ridgeline.models.model import Model, ModelConfig
from ridgeline.models.registry import build
from ridgeline.ops.batch import Span
from ridgeline.ops.reference import Reference
from training.data import batch_at
from training.parameters import Parameters

CHECKPOINT_SECONDS = 180
SMOOTHING = 0.98  # of the loss shown

#: What is minimised, in nats a token: of float32 logits [batch * length, vocab] and int64 tokens
#: [batch, length + 1], of which all but a row's first are predicted.
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """The schedule of a run. Rates are those at its top, shares are of its tokens."""

    tokens: int  # to train on
    packages: tuple[str, ...] = ()  # whose source is read beside the standard library
    library_from: float = 0.0  # share after which only the standard library is read
    seed: int = 0  # of the first weights' noise and the order of the data
    step_tokens: int = 2048
    matrix_rate: float = 1e-2  # Muon
    other_rate: float = 4e-3  # AdamW
    last_rate: float = 0.0  # share of the top rates that the run ends at
    warmup: float = 0.02  # share
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient
    short_length: int = 512
    long_from: float = 0.7  # share after which sequences have the model's full window

    def rate(self, progress: float) -> float:
        """Share of the top rate: rises over the warm-up, then falls to `last_rate` along a cosine."""
        if progress < self.warmup:
            return progress / self.warmup
        done = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        return self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))

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
    """The model that `config` describes, its optimizers, and how far its training has come.

    `library` and `mixture` are tokens [n]: the standard library, and that with the recipe's packages.
    The weights begin as noise, or as `start`, a checkpoint's tensors by name.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: ModelConfig,
        library: np.ndarray,
        mixture: np.ndarray,
        *,
        objective: Objective,
        start: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.recipe = recipe
        self.library = library
        self.mixture = mixture
        self.objective = objective
        self.parameters = Parameters(recipe.seed)
        self.model = build(config, self.parameters)
        if start is not None:
            self.parameters.load(start)
        self.optimizers = Optimizers(self.parameters, recipe)
        self.window = config.window
        self.steps = 0
        self.seconds = 0.0  # of CPU time, in steps

    @property
    def progress(self) -> float:
        """Share of the recipe's tokens that the run has seen."""
        return self.tokens / self.recipe.tokens

    @property
    def tokens(self) -> int:
        """Tokens that the run has seen."""
        return self.steps * self.recipe.step_tokens

    def step(self) -> float:
        """Train on the next batch; returns its loss in nats a token."""
        started = time.process_time()
        length = self.recipe.length(self.progress, self.window)
        source = self.library if self.progress >= self.recipe.library_from else self.mixture
        batch = batch_at(source, self.recipe.step_tokens // length, length, self.recipe.seed, self.steps)
        tokens = torch.from_numpy(batch)
        loss = self.objective(next_token_logits(self.model, tokens), tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.all(), self.recipe.clip)
        self.optimizers.step(self.recipe.rate(self.progress))
        self.steps += 1
        self.seconds += time.process_time() - started
        return loss.item()

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
        """Go on from a checkpoint. Raises InputError when it is of another recipe."""
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise InputError(f"{path} was made with {state['recipe']}: delete it to start again")
        self.parameters.load(state["tensors"])
        self.optimizers.load(state["optimizers"])
        self.steps, self.seconds = state["steps"], state["seconds"]


def next_token(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The objective of plain language modelling: mean cross-entropy of every next token."""
    return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


def next_token_logits(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """Float32 [batch * length, vocab] of int64 tokens [batch, length + 1], a sequence a row.

    Matrices are multiplied in bfloat16, everything else is computed in float32.
    """
    inputs, ops = tokens[:, :-1], Reference()
    batch, length = inputs.shape
    packed = ops.batch(inputs.flatten(), [Span(rows=length)] * batch, logits="all")
    with torch.autocast("cpu", torch.bfloat16):
        return model.forward(ops, packed).float()


def follow(run: Run, checkpoint: Path) -> None:
    """Train until the recipe's tokens are used, with a progress bar and a checkpoint every few minutes."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    figures = TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s")
    with Progress("training", BarColumn(), figures, TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=run.recipe.tokens, completed=run.tokens, loss=math.nan, rate=0.0)
        shown, saved_at = math.nan, run.seconds
        while run.progress < 1:
            before = run.seconds
            loss = run.step()
            shown = loss if math.isnan(shown) else SMOOTHING * shown + (1 - SMOOTHING) * loss
            rate = run.recipe.step_tokens / (run.seconds - before)
            bar.update(task, completed=run.tokens, loss=shown, rate=rate)
            if run.seconds - saved_at > CHECKPOINT_SECONDS:
                run.save(checkpoint)
                saved_at = run.seconds
                bar.console.print(f"{run.seconds / 60:5.1f} min  step {run.steps}  loss {shown:.3f}")
    run.save(checkpoint)
