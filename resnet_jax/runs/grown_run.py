"""A new run that continues another one with a deeper network; `python -m resnet_jax grow` calls this."""

import atexit
import contextlib
import dataclasses
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch, arch_from_dict
from resnet_jax.models.growth import check_place
from resnet_jax.models.registry import check_blocks_of
from resnet_jax.ops.precision import without_x64
from resnet_jax.paths import check_readable, user_path
from resnet_jax.runs import rundir
from resnet_jax.runs.build import DataInfo, info_of_meta, make_model, make_schedule, make_trainer
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.checks import check
from resnet_jax.runs.config import TO_THE_END, Config, from_dict
from resnet_jax.runs.folders import readable
from resnet_jax.runs.recording import check_epochs, progress_of
from resnet_jax.runs.stored import understood
from resnet_jax.training.growth import grow_state
from resnet_jax.training.metrics import Row, Sums
from resnet_jax.training.parallel import local_devices, pick_devices


@dataclasses.dataclass(frozen=True)
class GrownRun:
    """arch, config: of the new run; step, epochs: done so far.

    rates: the learning rate at the next step, in the old run and in the new one.
    """

    arch: Arch
    config: Config
    step: int
    epochs: int
    rates: tuple[float, float]


@without_x64()
def grow_run(
    run_dir: str | Path,
    out: str | Path,
    stage: int,
    blocks: int = 1,
    position: int | None = None,
    epochs: int | None = None,
) -> GrownRun:
    """Make the folder `out` from a run's latest checkpoint, with more blocks in a stage.

    --resume continues it: weights, optimizer state and rows are those of the old run. epochs: of the new run in all;
    None keeps the old run's. A schedule that ends at the last step is stretched to them. The folder is written as a
    whole or not at all.
    Raises ConfigError or CheckpointError for invalid arguments and folders.
    """
    out, run_dir = rundir.check_out(user_path(out, "--out")), user_path(run_dir, "RUN_DIR")
    check_readable(run_dir, "RUN_DIR")
    if out.resolve().is_relative_to(run_dir.resolve()):
        raise ConfigError(f"--out {out} is inside {run_dir}, which does not change; give another folder")
    if blocks < 1:
        raise ConfigError(f"--blocks {blocks} must be at least 1")
    local_devices()  # raises before Orbax, which would wait for the other processes
    with readable(run_dir), Checkpoints(run_dir, read_only=True) as checkpoints:
        step = checkpoints.newest_good()
        meta = checkpoints.restore_meta(step)
        with understood(checkpoints.path(step), meta):
            old, arch, info = from_dict(meta["config"]), arch_from_dict(meta["arch"]), info_of_meta(meta)
            history, sums, _ = progress_of(meta)
            dtype = meta["dtype"]
        check_blocks_of(arch, f"grow {run_dir}")
        config = new_config(old, out, old.epochs if epochs is None else epochs, history, sums)
        like = shapes(config, arch, info, dtype)
        try:  # before anything large is read
            position = check_place(arch, {"params": like.params}, stage, position, blocks)
        except ConfigError as error:  # its message begins with the name of the flag, such as stage
            raise ConfigError(f"--{error}") from None
        state = checkpoints.restore(step, like, config.seed)
    arch, state = grow_state(arch, state, stage, position, blocks)
    meta |= {"arch": dataclasses.asdict(arch), "config": dataclasses.asdict(config)}
    ended = history and not sums.count  # inside an epoch nothing has been evaluated
    with new_folder(out) as part:
        rundir.write_config(part, config)
        rundir.write_rows(part, history)
        with Checkpoints(part) as checkpoints:
            checkpoints.save(state, meta, history[-1].get("validation_accuracy") if ended else None)
    steps = info.num_train // config.batch_size
    before, after = (np.asarray(make_schedule(c.optim, c.epochs, steps)(step)).item() for c in (old, config))
    return GrownRun(arch, config, step, len(history), (before, after))


def shapes(config: Config, arch: Arch, info: DataInfo, dtype: str) -> Any:
    """The TrainState of a run as shapes."""
    devices = pick_devices(1)
    model = make_model(config, arch, info, dtype)
    program = make_trainer(config, info, devices).make_program(model, info.image_shape, devices)
    return jax.eval_shape(program.initial_state)


def new_config(old: Config, out: Path, epochs: int, history: list[Row], sums: Sums) -> Config:
    """The config of the grown run in `out`; ConfigError if that run could not be trained further."""
    run = dataclasses.replace(old.run, run_dir=str(out), resume=False)
    config = dataclasses.replace(old, epochs=epochs, run=run)
    check_epochs(config.epochs, history, sums)
    check(config)
    if config.model.freeze:
        raise ConfigError("the run trains its head alone (--freeze), so a new block would never be trained")
    schedule = config.optim.schedule
    if schedule in TO_THE_END and len(history) == epochs:
        raise ConfigError(
            f"the run has finished its {epochs} epochs, and its {schedule} schedule ends there at a learning rate of "
            f"{'almost ' * (schedule == 'one_cycle')}0; "
            "add --epochs MORE, which stretches the schedule"
        )
    return config


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which is renamed to path at the end; after an error it is removed.

    Its random name belongs to this process alone. Unfinished folders of other processes are reported and kept.
    """
    report_unfinished(path)
    part = path.with_name(f".{path.name}.part-{secrets.token_hex(8)}")
    made = [folder for folder in part.parents if not folder.exists()]
    try:
        part.mkdir(parents=True)
        # after an interruption Orbax's threads continue to write until the interpreter joins them
        atexit.register(remove_own, part, os.getpid())
        yield part
        os.replace(part, path)
        made = []
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}; give another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:  # deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()


def remove_own(part: Path, pid: int) -> None:
    """Remove an unfinished folder in the process that made it; its forks do nothing."""
    if os.getpid() == pid:
        shutil.rmtree(part, ignore_errors=True)


def report_unfinished(path: Path) -> None:
    """Name the unfinished folders beside path. Their processes may run on another host, or in another container."""
    for part in sorted(path.parent.glob(f".{glob.escape(path.name)}.part-*")):
        tqdm.write(f"{part} is unfinished, from another process; it stays there, delete it if that process has ended")
