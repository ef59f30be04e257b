"""What only training computes, counted: dropout is a part of :class:`Count`'s operators, the loss is here."""

from __future__ import annotations

from ridgeline.ops.count import Count
from ridgeline.ops.kernel import Flops, Kernel, Role, Value, whole
from ridgeline.ops.trace import LSE

#: Vector operations a logit: maximum, subtraction, sum.
LOSS_COST = 3


class TrainingCount(Count):
    """The count of a pass that ends in a loss."""

    def cross_entropy(self, logits: Value) -> Value:
        """The loss of each row of ``logits`` [rows, vocab] against its target, in one pass over them; the
        backward pass needs the logits and each row's log-sum-exp, and writes their gradient."""
        rows = logits.shape[0]
        targets = self.input("targets", (rows,))
        loss = self.value("loss", (rows,), "fp32", Role.ACTIVATION, logits.needs_grad)
        lse = self.value(LSE, (rows,), "fp32", Role.ACTIVATION)
        work = Flops(vector=LOSS_COST * logits.elements, exp=logits.elements)
        reads, writes = (whole(logits), whole(targets)), (whole(loss), whole(lse))
        self.emit("loss", "loss", Kernel("loss", reads, writes, work, logits.format, rows))
        return loss
