"""What the folder of a run holds, the runs in a folder, and folders that cannot be read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from resnet_jax.errors import CheckpointError, ConfigError, listed
from resnet_jax.paths import check_readable

CONFIG_FILE, METRICS_FILE, LOCK, CHECKPOINTS = "config.json", "metrics.jsonl", ".lock", "checkpoints"
TENSORBOARD = "tensorboard"


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, the one that was written to last first."""
    return _newest_first(folder, CONFIG_FILE)


def runs_hint(folder: Path) -> str:
    """For the message about a folder that is no run: the runs inside it, the newest first; "" if there are none."""
    found = _newest_first(folder, CONFIG_FILE, CHECKPOINTS)  # a Trainer's run has no config
    return f"; it holds the runs {listed(map(str, found))}: give one of them" if found else ""


def check_folder(run_dir: Path) -> None:
    """Raise ConfigError for a path that is no folder."""
    check_readable(run_dir, "RUN")
    if not run_dir.is_dir():
        raise ConfigError(f"RUN {run_dir}: there is no such folder; give the folder of a run, such as runs/NAME")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError of reading a folder, such as a lack of permission, into a CheckpointError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _newest_first(folder: Path, *names: str) -> list[Path]:
    """The folders in a folder that hold something of one of these names."""
    with contextlib.suppress(OSError):
        found = {path.parent for name in names for path in folder.glob(f"*/{name}")}
        return sorted(found, key=_written_at, reverse=True)
    return []


def _written_at(run_dir: Path) -> tuple[float, str]:
    """When the newest file of a run was written: its config, its metrics or a checkpoint. Then its name."""
    times = [0.0]
    for file in (run_dir / CONFIG_FILE, run_dir / METRICS_FILE, *run_dir.glob(f"{CHECKPOINTS}/*")):
        with contextlib.suppress(OSError):  # a run that is being trained removes its old checkpoints
            times.append(file.stat().st_mtime)
    return max(times), run_dir.name
