"""The folder of a run: its name, its lock, and the config that the run was started with."""

import contextlib
import dataclasses
import datetime
import fnmatch
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from resnet_jax.errors import CheckpointError, ConfigError, listed, one_line
from resnet_jax.paths import check_readable, check_writable
from resnet_jax.runs.config import Config, DataConfig, from_dict
from resnet_jax.runs.folders import CHECKPOINTS, CONFIG_FILE, LOCK, METRICS_FILE, TENSORBOARD, runs_in
from resnet_jax.runs.override import check_same, differences
from resnet_jax.whole_file import whole_file

RUNS = Path("runs")


class Place(NamedTuple):
    """The folder of a run. resumes: it holds a run to continue. named: the user gave its name."""

    path: Path
    resumes: bool
    named: bool


def choose(config: Config) -> Place:
    """The folder of a new run, or of the run to resume; ConfigError if it is unsuitable. Writes nothing."""
    named, resume = bool(config.run.run_dir), config.run.resume
    path = find_run(config) if resume == "auto" else old_run_dir(config) if resume else None
    if path is None:
        return Place(new_run_dir(config), False, named)
    check_same(f"the run in {path}", read_config(path), config)
    return Place(path, True, True)


def new_run_dir(config: Config) -> Path:
    """The folder of a new run; ConfigError if it holds something, or cannot be made."""
    if config.run.run_dir:
        return check_new(Path(config.run.run_dir))
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    path = RUNS / f"{config.arch}-{data_name(config.data)}-{stamp}"
    check_writable(path, "--run-dir")
    return path


def data_name(config: DataConfig) -> str:
    """The data set's part of the name of a run's folder: for pictures of your own the last part of their path."""
    if not config.data_folder:
        return config.dataset
    return re.sub(r"[^\w.-]+", "_", Path(config.data_folder).resolve().name) or "pictures"


def check_new(path: Path, name: str = "--run-dir", resume: str = "--resume") -> Path:
    """The path itself; ConfigError if a run cannot start there. Writes nothing."""
    check_readable(path, name)
    if path.is_dir() and not _is_unused(path):
        continued = f"add {resume} to continue, or " if _holds_run(path) else ""
        raise ConfigError(f"{name} {path} exists and is not empty: {continued}give another folder")
    check_writable(path, name)
    return path


def _is_unused(path: Path, also: Sequence[str] = ()) -> bool:
    """Whether a folder holds no run: one that ended before its first step leaves a lock and no checkpoint.

    A run that was killed while it wrote its first config.json leaves a part of it. also: the names of other files that
    do not count.
    """
    return all(
        entry.name in (LOCK, *also)
        or fnmatch.fnmatchcase(entry.name, f"{CONFIG_FILE}.*.part")
        or (entry.name == CHECKPOINTS and entry.is_dir() and not any(entry.iterdir()))
        for entry in path.iterdir()
    )


def _holds_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path / CHECKPOINTS).is_dir()


def old_run_dir(config: Config) -> Path:
    """The folder of the run to resume: --run-dir, or the newest run of that arch and data set in runs/."""
    if (path := find_run(config)) is not None:
        return path
    given = config.run.run_dir
    wanted = f"in {given}" if given else f"of {config.arch} on {data_name(config.data)} in {RUNS}/"
    nearby = runs_in(Path(given)) or runs_in(Path(given).parent) if given else runs_in(RUNS)
    others = f"; there is {listed(map(_described, nearby))}: give one with --run-dir" if nearby else ""
    raise ConfigError(f"--resume: there is no run {wanted}; leave --resume out to start one{others}")


def find_run(config: Config) -> Path | None:
    """The folder of the run to resume, or None. ConfigError for a folder that cannot be read or continued."""
    if not config.run.run_dir:
        found = [path for path in runs_in(RUNS) if _is_of(path, config)]
        if found:
            check_writable(found[0], "--run-dir")
        return found[0] if found else None
    path = Path(config.run.run_dir)
    check_readable(path, "--run-dir")
    if not (path / CONFIG_FILE).is_file():
        if path.is_dir() and (path / CHECKPOINTS).is_dir() and not _is_unused(path):
            raise ConfigError(
                f"--run-dir {path} has checkpoints and no {CONFIG_FILE}; put that file back, or give another folder "
                "(a Trainer continues its own runs with resume=True)"
            )
        return None
    check_writable(path, "--run-dir")
    return path


def _is_of(run_dir: Path, config: Config) -> bool:
    """Whether a run has the architecture and the data of a config. Its name decides if its config is damaged."""
    try:
        old = read_config(run_dir)
    except CheckpointError:
        return run_dir.name.startswith(f"{config.arch}-{data_name(config.data)}-")
    same_kind = bool(old.data.data_folder) == bool(config.data.data_folder)
    return same_kind and (old.arch, data_name(old.data)) == (config.arch, data_name(config.data))


def _described(run_dir: Path) -> str:
    try:
        config = read_config(run_dir)
    except CheckpointError:
        return str(run_dir)
    return f"{run_dir} ({config.arch} on {data_name(config.data)})"


def check_out(path: Path) -> Path:
    """The folder of a run that `grow` makes; ConfigError if it exists or cannot be made."""
    check_readable(path, "--out")
    if path.exists():
        raise ConfigError(f"--out {path} exists; give another folder")
    check_writable(path, "--out")
    return path


def read_config(run_dir: Path) -> Config:
    """The config of a run."""
    config, _ = _read(run_dir)
    return config


def read_overrides(run_dir: Path) -> list[dict[str, Any]]:
    """What --override has changed in a run, in order: {"step": ..., "changes": {option: [old, new]}}."""
    return _read(run_dir)[1]


def _read(run_dir: Path) -> tuple[Config, list[dict[str, Any]]]:
    """The config of a run, and what --override has changed in it, in order."""
    path = run_dir / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        overrides = values.pop("overrides", []) if isinstance(values, dict) else []
        if not isinstance(overrides, list):
            raise ValueError("overrides is not a list")
        config = from_dict(values)
    except KeyError as error:
        raise _invalid(path, f"it has no entry {error}") from None
    except OSError as error:
        raise _invalid(path, error.strerror or one_line(error)) from None
    except (ValueError, RecursionError) as error:
        raise _invalid(path, one_line(error)) from None
    return dataclasses.replace(config, run=dataclasses.replace(config.run, override=False)), overrides


def _invalid(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: it does not hold a valid config ({reason}); restore that file, or start another run in another folder"
    )


def write_config(run_dir: Path, config: Config, step: int = 0) -> None:
    """Write the config beside the checkpoints. What --override changes at this step is added under "overrides"."""
    old, overrides = _read(run_dir) if (run_dir / CONFIG_FILE).is_file() else (config, [])
    if changes := differences(old, config):
        overrides = [*overrides, {"step": step, "changes": changes}]
    values = dataclasses.asdict(config) | ({"overrides": overrides} if overrides else {})
    with whole_file(run_dir / CONFIG_FILE) as part:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


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


@contextlib.contextmanager
def hold(run_dir: Path, *, new: bool = False, named: bool = True) -> Iterator[Path]:
    """Make the folder, and lock it against other processes that would train into it. Yields its path.

    new: raise ConfigError if another process has put a run into it meanwhile, and remove what was made here if an error
    ends the run before its first checkpoint. Without named the folder is a new one in any case: if its name is taken,
    it gets the suffix -2, -3 and so on.
    """
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        if named:
            run_dir.mkdir(parents=True, exist_ok=True)
        else:
            run_dir = _make_another(run_dir)
            made = [run_dir, *made[1:]]
        lock = filelock.FileLock(run_dir / LOCK, blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise CheckpointError(
            f"{run_dir}: another process is training into this folder; wait for it or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir} cannot be made: {error.strerror}; give another folder") from None
    try:
        if new:
            check_new(run_dir)
        with _removed_if_unused(run_dir, made) if new else contextlib.nullcontext():
            yield run_dir
    finally:
        lock.release()


@contextlib.contextmanager
def _removed_if_unused(run_dir: Path, made: Sequence[Path]) -> Iterator[None]:
    """After an error, remove a new run that has neither checkpoints nor rows, and the folders `made` for it.

    A folder that holds anything else stays as it is.
    """
    try:
        yield
    except Exception:
        rows = run_dir / METRICS_FILE
        with contextlib.suppress(OSError):
            if _is_unused(run_dir, also=(CONFIG_FILE, METRICS_FILE, TENSORBOARD)) and not (
                rows.exists() and rows.stat().st_size
            ):
                for name in (CONFIG_FILE, METRICS_FILE, LOCK):
                    (run_dir / name).unlink(missing_ok=True)
                shutil.rmtree(run_dir / TENSORBOARD, ignore_errors=True)
                for folder in (run_dir / CHECKPOINTS, *made):  # the deepest first
                    if folder.exists():
                        folder.rmdir()
        raise


def _make_another(path: Path) -> Path:
    """Make a folder that did not exist, of this name or with a number after it. mkdir decides between processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("itertools.count has no end")


def write_rows(run_dir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Make metrics.jsonl hold these rows, one JSON object a line; all of them or, after an error, the old ones."""
    with whole_file(run_dir / METRICS_FILE) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
