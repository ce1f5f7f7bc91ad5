"""Callbacks that print: progress inside an epoch, a line for each epoch, and a forecast on slow machines."""

import sys
import time

from tqdm import tqdm

from resnet_jax.training.bars import Bar, PrintsAbove, bar_class, in_notebook
from resnet_jax.training.loop import Loop
from resnet_jax.training.metrics import Row
from resnet_jax.training.pace import Pace

FORECAST_CALLS = 5  # the forecast is measured over this many calls
LINES = 10  # of progress in an epoch, if they are not too frequent or too rare:
LEAST, MOST = 30.0, 300.0  # seconds between two lines


class ProgressBar:
    """The progress of the epoch, and the time left for the whole fit.

    In a terminal (if stderr is one) and in a notebook it is a bar. Elsewhere, as in a log file, it is a line on stdout
    every 30 s to 5 min, about ten in an epoch; an epoch below 30 s has none.
    """

    def __init__(self) -> None:
        self._bar: Bar = None
        self._prints: PrintsAbove | None = None
        self._pace, self._draws, self._said = Pace(), False, time.monotonic()

    def on_fit_start(self, loop: Loop) -> None:
        """Choose between a bar and lines."""
        self._draws = in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
        self._pace, self._said = Pace(), time.monotonic()

    def on_step_end(self, loop: Loop) -> None:
        """Advance the bar, or print a line if it is time for one."""
        self._pace.step(loop)
        if self._draws:
            self._draw(loop)
        elif self._pace.calls <= 2 + FORECAST_CALLS:  # before the forecast the speed is not known well
            self._said = time.monotonic()
        elif loop.position < loop.steps and time.monotonic() - self._said >= self._interval(loop):
            self._say(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        """The line of the epoch is as good as a line of progress."""
        self._said = time.monotonic()

    def on_fit_end(self, loop: Loop) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
        if self._prints is not None:
            self._prints.stop()
        self._bar = self._prints = None

    def _draw(self, loop: Loop) -> None:
        if self._bar is None:
            self._bar = self._new(loop)
            self._prints = None if in_notebook() else PrintsAbove(self._bar)
        bar, done = self._bar, loop.position * loop.batch_size
        *others, left = self._parts(loop)  # a narrow terminal cuts the end
        bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| " + ", ".join(filter(None, [left, *others]))
        bar.update(done - bar.n)
        if loop.position == loop.steps:
            self.on_fit_end(loop)

    def _new(self, loop: Loop) -> Bar:
        return bar_class()(
            total=loop.steps * loop.batch_size,
            initial=max(loop.position - loop.steps_per_call, 0) * loop.batch_size,
            desc=f"epoch {loop.epoch}/{loop.epochs}",
            bar_format="{desc}: {percentage:3.0f}%|{bar}|",
            leave=False,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def _interval(self, loop: Loop) -> float:
        """Seconds between two lines."""
        epoch = (self._pace.step_seconds or 0.0) * loop.steps
        return min(max(LEAST, epoch / LINES), MOST)

    def _say(self, loop: Loop) -> None:
        done, total = (steps * loop.batch_size for steps in (loop.position, loop.steps))
        text = ", ".join([f"{done:,} of {total:,} images", *filter(None, self._parts(loop))])
        tqdm.write(f"epoch {loop.epoch}/{loop.epochs}: {text}")
        sys.stdout.flush()  # a reader of a log file waits for this line
        self._said = time.monotonic()

    def _parts(self, loop: Loop) -> list[str]:
        """Loss and accuracy of the epoch so far, speed, and the time left; empty texts for what is not known yet."""
        sums, seconds, left = loop.sums, self._pace.step_seconds, self._pace.left(loop)
        return [
            f"loss {sums.mean_loss:.4f}, accuracy {sums.accuracy:.4f}" if sums.count else "",
            f"{loop.batch_size / seconds:,.0f} images/s" if seconds else "",
            f"{duration(left)} left" if left is not None else "",
        ]


class EpochLines:
    """A line for each epoch."""

    def on_epoch_end(self, loop: Loop) -> None:
        """Print the metrics of the epoch."""
        row = loop.row
        parts = [f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}"]
        for name in ("validation", "test"):
            if f"{name}_loss" in row:
                parts.append(self._part(name, row, len(getattr(loop.data, name).labels)))
            if f"{name}_flip_accuracy" in row:
                parts.append(f"with flip averaging {row[f'{name}_flip_accuracy']:.4f}")
        seconds = duration(row["train_seconds"] + row["eval_seconds"])
        tqdm.write(
            f"epoch {row['epoch']}/{loop.epochs}: {', '.join(parts)}, "
            f"{row['images_per_second']:,.0f} images/s, {seconds}"
        )

    def _part(self, name: str, row: Row, count: int) -> str:
        accuracy = row[f"{name}_accuracy"]
        return f"{name} loss {row[f'{name}_loss']:.4f} accuracy {accuracy:.4f} ({round(accuracy * count)} of {count})"


class Forecast:
    """Print when the first step is done and, on a CPU, how long the run will take."""

    def __init__(self) -> None:
        self._pace, self._began, self._told = Pace(), time.monotonic(), False

    def on_fit_start(self, loop: Loop) -> None:
        """Start the clock."""
        self._pace, self._began, self._told = Pace(), time.monotonic(), loop.devices[0].platform != "cpu"

    def on_step_end(self, loop: Loop) -> None:
        """Measure the first calls."""
        pace = self._pace
        if self._told and pace.calls >= 2:
            return
        pace.step(loop)
        if pace.calls == 2:
            tqdm.write(f"first step after {time.monotonic() - self._began:.1f} s, compilation included")
        step, left, size = pace.step_seconds, pace.training_left(loop), loop.train_size
        if pace.calls >= 2 + FORECAST_CALLS and not self._told and step is not None and left is not None:
            self._told = True
            at = f" at {size[0]}x{size[1]} pixels" if size else ""
            tqdm.write(
                f"no accelerator: on this CPU an epoch{at} takes about {duration(step * loop.steps)} "
                f"and the rest of the run {duration(left)}, without evaluation"
            )


def duration(seconds: float) -> str:
    """Seconds as people write them: 42 s, 7 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
