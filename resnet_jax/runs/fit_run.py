"""fit: from a Config to a trained network in a run's folder; `python train.py` runs this."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from resnet_jax import ops
from resnet_jax.errors import CheckpointError
from resnet_jax.models import Arch, arch_from_dict, get_arch
from resnet_jax.models.summary import variable_shapes
from resnet_jax.ops.precision import without_x64
from resnet_jax.reporting.events_file import check_installed
from resnet_jax.reporting.tensorboard import TensorBoard
from resnet_jax.runs import build, folders, hardware, rundir
from resnet_jax.runs.checkpoint import Checkpoints, kept_checkpoints
from resnet_jax.runs.checks import check
from resnet_jax.runs.config import Config
from resnet_jax.runs.effects import check_made
from resnet_jax.runs.gathered import Own
from resnet_jax.runs.pretrained import read_pretrained
from resnet_jax.runs.recording import Checkpointing, ConfigFile, MetricsFile, Resume
from resnet_jax.runs.report import report_of_fit
from resnet_jax.runs.stopped import Stopped
from resnet_jax.runs.stored import Meta, understood
from resnet_jax.training.callbacks import Growth, StopSignals, check_needed_parts
from resnet_jax.training.display import EpochLines, Forecast, ProgressBar
from resnet_jax.training.loop import Loop, run
from resnet_jax.training.memory import check_images, check_size
from resnet_jax.training.parallel import AXIS, Device, pick_devices
from resnet_jax.training.trainer import Result, check_batch, result_of


@dataclasses.dataclass(frozen=True)
class RunResult(Result):
    """A Result, and the folder of the run."""

    run_dir: Path = Path()


@without_x64()
def fit(config: Config, *, callbacks: Sequence[Any] = ()) -> RunResult:
    """Train as the config says; `python train.py` calls this.

    Prints a line for each epoch, and keeps config.json, metrics.jsonl and checkpoints/ in the run's folder. At the end
    it writes report.html there; if that fails, a line says why, and the run has still succeeded. callbacks: your own,
    which run before those of the run (see resnet_jax.training.events). Raises a UserError, before anything is compiled
    or written, for an invalid config; Stopped after SIGINT or SIGTERM.
    """
    with ops.cpu_kernels(check(config).run.cpu_kernels):
        return _fit(config, callbacks)


def _fit(config: Config, callbacks: Sequence[Any]) -> RunResult:
    if config.run.tensorboard:
        check_installed("--tensorboard")
    place = rundir.choose(config)
    if not place.resumes:
        check_made(config)
    devices = pick_devices(config.run.devices)
    dtype = hardware.pick_dtype(config.run.precision, devices[0])
    own = build.load_data(config) if config.data.data_folder else None
    info = build.info_of(config.data, own) if own else build.named_info(config.data)
    check_batch(config.batch_size, info.num_train, len(devices), config.optim.accumulate)
    model = build.make_model(config, get_arch(config.arch), info, dtype)
    check_size(variable_shapes(model, info.image_shape[-1]), devices[0])  # also raises for options that do not fit
    pretrained = read_pretrained(config, model, info)
    dataset = own or build.load_data(config)
    check_images(dataset, devices[0])
    info = build.info_of(config.data, dataset)
    flips, stopping = build.flip_averaging(config), build.stopping(config)
    check_needed_parts([*flips, *stopping, *callbacks], dataset)
    cache = hardware.compile_cache(config.run.compile_cache)
    hold = rundir.hold(place.path, new=not place.resumes, named=place.named)
    with cache, hold as run_dir, kept_checkpoints(run_dir, continued(config, run_dir)) as checkpoints:
        arch, latest = latest_arch(config, checkpoints), checkpoints.latest()
        axis_name = AXIS if config.run.sync_batch_norm and len(devices) > 1 else None
        growth, signals = build.make_growth(config, arch, info, dtype, axis_name), StopSignals()
        trainer = build.make_trainer(config, info, devices)
        tqdm.write(f"{arch.name} on {hardware.describe(devices, dtype)}")
        report_unused(config, devices, steps=info.num_train // config.batch_size)
        model = build.make_model(config, arch, info, dtype)
        start = pretrained or build.whitened(config, trainer.preprocess, dataset.train) if latest is None else None
        loop = trainer.make_loop(model, dataset, start)
        announce_start(config, place, latest, pretrained)
        recording = recorders(config, info, checkpoints, run_dir, growth)
        shown = [signals, *stopping, ProgressBar(), Forecast(), EpochLines()]
        boards = [TensorBoard(run_dir / folders.TENSORBOARD)] if config.run.tensorboard else []
        run(loop, [*recording[:2], *flips, *callbacks, *shown, *boards, *recording[2:], growth])
    if signals.received is not None and not loop.finished:
        raise Stopped(signals.received, run_dir, loop.step)
    result = result_of(loop)
    if config.run.report:
        with hardware.compile_cache(config.run.compile_cache):
            report_of_fit(run_dir, Own(dataset))
    return RunResult(result.variables, result.history, result.state, result.stopped, run_dir)


def continued(config: Config, run_dir: Path) -> str:
    """How a run that has diverged is continued from its latest checkpoint."""
    return f"--resume --run-dir {run_dir} --override --learning-rate {config.optim.learning_rate / 10:g}"


def report_unused(config: Config, devices: list[Device], steps: int) -> None:
    """Print the options that have no effect on these devices, in epochs of so many steps."""
    kernels, platform = config.run.cpu_kernels, devices[0].platform
    if kernels != "auto" and platform != "cpu":
        tqdm.write(f"--cpu-kernels {kernels} has no effect on a {platform}")
    if not config.run.sync_batch_norm and len(devices) == 1:
        tqdm.write("--no-sync-batch-norm has no effect on one device")
    if config.optim.early_stopping >= config.epochs:
        tqdm.write(f"--early-stopping {config.optim.early_stopping} has no effect in {config.epochs} epochs")
    if config.optim.warmup_epochs and not round(config.optim.warmup_epochs * steps):
        tqdm.write(f"--warmup-epochs {config.optim.warmup_epochs} has no effect in epochs of {steps} steps")


def recorders(
    config: Config, info: build.DataInfo, checkpoints: Checkpoints, run_dir: Path, growth: Growth
) -> list[Any]:
    """The callbacks that keep the run: the first two before those of the user, the others after them."""

    def about(loop: Loop) -> Meta:
        held = {"arch": growth.arch, "config": config, "data": info}
        return {name: dataclasses.asdict(value) for name, value in held.items()}

    def same_pictures(meta: Meta, loop: Loop) -> None:
        old = meta.get("data", {}).get("digest", "")
        if old != info.digest:
            raise CheckpointError(
                f"{run_dir}: the pictures in --data-folder {config.data.data_folder} are not those that the run was "
                "trained on; give the same pictures, or start another run without --resume"
            )

    return [
        Resume(checkpoints, same_pictures),
        ConfigFile(run_dir, config),
        MetricsFile(run_dir),
        Checkpointing(checkpoints, config.run.checkpoint_minutes, about),
    ]


def announce_start(config: Config, place: rundir.Place, latest: int | None, pretrained: Any) -> None:
    """Print what a run without a checkpoint starts from."""
    if latest is not None:
        return
    if place.resumes:
        tqdm.write("the run has no checkpoint yet: it starts at step 0")
    elif config.run.resume:
        tqdm.write("--resume auto: there is no run to continue, so this one starts")
    if pretrained is not None:
        head = "" if "head" in pretrained["params"] else ", with a new head"
        tqdm.write(f"starting from the weights in {config.model.pretrained}{head}")


def latest_arch(config: Config, checkpoints: Checkpoints) -> Arch:
    """The network of the latest checkpoint, which may have grown; that of the table without a checkpoint."""
    latest = checkpoints.latest()
    if latest is None:
        return get_arch(config.arch)
    meta = checkpoints.restore_meta(latest)
    with understood(checkpoints.path(latest), meta):
        return arch_from_dict(meta["arch"])
