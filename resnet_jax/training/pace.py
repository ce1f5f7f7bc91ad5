"""How fast a fit runs, and how long the rest of it takes."""

import math
import statistics
from collections import deque

from resnet_jax.training.loop import EVALUATED, Loop
from resnet_jax.training.program import Size, size_in

WINDOW = 30.0  # seconds of training over which the speed is measured
FORWARD = 1 / 3  # of a train step: the backward pass takes twice as long as the forward pass


class Pace:
    """Call `step` after each call of the devices, as on_step_end does.

    calls: how many there were. When `step` hears of a call, the call before it has ended, since its metrics were read.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._size: Size | None = None
        self._seen: deque[tuple[float, int]] = deque()  # seconds of training, updates

    def step(self, loop: Loop) -> None:
        """Take the time of a call. The first one of each image size does not count: it includes compilation."""
        self.calls += 1
        seen, size = self._seen, loop.train_size
        if self.calls == 1 or size != self._size:
            self._size = size
            seen.clear()
            return
        seen.append((sum(row["train_seconds"] for row in loop.history) + loop.seconds, loop.step))
        while len(seen) > 2 and seen[-1][0] - seen[1][0] >= WINDOW:
            seen.popleft()

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a train step over the last half minute; None before the third call of an image size."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (now - began) / (last - first)

    def training_left(self, loop: Loop) -> float | None:
        """Seconds of the train steps that are left, with the call in progress. Time is proportional to pixels."""
        seconds = self.step_seconds
        if seconds is None:
            return None
        now = len(loop.history) + 1
        later = sum(relative_area(loop, epoch) for epoch in range(now + 1, loop.epochs + 1))
        return seconds * (loop.steps - loop.position + loop.steps_per_call + loop.steps * later)

    def left(self, loop: Loop) -> float | None:
        """Seconds until the fit ends, evaluations included. Early stopping ends it sooner, growth makes it slower."""
        training = self.training_left(loop)
        return None if training is None else training + (loop.epochs - len(loop.history)) * self._evaluation(loop)

    def _evaluation(self, loop: Loop) -> float:
        """Seconds of the evaluations of an epoch: the median of the last three, or an estimate before the first."""
        if loop.history:
            return statistics.median(row["eval_seconds"] for row in loop.history[-3:])
        parts = [getattr(loop.data, name) for name in EVALUATED]
        images = sum(len(part.labels) for part in parts if part is not None)
        return FORWARD * (self.step_seconds or 0.0) * relative_area(loop) * images / loop.batch_size


def relative_area(loop: Loop, epoch: int | None = None) -> float:
    """The pixels of a training image in an epoch, or of one in the evaluation, relative to the epoch in progress."""
    if not loop.sizes:
        return 1.0
    own = loop.program.input_shape[:2]
    size = None if epoch is None else size_in(loop.sizes, epoch)
    return math.prod(size or own) / math.prod(loop.train_size or own)
