"""The folder of a run: its name, its lock, and the config that the run was started with."""

import contextlib
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.runs.checks import growths
from resnet_jax.runs.config import PARTS, Config, DataConfig, from_dict
from resnet_jax.whole_file import whole_file

RUNS = Path("runs")
CONFIG_FILE, METRICS_FILE = "config.json", "metrics.jsonl"

# the flags that may change when a run is resumed. The digest of the pictures protects those of a --data-folder
FREE = {"epochs", "config", "data_dir", "source_dir", "run_dir", "resume", "checkpoint_minutes", "early_stopping"}
FREE |= {"data_folder", "skip_unreadable"}
FREE |= {"devices", "steps_per_dispatch", "compile_cache", "cpu_kernels"}


def choose(config: Config) -> Path:
    """The folder of a new run, or of the run to resume; ConfigError if it is unsuitable. Writes nothing."""
    if not config.run.resume:
        return new_run_dir(config)
    path = old_run_dir(config)
    check_same_run(path, config)
    return path


def new_run_dir(config: Config) -> Path:
    """The folder of a new run; ConfigError if it holds something, or cannot be made."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    return check_new(Path(config.run.run_dir or RUNS / f"{config.arch}-{data_name(config.data)}-{stamp}"))


def data_name(config: DataConfig) -> str:
    """The data set's part of the name of a run's folder: for pictures of your own the last part of their path."""
    if not config.data_folder:
        return config.dataset
    return re.sub(r"[^\w.-]+", "_", Path(config.data_folder).expanduser().resolve().name) or "pictures"


def check_new(path: Path, name: str = "--run-dir", resume: str = "--resume") -> Path:
    """The path itself; ConfigError if a run cannot start there. Writes nothing."""
    check_readable(path)
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"{name} {path} exists and is not empty: add {resume} to continue, or give another folder")
    _check_writable(path)
    return path


def old_run_dir(config: Config) -> Path:
    """The folder of the run to resume: --run-dir, or the newest one of that arch and data set."""
    if config.run.run_dir:
        path = Path(config.run.run_dir)
        check_readable(path)
        if not (path / CONFIG_FILE).is_file():
            raise ConfigError(f"--resume: there is no run in {path}; leave --resume out to start one")
    else:
        pattern = f"{config.arch}-{data_name(config.data)}-*/{CONFIG_FILE}"

        path = max(RUNS.glob(pattern), default=RUNS).parent
        if path == RUNS.parent:
            raise ConfigError(f"--resume: there is no run {RUNS / pattern}; leave --resume out to start one")
    _check_writable(path)
    return path


def check_out(path: Path) -> Path:
    """The folder of a run that `grow` makes; ConfigError if it exists or cannot be made."""
    check_readable(path, "--out")
    if path.exists():
        raise ConfigError(f"--out {path} exists; give another folder")
    _check_writable(path, "--out")
    return path


def check_readable(path: Path, flag: str = "--run-dir") -> None:
    """Raise ConfigError for a path that the system cannot look up, such as a loop of links."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}; give another folder") from None


def _check_writable(path: Path, flag: str = "--run-dir") -> None:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: {existing} is not a writable folder; give another one")


def read_config(run_dir: Path) -> Config:
    """The config of a run."""
    path = run_dir / CONFIG_FILE
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: it does not hold a valid config ({error})") from None


def write_config(run_dir: Path, config: Config) -> None:
    """Write the config beside the checkpoints."""
    with whole_file(run_dir / CONFIG_FILE) as part:
        part.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def kept_in(run_dir: Path) -> Iterator[None]:
    """Turn an OSError of writing into the run's folder into a CheckpointError of one line."""
    try:
        yield
    except BrokenPipeError:  # the reader of the output has gone
        raise
    except OSError as error:
        raise CheckpointError(
            f"{run_dir} cannot be written to: {error.strerror or error}; fix this, then "
            f"--resume --run-dir {run_dir} continues from the last complete checkpoint"
        ) from error


def check_same_run(run_dir: Path, config: Config) -> None:
    """Raise ConfigError if the config differs from the run's in more than the FREE flags."""
    old, new = (_flat(c) for c in (read_config(run_dir), config))
    if config.optim.schedule == "cosine" and old["epochs"] != new["epochs"]:
        raise ConfigError(
            f"--resume: the cosine schedule of the run in {run_dir} ends at --epochs {old['epochs']}, "
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
    values["model"]["grow"] = ",".join(
        f"{epoch}:{stage}" for epoch, stage in growths(config.model.grow)
    )  # without spaces
    parts = [values.pop(name) for name in PARTS]
    return values | {key: value for part in parts for key, value in part.items()}


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Make the folder, and lock it against other processes that would train into it."""
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


def write_rows(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Make metrics.jsonl hold these rows, one JSON object a line; all of them or, after an error, the old ones."""
    with whole_file(run_dir / METRICS_FILE) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
