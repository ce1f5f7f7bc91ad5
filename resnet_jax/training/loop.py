"""The loop: epochs of steps, an evaluation after each, and the events that callbacks hear of."""

import dataclasses
import time
from typing import Any

import numpy as np

from resnet_jax.data import Arrays, ImageDataset
from resnet_jax.training.events import notify, started
from resnet_jax.training.memory import enough_memory
from resnet_jax.training.metrics import Row, Sums, check_finite
from resnet_jax.training.parallel import Device, replicate, shard
from resnet_jax.training.program import Program, Size, Sizes, size_in
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Dataset, epoch_rows, eval_rows

EVALUATED = ("validation", "test")


@dataclasses.dataclass
class Loop:
    """A fit in progress, as callbacks see it.

    program: the model, its compiled steps and its initial state. data: the images on the host. epochs: to make in
    all. history: a row for each finished epoch. sums, seconds: the metrics and the duration so far of the epoch that
    has begun. position: its steps so far. stopping: why the fit is to end, or None. learning_rate: step -> rate.
    sizes: see Sizes in program.py.
    """

    program: Program
    data: ImageDataset
    devices: list[Device]
    epochs: int
    batch_size: int
    steps_per_call: int
    learning_rate: Any = None
    sizes: Sizes = ()
    history: list[Row] = dataclasses.field(default_factory=list)
    sums: Sums = dataclasses.field(default_factory=Sums)
    seconds: float = 0.0
    position: int = 0
    stopping: str | None = None
    _state: TrainState | None = None
    _parts: dict[str, Dataset] = dataclasses.field(default_factory=dict)

    @property
    def state(self) -> TrainState:
        """The state on the devices. Before the first step it is initialised when it is first read."""
        state = self._state
        if state is None:
            state = self._state = replicate(self.program.initial_state(), self.devices)
        return state

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state = replicate(state, self.devices)

    @property
    def model(self) -> Any:
        """The network that is being trained."""
        return self.program.model

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data.train.labels) // self.batch_size

    @property
    def step(self) -> int:
        """Updates made so far."""
        return len(self.history) * self.steps + self.position

    @property
    def epoch(self) -> int:
        """The epoch in progress, from 1; in on_epoch_end the one that has ended."""
        return len(self.history) + (1 if self.position else 0)

    @property
    def train_size(self) -> Size | None:
        """The size of the training images of the epoch in progress, or of the next one; None: that of evaluation."""
        size = size_in(self.sizes, len(self.history) + 1)
        return None if size is None or size == self.program.input_shape[:2] else size

    @property
    def row(self) -> Row:
        """The metrics of the epoch that has ended."""
        return self.history[-1]

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.history) >= self.epochs

    def stop(self, reason: str) -> None:
        """End the fit after the callbacks of this event."""
        self.stopping = self.stopping or reason

    def use(self, program: Program, state: TrainState) -> None:
        """Go on with another network and its state."""
        self.program, self.state = program, state

    def part(self, name: str) -> Dataset:
        """A part of the data on every device."""
        if name not in self._parts:
            arrays: Arrays = getattr(self.data, name)
            self._parts[name] = replicate(Dataset.of(*arrays, self.data.num_classes), self.devices)
        return self._parts[name]


def run(loop: Loop, callbacks: list[Any]) -> None:
    """Train until all epochs are done or a callback stops the fit. TrainingError if the memory does not suffice."""
    with enough_memory(), started(callbacks, loop):
        while not loop.finished and loop.stopping is None:
            train_epoch(loop, callbacks)
            if loop.position < loop.steps:  # stopped inside the epoch
                break
            finish_epoch(loop)
            notify(callbacks, "on_epoch_end", loop)


def train_epoch(loop: Loop, callbacks: list[Any]) -> None:
    """Make the steps that are left of the epoch in progress."""
    epoch, num_devices = len(loop.history), len(loop.devices)
    data, state = loop.part("train"), loop.state
    rows = epoch_rows(loop.program.seed, epoch, len(data.labels), loop.batch_size, num_devices)
    rows = shard(rows, loop.devices)
    began = time.monotonic() - loop.seconds
    while loop.position < loop.steps and loop.stopping is None:
        first = loop.position
        num_steps = min(loop.steps_per_call, loop.steps - first)
        state, metrics = loop.program.train_steps(num_steps, loop.train_size)(loop.state, data, rows, np.int32(first))
        loop._state = state
        loop.sums.push(metrics)
        loop.position = first + num_steps
        check_finite(loop.sums, loop.step - num_steps)  # the sums of the calls before this one
        loop.seconds = time.monotonic() - began
        notify(callbacks, "on_step_end", loop)
    loop.sums.settle()
    loop.seconds = time.monotonic() - began
    check_finite(loop.sums, loop.step)


def finish_epoch(loop: Loop) -> None:
    """Evaluate, and move the metrics of the epoch into a new row of the history."""
    began, sums, step = time.monotonic(), loop.sums, loop.step
    row: Row = {
        "epoch": len(loop.history) + 1,
        "step": step,
        "train_loss": sums.mean_loss,
        "train_accuracy": sums.accuracy,
    }
    for name in EVALUATED:
        if getattr(loop.data, name) is not None:
            part = evaluate(loop, name)
            check_finite(part, step)
            row |= {f"{name}_loss": part.mean_loss, f"{name}_accuracy": part.accuracy}
    if loop.learning_rate is not None:
        row["learning_rate"] = np.asarray(loop.learning_rate(step - 1)).item()
    row |= {
        "images_per_second": sums.count / loop.seconds,
        "train_seconds": loop.seconds,
        "eval_seconds": time.monotonic() - began,
    }
    loop.history = [*loop.history, row]
    loop.sums, loop.seconds, loop.position = Sums(), 0.0, 0


def evaluate(loop: Loop, name: str, mirror: bool = False) -> Sums:
    """The metrics of every image of a part, each counted once. mirror: average over each image and its mirror image."""
    return evaluated(loop.program, loop.state.variables, loop.part(name), loop.batch_size, loop.devices, mirror)


def evaluated(
    program: Program, variables: Any, data: Dataset, batch_size: int, devices: list[Device], mirror: bool = False
) -> Sums:
    """The metrics of every image of a data set on the devices, each counted once."""
    sums, step = Sums(), program.mirror_step if mirror else program.eval_step
    for rows in eval_rows(len(data.labels), batch_size, len(devices)):
        sums.push(step(variables, data, shard(rows, devices)))
    sums.settle()
    return sums
