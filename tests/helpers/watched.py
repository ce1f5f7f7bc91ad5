"""A loop that trains nothing, for tests of what callbacks show: the test says how long steps and evaluations take."""

import io
import types
from typing import Any

import numpy as np

from resnet_jax.data import Arrays, ImageDataset
from resnet_jax.training.events import notify
from resnet_jax.training.loop import Loop
from resnet_jax.training.metrics import Sums


def make_loop(
    steps: int, epochs: int = 2, batch_size: int = 10, tested: int = 30, evaluated: int = 4, **changes: Any
) -> Loop:
    """Epochs of so many steps, and `tested` test images, which the evaluation resizes to `evaluated` pixels."""

    def arrays(count: int) -> Arrays:
        return Arrays(np.zeros((count, 4, 4, 1), np.uint8), np.zeros(count, np.int32))

    data = ImageDataset(arrays(steps * batch_size), None, arrays(tested), ("a", "b"), "made")
    program: Any = types.SimpleNamespace(input_shape=(evaluated, evaluated, 1))
    return Loop(program, data, [], epochs, batch_size, **{"steps_per_call": 1, **changes})


class Clock:
    """time.monotonic of a test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def play(loop: Loop, callbacks: list[Any], clock: Clock, step: float, evaluation: float, compiling: float = 50) -> None:
    """Call the events of a whole fit. The first call waits for the compiler, and no call waits for its own steps."""
    notify(callbacks, "on_fit_start", loop)
    clock.now += compiling
    loop.seconds += compiling
    while not loop.finished:
        waited = 0.0
        while loop.position < loop.steps:
            clock.now += waited
            loop.seconds += waited
            before = loop.position
            loop.position = min(before + loop.steps_per_call, loop.steps)
            waited = step * (loop.position - before)
            count = before * loop.batch_size
            loop.sums = Sums(loss=0.5 * count, correct=count // 2, count=count)
            notify(callbacks, "on_step_end", loop)
        clock.now += waited + evaluation
        row = {"epoch": loop.epoch, "train_seconds": loop.seconds + waited, "eval_seconds": evaluation}
        row |= {"train_loss": 0.5, "train_accuracy": 0.5, "test_loss": 0.4, "test_accuracy": 0.6}
        loop.history = [*loop.history, row | {"images_per_second": 7.0}]
        loop.sums, loop.seconds, loop.position = Sums(), 0.0, 0
        notify(callbacks, "on_epoch_end", loop)
    notify(callbacks, "on_fit_end", loop)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that a person sees in the end: a carriage return goes back, and later text covers earlier text."""
        lines = []
        for written in self.getvalue().split("\n"):
            line = ""
            for part in written.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines
