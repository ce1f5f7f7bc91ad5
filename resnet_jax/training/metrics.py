"""Sums of metrics on the host, and rows of them in a file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from resnet_jax.errors import TrainingError
from resnet_jax.training.step import Metrics
from resnet_jax.whole_file import whole_file

Row = dict[str, Any]


@dataclasses.dataclass
class Sums:
    """loss: the sum over images, in double precision; correct, count: numbers of images.

    What is pushed is added with the next push, so that the host waits for one call while the next one runs.
    """

    loss: float = 0.0
    correct: int = 0
    count: int = 0
    pending: Metrics | None = None

    def push(self, metrics: Metrics) -> None:
        """Add, but not yet, what a call of the devices sums."""
        self.settle()
        self.pending = metrics

    def settle(self) -> None:
        """Wait for what was pushed last, and add it."""
        if self.pending is not None:
            self.loss += float(self.pending.loss)
            self.correct += int(self.pending.correct)
            self.count += int(self.pending.count)
            self.pending = None

    def values(self) -> dict[str, float]:
        """What Sums(**values) takes to go on."""
        return {"loss": self.loss, "correct": self.correct, "count": self.count}

    @property
    def mean_loss(self) -> float:
        """Cross-entropy per image, in nats."""
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        """The share of images whose largest logit is the label's."""
        return self.correct / self.count


def check_finite(sums: Sums, step: int) -> None:
    """Raise TrainingError where the loss has overflowed: nothing that follows would mean anything."""
    if not abs(sums.loss) < float("inf"):
        raise diverged(f"the loss is {sums.loss} at or before step {step}")


def diverged(what: str) -> TrainingError:
    """The error of a run whose numbers have overflowed; the checkpoints before it are good."""
    hint = "start again with a lower --learning-rate, or with --warmup-epochs 1"
    return TrainingError(f"{what}: training has diverged; {hint}")


def write_rows(path: Path, rows: list[Row]) -> None:
    """Make the file hold these rows, a JSON object a line, all or none of them."""
    with whole_file(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
