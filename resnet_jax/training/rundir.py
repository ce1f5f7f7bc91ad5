"""The folder of a run: its name, who may write to it, and the config that it was started with."""

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.training.config import PARTS, Config, from_dict, growths
from resnet_jax.whole_file import whole_file

RUNS = Path("runs")
CONFIG_FILE = "config.json"

# what may change when a run goes on; everything else would make it another run
FREE = {"epochs", "config", "data_dir", "source_dir", "run_dir", "resume", "checkpoint_minutes"}
FREE |= {"devices", "steps_per_dispatch", "compile_cache", "cpu_kernels"}


def choose(config: Config) -> Path:
    """The folder of the run, to be made or to go on with; ConfigError where it will not do. Writes nothing."""
    if not config.run.resume:
        return new_run_dir(config)
    path = old_run_dir(config)
    check_same_run(path, config)
    return path


def new_run_dir(config: Config) -> Path:
    """The folder that a new run will make; ConfigError if it is taken or cannot be made."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    path = Path(config.run.run_dir or RUNS / f"{config.arch}-{config.data.dataset}-{stamp}")
    check_readable(path)
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"--run-dir {path} exists and is not empty: add --resume to go on, or give another folder")
    _check_writable(path)
    return path


def old_run_dir(config: Config) -> Path:
    """The folder of the run to go on with: --run-dir, or the newest one of that arch and data set."""
    if config.run.run_dir:
        path = Path(config.run.run_dir)
        check_readable(path)
        if not (path / CONFIG_FILE).is_file():
            raise ConfigError(f"--resume: there is no run in {path}; leave --resume out to start one")
    else:
        pattern = f"{config.arch}-{config.data.dataset}-*/{CONFIG_FILE}"
        # the name ends in date and time, so the newest comes last
        path = max(RUNS.glob(pattern), default=RUNS).parent
        if path == RUNS.parent:
            raise ConfigError(f"--resume: there is no run {RUNS / pattern}; leave --resume out to start one")
    _check_writable(path)
    return path


def check_out(path: Path) -> Path:
    """The folder of a run that is made of another one; ConfigError if it is there, or cannot be made."""
    check_readable(path, "--out")
    if path.exists():
        raise ConfigError(f"--out {path} exists; give another folder")
    _check_writable(path, "--out")
    return path


def check_readable(path: Path, flag: str = "--run-dir") -> None:
    """Raise ConfigError where the system does not let a path be looked at, such as a loop of links."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}; give another folder") from None


def _check_writable(path: Path, flag: str = "--run-dir") -> None:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: {existing} is not a folder that can be written to; give another one")


def read_config(run_dir: Path) -> Config:
    """The config that a run was started with."""
    path = run_dir / CONFIG_FILE
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a run's config that can be read ({error})") from None


def write_config(run_dir: Path, config: Config) -> None:
    """Keep the config beside the checkpoints."""
    with whole_file(run_dir / CONFIG_FILE) as part:
        part.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def kept_in(run_dir: Path) -> Iterator[None]:
    """An error of what a run writes into its folder, as one line."""
    try:
        yield
    except BrokenPipeError:  # what reads the output has gone
        raise
    except OSError as error:
        raise CheckpointError(
            f"{run_dir} cannot be written to: {error.strerror or error}; mend that, then "
            f"--resume --run-dir {run_dir} goes on from the last checkpoint that is whole"
        ) from error


def check_same_run(run_dir: Path, config: Config) -> None:
    """Raise ConfigError where config would not go on with the run of that folder."""
    old, new = (_flat(c) for c in (read_config(run_dir), config))
    if config.optim.schedule == "cosine" and old["epochs"] != new["epochs"]:
        raise ConfigError(
            f"--resume: the cosine schedule of the run in {run_dir} was laid out for --epochs {old['epochs']}, "
            f"not {new['epochs']}; leave --epochs out, or start another run without --resume"
        )
    for key in old:
        if key not in FREE and old[key] != new[key]:
            flag = "--" + key.replace("_", "-")
            raise ConfigError(
                f"--resume: the run in {run_dir} has {flag} {old[key] or repr(old[key])}, "
                f"not {new[key] or repr(new[key])}; "
                f"leave {flag} out, or start another run without --resume"
            )


def _flat(config: Config) -> dict[str, object]:
    values = dataclasses.asdict(config)
    values["model"]["grow"] = ",".join(f"{epoch}:{stage}" for epoch, stage in growths(config.model.grow))  # no blanks
    parts = [values.pop(name) for name in PARTS]
    return values | {key: value for part in parts for key, value in part.items()}


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Make the folder and keep every other process from training into it."""
    lock = filelock.FileLock(run_dir / ".lock", blocking=False)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise CheckpointError(
            f"{run_dir}: another process is training into this folder; wait for it or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir} cannot be made: {error.strerror}; give another folder") from None
    try:
        yield
    finally:
        lock.release()
