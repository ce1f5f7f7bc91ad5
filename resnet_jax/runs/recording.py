"""Callbacks that keep a run in its folder: resume, config.json, metrics.jsonl and checkpoints."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import numpy as jnp
from tqdm import tqdm

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.runs import hardware, rundir
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.config import Config
from resnet_jax.runs.override import describe
from resnet_jax.runs.stored import Meta, understood
from resnet_jax.training.loop import Loop
from resnet_jax.training.metrics import Row, Sums, check_finite
from resnet_jax.versions import version

PACKAGES = ("resnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Resume:
    """Start from the latest checkpoint, if there is one.

    check: raises for a checkpoint, given its meta, that this fit cannot continue.
    """

    def __init__(self, checkpoints: Checkpoints, check: Callable[[Meta, Loop], None] | None = None):
        self.checkpoints, self.check = checkpoints, check

    def on_fit_start(self, loop: Loop) -> None:
        """Restore state, history and the metrics of the epoch that has begun."""
        latest = self.checkpoints.latest()
        if latest is None:
            check_not_lost(self.checkpoints.run_dir)
            return
        meta = self.checkpoints.restore_meta(latest)
        with understood(self.checkpoints.path(latest), meta):
            history, sums, seconds = progress_of(meta)
            old_dtype = meta["dtype"]
        if self.check is not None:
            self.check(meta, loop)
        check_epochs(loop.epochs, history, sums)
        like = jax.eval_shape(loop.program.initial_state)  # shapes are enough: nothing is compiled
        loop.state = self.checkpoints.restore(latest, like, loop.program.seed)
        loop.history, loop.sums, loop.seconds = history, sums, seconds
        loop.position = latest - len(history) * loop.steps
        rest = "; nothing is left to do" if loop.finished else ""
        tqdm.write(f"resumed from step {latest}, after {len(history)} of {loop.epochs} epochs{rest}")
        dtype = dtype_of(loop.model)
        if old_dtype != dtype:
            tqdm.write(f"computing in {dtype}; until step {latest} the run computed in {old_dtype}")


def check_not_lost(run_dir: Path) -> None:
    """Raise CheckpointError if a run without checkpoints once had some: its metrics would be replaced.

    The third row is written after the first checkpoint is on disk. A run that was killed before may have two rows.
    """
    path = run_dir / rundir.METRICS_FILE
    rows = len(path.read_bytes().splitlines()) if path.is_file() else 0
    if rows > 2:
        raise CheckpointError(
            f"{run_dir}: {path.name} has {rows} epochs, and {rundir.CHECKPOINTS}/ has no checkpoint; put the "
            "checkpoints back, or start another run in another folder"
        )


class ConfigFile:
    """config.json. It is written after a resumed run is restored: a damaged checkpoint leaves the folder unchanged.

    It prints what --override changes.
    """

    def __init__(self, run_dir: Path, config: Config):
        self.run_dir, self.config = run_dir, config

    def on_fit_start(self, loop: Loop) -> None:
        """Write the config."""
        if self.config.run.override and (self.run_dir / rundir.CONFIG_FILE).is_file():
            tqdm.write(describe(rundir.read_config(self.run_dir), self.config))
        with rundir.kept_in(self.run_dir):
            rundir.write_config(self.run_dir, self.config, loop.step)


class MetricsFile:
    """metrics.jsonl: one row per epoch."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir

    def on_fit_start(self, loop: Loop) -> None:
        """Remove the rows after the checkpoint that the run resumes from."""
        self.on_epoch_end(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        """Write all rows."""
        for key, value in (loop.row if loop.history else {}).items():
            loop.row[key] = plain_number(key, value)
        with rundir.kept_in(self.run_dir):
            rundir.write_rows(self.run_dir, loop.history)


class Checkpointing:
    """A checkpoint at the end of each epoch, every `minutes` inside an epoch (0: never), and when the fit is stopped.

    about: what the checkpoint's meta holds beside the progress of the fit.
    """

    def __init__(self, checkpoints: Checkpoints, minutes: float, about: Callable[[Loop], Meta]):
        self.checkpoints, self.minutes, self.about = checkpoints, minutes, about
        self.saved_at = time.monotonic()

    def on_fit_start(self, loop: Loop) -> None:
        """Start the clock."""
        self.saved_at = time.monotonic()

    def on_step_end(self, loop: Loop) -> None:
        """Save inside an epoch if it is time, or if the fit stops here."""
        due = 0 < 60 * self.minutes < time.monotonic() - self.saved_at
        if loop.position < loop.steps and (due or loop.stopping is not None):
            loop.sums.settle()
            check_finite(loop.sums, loop.step)
            self._save(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        """Save, with the validation accuracy by which the best checkpoint is chosen."""
        self._save(loop, loop.row.get("validation_accuracy"))

    def _save(self, loop: Loop, validation_accuracy: float | None = None) -> None:
        meta = {
            "epoch": len(loop.history),
            "seed": loop.program.seed,
            "dtype": dtype_of(loop.model),
            "hardware": {
                "devices": hardware.describe(loop.devices, dtype_of(loop.model)),
                "cpu": hardware.cpu_model(),
            },
            "versions": {name: version(name) for name in PACKAGES},
            "history": loop.history,
            "sums": loop.sums.values(),
            "seconds": loop.seconds,
        }
        with rundir.kept_in(self.checkpoints.run_dir):
            self.checkpoints.save(loop.state, meta | self.about(loop), validation_accuracy)
        self.saved_at = time.monotonic()


def plain_number(key: str, value: Any) -> Any:
    """A value of a row that JSON can hold: an array of one number as that number. ConfigError for anything else."""
    value = value.item() if getattr(value, "shape", None) == () else value
    try:
        json.dumps(value)
    except TypeError:
        raise ConfigError(f"row: {key!r} is a {type(value).__name__}; a callback may add numbers and text") from None
    return value


def progress_of(meta: Meta) -> tuple[list[Row], Sums, float]:
    """The history, the sums and the seconds of a checkpoint's meta."""
    return meta["history"], Sums(**meta["sums"]), meta["seconds"]


def check_epochs(epochs: int, history: list[Row], sums: Sums) -> None:
    """Raise ConfigError if a run has begun more epochs than it is to have."""
    begun = len(history) + bool(sums.count)
    if begun > epochs:
        raise ConfigError(f"--epochs {epochs}: the run has begun epoch {begun}; give at least {begun}")


def dtype_of(model: Any) -> str:
    """The name of the dtype of a model's activations; float32 for a model without a field dtype."""
    return jnp.dtype(getattr(model, "dtype", None) or jnp.float32).name
