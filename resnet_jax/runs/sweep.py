"""A sweep: one recipe trained over several seeds, each in a run's folder of its own."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
from tqdm import tqdm

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.paths import check_readable, check_writable
from resnet_jax.runs import repeat, rundir
from resnet_jax.runs.argv import flags_of
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.config import Config, from_dict
from resnet_jax.runs.fit_run import RunResult, fit
from resnet_jax.runs.flags import changed
from resnet_jax.runs.folders import CONFIG_FILE, readable
from resnet_jax.runs.sweep_file import SWEEP_FILE, Record, accuracy_keys, read_record, with_run, write_record
from resnet_jax.training.callbacks import WithoutTest
from resnet_jax.training.metrics import Diverged

FOLDER = "seed"  # the folder of seed 3 is seed3
# the options that say where a run is and what it shows; they do not change its result
PLACES = {"data_dir": "", "source_dir": "", "run_dir": "", "resume": False, "override": False}
NO_TEST = "--no-test"
FREE = {*PLACES, "seed", "config", "checkpoint_minutes", "compile_cache", "report", "tensorboard"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to train. recipe, flags: as they were given. config: of a run, without its seed and its folder.

    test: read the test part. ConfigError if it is not read, and there is no validation part either.
    """

    recipe: str
    flags: dict[str, Any]
    seeds: tuple[int, ...]
    folder: Path
    config: Config
    test: bool = True

    def __post_init__(self) -> None:
        data = self.config.data
        if not self.test and not (data.validation or data.data_folder):
            raise ConfigError("--no-test: the data has no validation part; add --validation 0.1")

    @property
    def words(self) -> list[str]:
        """The flags that change the result, as they are typed."""
        flags = flags_of(Config)
        words = [repeat.spelled(flags[name], value) for name, value in self.flags.items() if name not in FREE]
        return [word for group in words for word in group] + ([] if self.test else [NO_TEST])

    def run_dir(self, seed: int) -> Path:
        """The folder of a seed."""
        return self.folder / f"{FOLDER}{seed}"

    def config_of(self, seed: int) -> Config:
        """The config of a seed's run, which continues what is in its folder."""
        run_dir = self.run_dir(seed)
        values = {"seed": seed, "run_dir": str(run_dir), "resume": "auto" if run_dir.exists() else False}
        return changed(self.config, values if self.test else values | {"report": False})


def run_sweep(sweep: Sweep) -> Record:
    """Train the seeds that sweep.json does not have, one after the other; returns its content.

    A run that was interrupted continues, and ends with the bits of an undisturbed one. A run that diverges is recorded
    as failed, and the next seed starts. Raises ConfigError for a folder that holds something else or other flags, and
    what `fit` raises; the runs before it are kept.
    """
    record = started(sweep)
    left = [seed for seed in sweep.seeds if seed not in {run["seed"] for run in record["runs"]}]
    for number, seed in enumerate(left, 1):
        tqdm.write(f"seed {seed}, {number} of {len(left)} to train: {sweep.run_dir(seed)}")
        try:
            result = fit(sweep.config_of(seed), callbacks=[] if sweep.test else [WithoutTest()])
        except Diverged as error:
            # its advice is for one run: with other options it would no longer belong to the sweep
            run: Record = {"seed": seed, "failed": str(error).partition(";")[0]}
        else:
            run = run_of(seed, result)
            record["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(result.variables["params"]))
        record = recorded(sweep, record, run)
    return record


def recorded(sweep: Sweep, record: Record, run: Record) -> Record:
    """Write sweep.json with one more run. Other seeds, which another process trained meanwhile, stay in it."""
    file = sweep.folder / SWEEP_FILE
    with kept_in(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(sweep.folder / rundir.LOCK):
            runs = read_record(file)["runs"] if file.exists() else record["runs"]
            record = with_run(record | {"runs": runs}, run)
            record["command"] = command_of(record)
            write_record(file, record)
    return record


def started(sweep: Sweep) -> Record:
    """The content of sweep.json, or that of a new one. ConfigError for a folder of something else or of other flags."""
    folder, file = sweep.folder, sweep.folder / SWEEP_FILE
    check_readable(folder, "--dir")
    check_writable(folder, "--dir")
    with readable(folder):
        runs = sorted(path.parent for path in folder.glob(f"{FOLDER}*/{CONFIG_FILE}"))
        if not file.exists() and not any(folder.glob(f"{FOLDER}*")) and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"--dir {folder} exists and holds no sweep; give another folder")
    config = changed(sweep.config, PLACES | {"seed": 0})
    record: Record = {"recipe": sweep.recipe, "flags": sweep.words, "command": "", "parameters": None}
    record |= {"config": dataclasses.asdict(config), "runs": [], **dict.fromkeys(accuracy_keys())}
    if file.exists():
        record = read_record(file)
        check_same(folder, config_in(file, record), config)
        if (NO_TEST in record["flags"]) == sweep.test:
            given = f"{'without' if sweep.test else 'with'} {NO_TEST}"
            raise ConfigError(f"--dir {folder} holds other runs than those {given}; give another folder with --dir")
    for run in runs:
        check_same(folder, rundir.read_config(run), config)
    return record


def config_in(path: Path, record: Record) -> Config:
    """The config of the runs of a sweep.json; ConfigError for an invalid one."""
    try:
        return from_dict(record["config"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: its config is invalid ({error}); restore that file, or delete it") from None


def check_same(folder: Path, old: Config, new: Config) -> None:
    """Raise ConfigError if the runs of a sweep have other options than the new ones would have."""
    for flag in flags_of(Config).values():
        before, after = repeat.value_of(old, flag), repeat.value_of(new, flag)
        if flag.name not in FREE and before != after:
            words, others = (" ".join(repeat.spelled(flag, value)) for value in (before, after))
            raise ConfigError(
                f"--dir {folder} holds runs with {words}, not {others}; give the same recipe and flags to continue "
                "them, or another folder with --dir"
            )


def run_of(seed: int, result: RunResult) -> Record:
    """What sweep.json says of a run. Its checkpoints before the last one are removed."""
    with Checkpoints(result.run_dir, read_only=True) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"{result.run_dir}: the run has no checkpoint; delete the folder to train it again")
        meta = checkpoints.restore_meta(step)
        checkpoints.keep_latest()
    rows, last = result.history, result.history[-1]
    run: Record = {"seed": seed, "epochs": len(rows), "steps": step}
    run |= {key: last[key] for key in accuracy_keys() if key in last}
    run["seconds"] = round(sum(row["train_seconds"] + row["eval_seconds"] for row in rows), 3)
    return run | {key: meta[key] for key in ("hardware", "versions")}


def command_of(record: Record) -> str:
    """The command that makes the sweep of a record."""
    seeds = [run["seed"] for run in record["runs"]]
    counted = seeds == list(range(len(seeds)))
    text = str(len(seeds)) if counted else ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")
    return shlex.join(["resnet-jax", "sweep", record["recipe"], "--seeds", text, *record["flags"]])


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing sweep.json into a CheckpointError of one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder / SWEEP_FILE} cannot be written: {error.strerror or error}; fix this, then the same command "
            "continues"
        ) from error
