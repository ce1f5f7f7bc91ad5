"""A run made of another one, with a network that is deeper: what `python -m resnet_jax grow` does."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.models import Arch, arch_from_dict
from resnet_jax.models.growth import check_place
from resnet_jax.training import rundir
from resnet_jax.training.checkpoint import Checkpoints, damage
from resnet_jax.training.config import Config, check, from_dict
from resnet_jax.training.growth import grow_state
from resnet_jax.training.loop import initial_state, make_model, num_train
from resnet_jax.training.metrics import write_rows
from resnet_jax.training.optim import make_optimizer, make_schedule


def grow_run(
    run_dir: str | Path,
    out: str | Path,
    stage: int,
    blocks: int = 1,
    position: int | None = None,
    epochs: int | None = None,
) -> tuple[Arch, Config, int]:
    """Make the folder `out` of a run's latest checkpoint, with blocks more in a stage: Arch, config and epochs done.

    --resume goes on with it: weights, the optimizer's state, the schedule and the rows are the old run's. epochs: of
    the new run in all, where not the old one's. All of it is written or nothing; ConfigError or CheckpointError, of one
    line, where it cannot be.
    """
    out = rundir.check_out(Path(out))
    if out.resolve().is_relative_to(Path(run_dir).resolve()):
        raise ConfigError(f"--out {out} is inside {run_dir}, which stays as it is; give another folder")
    if blocks < 1:
        raise ConfigError(f"--blocks {blocks} must be at least 1")
    with Checkpoints(Path(run_dir), read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"{run_dir}: the run has no checkpoint yet")
        meta = checkpoints.restore_meta(step)
        with damage(checkpoints.folder / str(step)):
            old, arch, done = from_dict(meta["config"]), arch_from_dict(meta["arch"]), len(meta["history"])
        config = new_config(old, out, old.epochs if epochs is None else epochs, done)
        schedule = make_schedule(config.optim, config.epochs, num_train(config) // config.batch_size)
        optimizer = make_optimizer(config.optim, schedule)
        like = jax.eval_shape(initial_state(config, make_model(config, arch, meta["dtype"]), optimizer))
        position = check_place(arch, {"params": like.params}, stage, position)  # before anything large is read
        state = checkpoints.restore(step, like)
    arch, state = grow_state(arch, state, optimizer, config.seed, stage, position, blocks, config.model.freeze)
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        rundir.write_config(part, config)
        write_rows(part / "metrics.jsonl", meta["history"])
        ended = done and not meta["sums"]["count"]  # of an epoch that has begun, nothing has been evaluated
        accuracy = meta["history"][-1]["test_accuracy"] if ended else None
        with Checkpoints(part) as checkpoints:
            changes = {"arch": dataclasses.asdict(arch), "config": dataclasses.asdict(config)}
            checkpoints.save(state, meta | changes, accuracy)
        os.replace(part, out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; give another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return arch, config, done


def new_config(config: Config, out: Path, epochs: int, done: int) -> Config:
    """The config of a run that is kept in out; ConfigError where it has so many epochs behind it already."""
    if epochs < done:
        raise ConfigError(f"--epochs {epochs}: the run has {done} behind it; give more")
    run = dataclasses.replace(config.run, run_dir=str(out), resume=False)
    return check(dataclasses.replace(config, epochs=epochs, run=run))
