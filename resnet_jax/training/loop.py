"""fit: from a config to a trained network, as a list of named calls."""

import contextlib
import dataclasses
import importlib.metadata
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import optax
from jax import numpy as jnp
from tqdm import tqdm

from resnet_jax import data, ops
from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch, ResNet, arch_from_dict, create_model, get_arch
from resnet_jax.models.layers import Dtype
from resnet_jax.training import hardware, rundir
from resnet_jax.training.checkpoint import Checkpoints, damage
from resnet_jax.training.config import Config, check, growths
from resnet_jax.training.growth import grow_state
from resnet_jax.training.metrics import Row, Sums, check_finite, write_rows
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.pretrained import read_pretrained, start_from
from resnet_jax.training.state import Device, PyTree, TrainState, create_state
from resnet_jax.training.step import (
    AXIS,
    Dataset,
    epoch_rows,
    eval_rows,
    make_eval_step,
    make_train_steps,
    replicate,
    shard,
)

PACKAGES = ("resnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FORECAST_CALLS = 5  # what a forecast is measured on


@dataclasses.dataclass(frozen=True)
class Result:
    """run_dir: the run's folder; history: a row an epoch; test_accuracy: that of the last epoch, not of the best."""

    run_dir: Path
    history: list[Row]

    @property
    def test_accuracy(self) -> float:
        return self.history[-1]["test_accuracy"]


class Stopped(Exception):
    """A signal has stopped the run, and its checkpoint is written. signum: the signal's number."""

    def __init__(self, signum: int, run_dir: Path, step: int):
        super().__init__(f"stopped at step {step}; go on with --resume --run-dir {run_dir}")
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What does not change during a run, unless its network grows.

    train, test: on every device; steps: of an epoch; per_call: of a dispatch.
    """

    config: Config
    arch: Arch
    devices: list[Device]
    model: ResNet
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    train: Dataset
    test: Dataset
    steps: int
    per_call: int
    train_steps: Callable[[int], Callable]
    eval_step: Callable


@dataclasses.dataclass
class Progress:
    """What changes beside the state. history: a row for each epoch done; sums, seconds: of the one begun."""

    history: list[Row]
    sums: Sums
    seconds: float

    @classmethod
    def of(cls, meta: dict[str, Any]) -> "Progress":
        """That of a checkpoint."""
        return cls(meta["history"], Sums(**meta["sums"]), meta["seconds"])

    @property
    def begun(self) -> int:
        """How many epochs have begun."""
        return len(self.history) + bool(self.sums.count)


def fit(config: Config) -> Result:
    """Train as config says and return what came of it; this is what `python train.py` runs.

    Prints a line an epoch, and keeps config.json, metrics.jsonl and checkpoints/ in the run's folder. Raises a
    UserError, before anything is compiled or written, where the config cannot be; Stopped after SIGINT or SIGTERM.
    """
    with ops.cpu_kernels(check(config).run.cpu_kernels):
        return _fit(config)


def _fit(config: Config) -> Result:
    devices = hardware.pick_devices(config.run.devices)
    check_batch(config, len(devices))
    model = make_model(config, get_arch(config.arch), hardware.pick_dtype(config.run.precision, devices[0]))
    pretrained = read_pretrained(config, model, data.DATASETS[config.data.dataset].image_shape[-1])
    run_dir = rundir.choose(config)
    splits = data.load(
        config.data.dataset, config.data.data_dir or None, config.data.source_dir or None, log=tqdm.write
    )
    if config.run.compile_cache:
        hardware.use_compile_cache()
    hold, kept = rundir.hold(run_dir), rundir.kept_in(run_dir)
    with hold, kept, Checkpoints(run_dir) as checkpoints, stop_signals() as signals:
        if not config.run.resume:
            rundir.write_config(run_dir, config)
        trainer = make_trainer(config, latest_arch(config, checkpoints), devices, splits)
        state, progress = start(trainer, checkpoints, pretrained)
        rundir.write_config(run_dir, config)  # on resuming not before: a damaged checkpoint leaves the folder as it was
        saver = Saver(trainer, checkpoints, run_dir, signals)
        saver.write_history(progress)
        forecast = Forecast(trainer)
        for epoch in range(len(progress.history), config.epochs):
            trainer, state = grow(trainer, state, epoch)
            saver.trainer = trainer  # a checkpoint names the network
            state = train_epoch(trainer, state, epoch, progress, saver, forecast)
            progress = finish_epoch(trainer, state, progress)
            saver.end_of_epoch(state, progress)
    return Result(run_dir, progress.history)


def check_batch(config: Config, num_devices: int) -> None:
    """Raise ConfigError where the batch cannot be taken from the images or split over the devices."""
    batch, images = config.batch_size, num_train(config)
    if batch > images:
        raise ConfigError(f"--batch-size {batch} is more than the {images} training images; use at most {images}")
    if batch % num_devices:
        below, above = batch // num_devices * num_devices, -(-batch // num_devices) * num_devices
        nearest = f"{below} or {above}" if below else str(above)
        fitting = max(n for n in range(1, num_devices) if batch % n == 0)
        raise ConfigError(
            f"--batch-size {batch} cannot be split over {num_devices} devices; use {nearest}, or --devices {fitting}"
        )


def num_train(config: Config) -> int:
    """How many images the run trains on."""
    return config.data.train_images or data.DATASETS[config.data.dataset].num_train


def make_model(config: Config, arch: Arch, dtype: Dtype, axis_name: str | None = None) -> ResNet:
    """The network of a run. axis_name: where batch statistics are taken over devices, which inference never does."""
    return create_model(
        arch,
        data.DATASETS[config.data.dataset].num_classes,
        stem=config.stem_form,
        width=config.model.width,
        zero_init=config.model.zero_init,
        squeeze_excitation=config.model.squeeze_excitation,
        stochastic_depth=config.model.stochastic_depth,
        remat=config.model.remat,
        dtype=dtype,
        axis_name=axis_name,
    )


def make_preprocess(config: Config) -> Preprocess:
    """What a run does to its images."""
    spec = data.DATASETS[config.data.dataset]
    mean_std = spec.mean_std if config.data.normalize else None
    return Preprocess(config.image_size, mean_std, config.data.flip, config.data.crop_padding)


def latest_arch(config: Config, checkpoints: Checkpoints) -> Arch:
    """The network of the latest checkpoint, which may have grown; the table's if there is none."""
    latest = checkpoints.latest()
    if latest is None:
        return get_arch(config.arch)
    meta = checkpoints.restore_meta(latest)
    with damage(checkpoints.folder / str(latest)):
        return arch_from_dict(meta["arch"])


def make_network(
    config: Config, arch: Arch, optimizer: optax.GradientTransformation, devices: list[Device]
) -> dict[str, Any]:
    """Of a Trainer, what hangs on the network: model, train_steps, eval_step."""
    axis_name = AXIS if config.run.sync_batch_norm and len(devices) > 1 else None
    model = make_model(config, arch, hardware.pick_dtype(config.run.precision, devices[0]), axis_name)
    preprocess = make_preprocess(config)
    return {
        "model": model,
        "train_steps": make_train_steps(model, optimizer, preprocess, config.seed, devices, config.model.freeze),
        "eval_step": make_eval_step(model, preprocess, devices),
    }


def make_trainer(config: Config, arch: Arch, devices: list[Device], splits: data.Splits) -> Trainer:
    """The model, the optimizer and the steps of a run, and its data on the devices."""
    steps = num_train(config) // config.batch_size
    schedule = make_schedule(config.optim, config.epochs, steps)
    optimizer = make_optimizer(config.optim, schedule)
    network = make_network(config, arch, optimizer, devices)
    tqdm.write(f"{arch.name} on {hardware.describe(devices, network['model'].dtype)}")
    num_test = config.data.test_images or len(splits.test.labels)
    return Trainer(
        config=config,
        arch=arch,
        devices=devices,
        schedule=schedule,
        optimizer=optimizer,
        train=replicate(Dataset(*(x[: num_train(config)] for x in splits.train)), devices),
        test=replicate(Dataset(*(x[:num_test] for x in splits.test)), devices),
        steps=steps,
        per_call=hardware.pick_steps_per_dispatch(config.run.steps_per_dispatch, devices[0]),
        **network,
    )


def initial_state(config: Config, model: ResNet, optimizer: optax.GradientTransformation) -> Callable[[], TrainState]:
    """What gives a run's state of step 0."""
    channels = data.DATASETS[config.data.dataset].image_shape[-1]
    image_shape = (config.image_size, config.image_size, channels)
    return partial(create_state, model, optimizer, config.seed, image_shape, config.model.freeze)


def start(trainer: Trainer, checkpoints: Checkpoints, pretrained: PyTree | None) -> tuple[TrainState, Progress]:
    """The state, on the devices, and the progress of the latest checkpoint; those of step 0 if there is none."""
    config = trainer.config
    init = initial_state(config, trainer.model, trainer.optimizer)
    latest = checkpoints.latest()
    if latest is None:
        if config.run.resume:
            tqdm.write("the run has no checkpoint yet: it starts at step 0")
        state = init()
        if pretrained is not None:
            state = start_from(state, pretrained)
            head = "" if "head" in pretrained["params"] else ", with a new head"
            tqdm.write(f"starting from the weights in {config.model.pretrained}{head}")
        return replicate(state, trainer.devices), Progress([], Sums(), 0.0)
    state = checkpoints.restore(latest, jax.eval_shape(init))  # shapes are enough: nothing is compiled
    with damage(checkpoints.folder / str(latest)):
        meta = checkpoints.restore_meta(latest)
        progress, old_dtype = Progress.of(meta), meta["dtype"]
    check_epochs(config, progress)
    done = len(progress.history)
    rest = "; nothing is left to do" if done == config.epochs else ""
    tqdm.write(f"resumed from step {latest}, after {done} of {config.epochs} epochs{rest}")
    dtype = jnp.dtype(trainer.model.dtype).name
    if old_dtype != dtype:
        tqdm.write(f"computing in {dtype}; until step {latest} the run computed in {old_dtype}")
    return replicate(state, trainer.devices), progress


def check_epochs(config: Config, progress: Progress) -> None:
    """Raise ConfigError where a run has more epochs behind it, or begun, than it is to have."""
    if progress.begun > config.epochs:
        raise ConfigError(
            f"--epochs {config.epochs}: the run has begun epoch {progress.begun}; give at least {progress.begun}"
        )


def grow(trainer: Trainer, state: TrainState, epoch: int) -> tuple[Trainer, TrainState]:
    """Trainer and state as an epoch (from 0) begins with them: with the blocks that --grow adds there."""
    config = trainer.config
    stages = [stage for begins, stage in growths(config.model.grow) if begins == epoch + 1]
    if not stages or int(state.step) > epoch * trainer.steps:  # resumed inside the epoch: grown before
        return trainer, state
    arch = trainer.arch
    for stage in stages:
        arch, state = grow_state(arch, state, trainer.optimizer, config.seed, stage)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        tqdm.write(
            f"epoch {epoch + 1} begins with block {arch.stages[stage - 1][0]} of stage {stage}, a new one: "
            f"{arch.name}, {parameters:,} parameters"
        )
    network = make_network(config, arch, trainer.optimizer, trainer.devices)
    return dataclasses.replace(trainer, arch=arch, **network), replicate(state, trainer.devices)


def train_epoch(
    trainer: Trainer, state: TrainState, epoch: int, progress: Progress, saver: "Saver", forecast: "Forecast"
) -> TrainState:
    """Make the steps of an epoch (from 0) that are left, adding up progress; the state after them."""
    config = trainer.config
    rows = epoch_rows(config.seed, epoch, num_train(config), config.batch_size, len(trainer.devices))
    rows = shard(rows, trainer.devices)
    first = int(state.step) - epoch * trainer.steps
    began = time.monotonic() - progress.seconds
    with progress_bar(trainer, epoch, first) as bar:
        for position in range(first, trainer.steps, trainer.per_call):
            num_steps = min(trainer.per_call, trainer.steps - position)
            state, metrics = trainer.train_steps(num_steps)(state, trainer.train, rows, np.int32(position))
            progress.sums.push(metrics)
            check_finite(progress.sums, epoch * trainer.steps + position)  # of the calls before this one
            progress.seconds = time.monotonic() - began
            show(bar, num_steps * config.batch_size, progress.sums)
            forecast.after_call(steps_left=config.epochs * trainer.steps - epoch * trainer.steps - position)
            if position + num_steps < trainer.steps:
                saver.inside_epoch(state, progress)
        progress.sums.settle()
    progress.seconds = time.monotonic() - began
    check_finite(progress.sums, int(state.step))
    return state


def finish_epoch(trainer: Trainer, state: TrainState, progress: Progress) -> Progress:
    """Evaluate, print the epoch's line and add its row."""
    began = time.monotonic()
    test = evaluate(trainer, state)
    sums, epoch, step = progress.sums, len(progress.history) + 1, int(state.step)
    check_finite(test, step)
    row = {
        "epoch": epoch,
        "step": step,
        "train_loss": sums.mean_loss,
        "train_accuracy": sums.accuracy,
        "test_loss": test.mean_loss,
        "test_accuracy": test.accuracy,
        "learning_rate": np.asarray(trainer.schedule(step - 1)).item(),
        "images_per_second": sums.count / progress.seconds,
        "train_seconds": progress.seconds,
        "eval_seconds": time.monotonic() - began,
    }
    tqdm.write(
        f"epoch {epoch}/{trainer.config.epochs}: train loss {sums.mean_loss:.4f} accuracy {sums.accuracy:.4f}, "
        f"test loss {test.mean_loss:.4f} accuracy {test.accuracy:.4f} ({test.correct} of {test.count}), "
        f"{row['images_per_second']:,.0f} images/s, {duration(progress.seconds + row['eval_seconds'])}"
    )
    return Progress([*progress.history, row], Sums(), 0.0)


def evaluate(trainer: Trainer, state: TrainState) -> Sums:
    """The metrics of every test image, each counted once."""
    sums = Sums()
    for rows in eval_rows(len(trainer.test.labels), trainer.config.batch_size, len(trainer.devices)):
        rows = shard(rows, trainer.devices)
        sums.push(trainer.eval_step(state.params, state.batch_stats, trainer.test, rows))
    sums.settle()
    return sums


class Saver:
    """When and what a run keeps: a checkpoint at the end of each epoch, every so many minutes and at a signal."""

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints, run_dir: Path, signals: "Signals"):
        self.trainer, self.checkpoints, self.run_dir, self.signals = trainer, checkpoints, run_dir, signals
        self.saved_at = time.monotonic()

    def inside_epoch(self, state: TrainState, progress: Progress) -> None:
        """Save if it is time to, or stop here if a signal asks."""
        seconds = 60 * self.trainer.config.run.checkpoint_minutes
        due = seconds > 0 and time.monotonic() - self.saved_at > seconds
        if due or self.signals.received is not None:
            progress.sums.settle()
            check_finite(progress.sums, int(state.step))
            self._save(state, progress)

    def end_of_epoch(self, state: TrainState, progress: Progress) -> None:
        """Save, with the test accuracy that makes it the best or not."""
        self.write_history(progress)
        self._save(state, progress, progress.history[-1]["test_accuracy"])

    def write_history(self, progress: Progress) -> None:
        """Make metrics.jsonl agree with the state: rows after the checkpoint resumed from go."""
        write_rows(self.run_dir / "metrics.jsonl", progress.history)

    def _save(self, state: TrainState, progress: Progress, test_accuracy: float | None = None) -> None:
        config = self.trainer.config
        meta = {
            "epoch": len(progress.history),
            "seed": config.seed,
            "arch": dataclasses.asdict(self.trainer.arch),
            "config": dataclasses.asdict(config),
            "dtype": jnp.dtype(self.trainer.model.dtype).name,  # what --precision auto became
            "versions": {name: version(name) for name in PACKAGES},
            "history": progress.history,
            "sums": progress.sums.values(),
            "seconds": progress.seconds,
        }
        self.checkpoints.save(state, meta, test_accuracy)
        self.saved_at = time.monotonic()
        if self.signals.received is not None and len(progress.history) < config.epochs:
            raise Stopped(self.signals.received, self.run_dir, int(state.step))


class Forecast:
    """Tells when the first step is done, and on a CPU, some steps later, how long the run will take there."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.calls, self.began = 0, time.monotonic()

    def after_call(self, steps_left: int) -> None:
        """Count a call of the devices; what is known by then is about the call before it."""
        self.calls += 1
        if self.calls == 2:
            now = time.monotonic()
            tqdm.write(f"first step after {now - self.began:.1f} s, compilation included")
            self.began = now
        elif self.calls == 2 + FORECAST_CALLS and self.trainer.devices[0].platform == "cpu":
            step = (time.monotonic() - self.began) / FORECAST_CALLS / self.trainer.per_call
            tqdm.write(
                f"no accelerator: on this CPU an epoch takes about {duration(step * self.trainer.steps)} "
                f"and the rest of the run {duration(step * steps_left)}, evaluation not counted"
            )


class Bar(tqdm):
    """tqdm without its monitor thread, for which a process that ended was once seen to wait for ever."""

    monitor_interval = 0


def progress_bar(trainer: Trainer, epoch: int, first: int) -> tqdm:
    """A bar of the epoch's images, on stderr."""
    batch = trainer.config.batch_size
    return Bar(
        total=trainer.steps * batch,
        initial=first * batch,
        desc=f"epoch {epoch + 1}/{trainer.config.epochs}",
        unit=" images",
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 60,  # a log file needs no more than a line a minute
    )


def show(bar: tqdm, images: int, sums: Sums) -> None:
    """Move the bar on, with the means of the epoch so far."""
    if sums.count:
        bar.set_postfix(loss=f"{sums.mean_loss:.4f}", accuracy=f"{sums.accuracy:.4f}", refresh=False)
    bar.update(images)


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # resnet_jax itself, run from a checkout


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 7 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Signals:
    """received: the number of the signal that asks the run to stop, or None."""

    received: int | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[Signals]:
    """SIGINT and SIGTERM let the step and its checkpoint be finished; a second one stops at once."""
    signals = Signals()
    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def receive(signum: int, frame: FrameType | None) -> None:
        signals.received = signum
        signal.signal(signum, before[signum])
        os.write(2, b"stopping after this step; once more stops at once\n")  # a print may be what was interrupted

    with handled(receive, *before):
        yield signals


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *signums: int) -> Iterator[None]:
    """Signals go to a handler, where one can be set and they are not ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # nowhere else can handlers be set
        for signum in signums:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # nohup ignores, and C code has its own
                before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
