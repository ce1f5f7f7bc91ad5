"""Sums of metrics on the host."""

import dataclasses
from typing import Any

from resnet_jax.errors import TrainingError
from resnet_jax.training.step import Metrics

Row = dict[str, Any]


@dataclasses.dataclass
class Sums:
    """loss: the sum over images, in double precision; correct, count: numbers of images.

    `push` keeps the metrics of a call until the next push adds them. So the host waits for one call while the next
    one runs.
    """

    loss: float = 0.0
    correct: int = 0
    count: int = 0
    pending: Metrics | None = None

    def push(self, metrics: Metrics) -> None:
        """Take the metrics of a call, which the next push or settle adds."""
        self.settle()
        self.pending = metrics

    def settle(self) -> None:
        """Wait for the metrics that were pushed last, and add them."""
        if self.pending is not None:
            self.loss += float(self.pending.loss)
            self.correct += int(self.pending.correct)
            self.count += int(self.pending.count)
            self.pending = None

    def values(self) -> dict[str, float]:
        """The arguments that make the same Sums again."""
        return {"loss": self.loss, "correct": self.correct, "count": self.count}

    @property
    def mean_loss(self) -> float:
        """The mean loss of an image."""
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        """The share of images whose largest logit is the label's."""
        return self.correct / self.count


class Diverged(TrainingError):
    """The loss or a weight is infinite or NaN; earlier checkpoints are good."""


def check_finite(sums: Sums, step: int) -> None:
    """Raise Diverged if the loss is infinite or NaN: the steps after it would be meaningless."""
    if not abs(sums.loss) < float("inf"):
        raise diverged(f"the loss is {sums.loss} at or before step {step}")


def diverged(what: str) -> Diverged:
    """The error for numbers that are infinite or NaN. what: which numbers."""
    hint = "start again with a lower learning rate (--learning-rate), or with a warm-up (--warmup-epochs 1)"
    return Diverged(f"{what}: training has diverged; {hint}")
