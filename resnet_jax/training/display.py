"""Callbacks that print: a progress bar, a line for each epoch, and a forecast on slow machines."""

import sys
import time

from tqdm import tqdm

from resnet_jax.training.loop import Loop
from resnet_jax.training.metrics import Row

FORECAST_CALLS = 5  # the forecast is measured over this many calls


class Bar(tqdm):
    """tqdm without its monitor thread, which was once seen to keep a process from ending."""

    monitor_interval = 0


class ProgressBar:
    """A bar of the epoch's images, on stderr."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def on_step_end(self, loop: Loop) -> None:
        """Advance the bar and show the means of the epoch so far."""
        if self._bar is None:
            self._bar = self._new(loop)
        bar, done = self._bar, loop.position * loop.batch_size
        if loop.sums.count:
            bar.set_postfix(loss=f"{loop.sums.mean_loss:.4f}", accuracy=f"{loop.sums.accuracy:.4f}", refresh=False)
        bar.update(done - bar.n)
        if loop.position == loop.steps:
            self.on_fit_end(loop)

    def _new(self, loop: Loop) -> Bar:
        return Bar(
            total=loop.steps * loop.batch_size,
            initial=max(loop.position - loop.steps_per_call, 0) * loop.batch_size,
            desc=f"epoch {loop.epoch}/{loop.epochs}",
            unit=" images",
            leave=False,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 60,  # a line a minute is enough in a log file
        )

    def on_fit_end(self, loop: Loop) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class EpochLines:
    """A line for each epoch."""

    def on_epoch_end(self, loop: Loop) -> None:
        """Print the metrics of the epoch."""
        row = loop.row
        parts = [f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}"]
        for name in ("validation", "test"):
            if f"{name}_loss" in row:
                parts.append(self._part(name, row, len(getattr(loop.data, name).labels)))
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
        self.calls, self.began = 0, time.monotonic()

    def on_fit_start(self, loop: Loop) -> None:
        """Start the clock."""
        self.calls, self.began = 0, time.monotonic()

    def on_step_end(self, loop: Loop) -> None:
        """Count a call. By then the call before it has ended, since its metrics have been read."""
        self.calls += 1
        if self.calls == 2:
            now = time.monotonic()
            tqdm.write(f"first step after {now - self.began:.1f} s, compilation included")
            self.began = now
        elif self.calls == 2 + FORECAST_CALLS and loop.devices[0].platform == "cpu":
            step = (time.monotonic() - self.began) / FORECAST_CALLS / loop.steps_per_call
            left = loop.epochs * loop.steps - loop.step + loop.steps_per_call
            tqdm.write(
                f"no accelerator: on this CPU an epoch takes about {duration(step * loop.steps)} "
                f"and the rest of the run {duration(step * left)}, without evaluation"
            )


def duration(seconds: float) -> str:
    """Seconds as people write them: 42 s, 7 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
