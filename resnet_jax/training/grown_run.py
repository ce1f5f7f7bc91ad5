"""A run made of another one, with a network that is deeper: what `python -m resnet_jax grow` does."""

import atexit
import contextlib
import dataclasses
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch, arch_from_dict
from resnet_jax.models.growth import check_place
from resnet_jax.training import rundir
from resnet_jax.training.checkpoint import Checkpoints, damage
from resnet_jax.training.config import Config, check, from_dict
from resnet_jax.training.growth import grow_state
from resnet_jax.training.loop import Progress, check_epochs, initial_state, make_model, num_train
from resnet_jax.training.metrics import write_rows
from resnet_jax.training.optim import make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True)
class GrownRun:
    """arch, config: the new run's; step: updates made so far; epochs: done so far.

    rates: of learning at the next step, as the old run would have had it and as the new one has it.
    """

    arch: Arch
    config: Config
    step: int
    epochs: int
    rates: tuple[float, float]


def grow_run(
    run_dir: str | Path,
    out: str | Path,
    stage: int,
    blocks: int = 1,
    position: int | None = None,
    epochs: int | None = None,
) -> GrownRun:
    """Make the folder `out` of a run's latest checkpoint, with blocks more in a stage.

    --resume goes on with it: weights, the optimizer's state and the rows are the old run's. epochs: of the new run in
    all, where not the old one's; a cosine schedule is laid out anew for them. All of it is written or nothing;
    ConfigError or CheckpointError, of one line, where it cannot be.
    """
    out = rundir.check_out(Path(out))
    rundir.check_readable(Path(run_dir), "RUN_DIR")
    if out.resolve().is_relative_to(Path(run_dir).resolve()):
        raise ConfigError(f"--out {out} is inside {run_dir}, which stays as it is; give another folder")
    if blocks < 1:
        raise ConfigError(f"--blocks {blocks} must be at least 1")
    with Checkpoints(Path(run_dir), read_only=True) as checkpoints:
        step = checkpoints.existing(checkpoints.latest())
        meta = checkpoints.restore_meta(step)
        with damage(checkpoints.folder / str(step)):
            old, arch = from_dict(meta["config"]), arch_from_dict(meta["arch"])
            dtype, progress = meta["dtype"], Progress.of(meta)
        config = new_config(old, out, old.epochs if epochs is None else epochs, progress)
        schedules = [make_schedule(c.optim, c.epochs, num_train(c) // c.batch_size) for c in (old, config)]
        optimizer = make_optimizer(config.optim, schedules[1])
        like = jax.eval_shape(initial_state(config, make_model(config, arch, dtype), optimizer))
        try:  # before anything large is read
            position = check_place(arch, {"params": like.params}, stage, position, blocks)
        except ConfigError as error:  # it begins with what is wrong, such as stage: the flag
            raise ConfigError(f"--{error}") from None
        state = checkpoints.restore(step, like)
    arch, state = grow_state(arch, state, optimizer, config.seed, stage, position, blocks)
    meta |= {"arch": dataclasses.asdict(arch), "config": dataclasses.asdict(config)}
    ended = progress.history and not progress.sums.count  # of an epoch that has begun, nothing has been evaluated
    with new_folder(out) as part:
        rundir.write_config(part, config)
        write_rows(part / "metrics.jsonl", progress.history)
        with Checkpoints(part) as checkpoints:
            checkpoints.save(state, meta, progress.history[-1]["test_accuracy"] if ended else None)
    before, after = (np.asarray(schedule(step)).item() for schedule in schedules)
    return GrownRun(arch, config, step, len(progress.history), (before, after))


def new_config(old: Config, out: Path, epochs: int, progress: Progress) -> Config:
    """The config of a run that is kept in out and goes on from there; ConfigError where it could not."""
    run = dataclasses.replace(old.run, run_dir=str(out), resume=False)
    config = dataclasses.replace(old, epochs=epochs, run=run)
    check_epochs(config, progress)
    check(config)
    if config.model.freeze:
        raise ConfigError("the run trains its head alone (--freeze), so that a new block would never be trained")
    if config.optim.schedule == "cosine" and len(progress.history) == epochs:
        raise ConfigError(
            f"the run has {epochs} epochs behind it, and its cosine schedule ends there at a rate of 0; "
            "add --epochs MORE, which lays it out anew"
        )
    return config


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes path in the end; after an error nothing of it is left."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    remove_abandoned(path)
    made = [folder for folder in part.parents if not folder.exists()]
    try:
        part.mkdir(parents=True)
        # when it is interrupted, Orbax's threads go on writing until the interpreter has joined them
        atexit.register(shutil.rmtree, part, ignore_errors=True)
        yield part
        os.replace(part, path)
        made = []
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}; give another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:  # the deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()


def remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left of the folder that they were to make."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        pid = part.name.rpartition("-")[2]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(part, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True
