"""Distillation: a small model learns what a larger one expects next, not only what came next.

A proposal is accepted where the two models choose alike, so the draft is trained on the target's
distribution (Hinton et al. 2015, arXiv:1503.02531; for drafts, Zhou et al. 2023, arXiv:2310.08461).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from ridgeline.models.model import Model
from ridgeline.models.registry import load_config
from ridgeline.weights.load import load_model
from training.run import next_token_logits


@dataclass(frozen=True)
class Distillation:
    """The objective: cross-entropy to (1 - truth) p_teacher + truth [the token that came].

    But for the teacher's own entropy, which no gradient sees, that is (1 - truth) of the divergence
    KL(teacher, student) and `truth` of plain next-token cross-entropy.
    """

    teacher: Model
    truth: float

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, self.expected(tokens))

    @torch.no_grad()
    def expected(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the student is to predict: probabilities [batch * length, vocab], float32."""
        expected = next_token_logits(self.teacher, tokens).softmax(-1).mul_(1 - self.truth)
        came = tokens[:, 1:].reshape(-1, 1)
        return expected.scatter_add_(-1, came, torch.full_like(came, self.truth, dtype=expected.dtype))


def distillation_from(folder: Path, truth: float) -> Distillation:
    """The objective whose teacher is the model in `folder`."""
    return Distillation(load_model(load_config(folder), folder, "fp32"), truth)
