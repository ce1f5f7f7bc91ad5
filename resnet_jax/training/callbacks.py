"""Callbacks that need no files: early stopping, flip averaging, no test part, growth and stop signals.

events.py has the protocol.
"""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import jax
from tqdm import tqdm

from resnet_jax.data import ImageDataset
from resnet_jax.errors import ConfigError, TrainingError
from resnet_jax.models import Arch
from resnet_jax.training.growth import grow_state
from resnet_jax.training.loop import Loop, evaluate
from resnet_jax.training.losses import cross_entropy, in_evaluation
from resnet_jax.training.metrics import check_finite
from resnet_jax.training.signals import can_handle


class EarlyStopping:
    """Stop when a metric of the rows has not improved for `patience` epochs.

    monitor: a key of the rows, validation_loss or validation_accuracy unless you have rows of your own. A key that ends
    in "loss" should fall, any other should rise. min_delta: the least change that counts as an improvement.
    The state is a function of the history alone, so that a resumed run stops where the undisturbed run stops.
    """

    def __init__(self, patience: int = 3, monitor: str = "validation_loss", min_delta: float = 0.0):
        if patience < 1:
            raise ConfigError(f"patience {patience} must be at least 1 epoch")
        if monitor.startswith("test_"):
            raise ConfigError(f"monitor {monitor!r}: the test set must not choose; use validation_loss or train_loss")
        self.patience, self.monitor, self.min_delta = patience, monitor, min_delta

    def on_fit_start(self, loop: Loop) -> None:
        """Stop at once if a resumed fit had been stopped."""
        self.check(loop.data)
        if loop.history and self.epochs_without_improvement(loop.history) >= self.patience:
            loop.stop(self._reason())

    def check(self, data: ImageDataset) -> None:
        """Raise ConfigError for a metric that no row will have."""
        if self.monitor.startswith("validation_") and data.validation is None:
            raise ConfigError(
                f"EarlyStopping(monitor={self.monitor!r}): the data has no validation part; "
                "hold one out with validation=0.1 (--validation 0.1)"
            )

    def on_epoch_end(self, loop: Loop) -> None:
        """Stop if the last `patience` rows are no better than the best before them."""
        if self.epochs_without_improvement(loop.history) >= self.patience:
            loop.stop(self._reason())

    def epochs_without_improvement(self, history: Sequence[dict[str, Any]]) -> int:
        """How many rows there are after the best one."""
        if self.monitor not in history[-1]:
            raise TrainingError(
                f"EarlyStopping: no row has {self.monitor!r}; monitor one of {', '.join(sorted(history[-1]))}"
            )
        sign = 1.0 if self.monitor.endswith("loss") else -1.0
        best, at = math.inf, 0
        for i, row in enumerate(history):
            value = sign * row.get(self.monitor, math.inf)
            if value < best - self.min_delta:
                best, at = value, i
        return len(history) - 1 - at

    def _reason(self) -> str:
        return f"{self.monitor} has not improved for {self.patience} epochs"


class FlipAveraging:
    """Evaluate a second time, with the probabilities of each image and its mirror image averaged.

    It evaluates the test part, or the validation part of data without one, after each epoch, and adds the keys
    test_flip_loss and test_flip_accuracy (or validation_flip_...) to the row. Nothing else reads them: the best
    checkpoint and early stopping still depend on the plain figures. The loss is the cross-entropy of the averaged
    probabilities. With a loss of your own the row gets the accuracy alone: such a loss takes logits, and averaged
    probabilities have none.
    """

    def on_fit_start(self, loop: Loop) -> None:
        """Check that there is a part to evaluate."""
        self.check(loop.data)

    def check(self, data: ImageDataset) -> None:
        """Raise ConfigError for data without a part to evaluate."""
        self._part(data)

    def on_epoch_end(self, loop: Loop) -> None:
        """Evaluate; the time counts as that of the evaluation."""
        began, name = time.monotonic(), self._part(loop.data)
        sums = evaluate(loop, name, mirror=True)
        check_finite(sums, loop.step)
        if in_evaluation(loop.program.loss) is cross_entropy:
            loop.row[f"{name}_flip_loss"] = sums.mean_loss
        loop.row[f"{name}_flip_accuracy"] = sums.accuracy
        loop.row["eval_seconds"] += time.monotonic() - began

    def _part(self, data: ImageDataset) -> str:
        for name in ("test", "validation"):
            if getattr(data, name) is not None:
                return name
        raise ConfigError("flip averaging (--flip-averaging): the data has neither a test nor a validation part")


class WithoutTest:
    """Leave the test part out of all evaluations, so that nothing is chosen by it."""

    def on_fit_start(self, loop: Loop) -> None:
        """Take the test part out of the data."""
        self.check(loop.data)
        loop.data = dataclasses.replace(loop.data, test=None)

    def check(self, data: ImageDataset) -> None:
        """Raise ConfigError for data without a validation part: no row would have an accuracy to choose by."""
        if data.validation is None:
            raise ConfigError("--no-test: the data has no validation part; add --validation 0.1")


def check_needed_parts(callbacks: Sequence[Any], data: ImageDataset) -> None:
    """Raise ConfigError, before anything is written, for a callback that needs a part which the data does not have."""
    for callback in callbacks:
        if isinstance(callback, EarlyStopping | FlipAveraging | WithoutTest):
            callback.check(data)


class Growth:
    """Insert blocks as epochs begin.

    arch: the network at the start. growths: (epoch, stage) of each block, both from 1. make_model: the module of an
    Arch. The new blocks start as the identity, so that the network goes on computing the same function.
    """

    def __init__(self, arch: Arch, growths: Sequence[tuple[int, int]], make_model: Any):
        self.arch, self.growths, self.make_model = arch, growths, make_model

    def on_fit_start(self, loop: Loop) -> None:
        """A run that is resumed at the start of an epoch grows as that epoch begins."""
        self._grow(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        """Grow as the next epoch begins."""
        self._grow(loop)

    def _grow(self, loop: Loop) -> None:
        begins = len(loop.history) + 1
        stages = [stage for epoch, stage in self.growths if epoch == begins]
        resumed_inside = loop.position > 0  # then the network of the checkpoint has grown already
        if not stages or resumed_inside or loop.finished or loop.stopping:
            return
        state = loop.state
        for stage in stages:
            self.arch, state = grow_state(self.arch, state, stage)
            parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            tqdm.write(
                f"epoch {begins} starts with a new block {self.arch.stages[stage - 1][0]} in stage {stage}: "
                f"{self.arch.name}, {parameters:,} parameters"
            )
        program = loop.program.with_model(self.make_model(self.arch))
        loop.use(program, state.replace(model=program.model))


class StopSignals:
    """SIGINT and SIGTERM stop the fit after the current step; a second one stops the process at once.

    received: the number of the signal, or None. The callbacks after this one, such as the one that writes checkpoints,
    still hear of the event.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_fit_start(self, loop: Loop) -> None:
        """Set the handlers."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            if can_handle(signum):
                self._before[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, self._before[signum])
        os.write(2, b"stopping after this step; a second signal stops at once\n")  # a print may have been interrupted

    def on_step_end(self, loop: Loop) -> None:
        """Stop inside the epoch; after its last step the evaluation is made first."""
        if self.received is not None and loop.position < loop.steps:
            loop.stop(f"signal {self.received}")

    def on_epoch_end(self, loop: Loop) -> None:
        """Stop between epochs."""
        if self.received is not None and not loop.finished:
            loop.stop(f"signal {self.received}")

    def on_fit_end(self, loop: Loop) -> None:
        """Put the handlers back that were there before."""
        for signum, before in self._before.items():
            signal.signal(signum, before)
        self._before = {}
