"""Checkpoints of a run: the latest two and the best. This file and stored.py are the only ones that name Orbax."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers
from tqdm import tqdm

from resnet_jax.errors import CheckpointError, one_line
from resnet_jax.runs import stored
from resnet_jax.runs.folders import runs_hint
from resnet_jax.runs.quiet import late_errors, quiet
from resnet_jax.runs.rundir import kept_in
from resnet_jax.runs.stored import METRIC, Damaged, Meta, digests
from resnet_jax.training.metrics import Diverged, diverged
from resnet_jax.training.parallel import PyTree
from resnet_jax.training.state import PARAMS, STATISTICS, TrainState
from resnet_jax.whole_file import whole_file

KEPT = 2  # the latest ones, so that one that is damaged is not the only one
SET_ASIDE = "damaged-"  # what the name of a damaged checkpoint begins with
Result = TypeVar("Result")


class Checkpoints:
    """The checkpoints in a run's folder. Use it as a context manager: leaving it waits for the last checkpoint.

    When a run is opened for training, its latest checkpoint is read as a whole. A damaged one is renamed, and the
    newest good one becomes the latest. CheckpointError if none is good: nothing is renamed then. read_only: nothing is
    read or renamed here.
    Orbax writes in the background. If it fails, the next save or the end of the with block raises an OSError.
    """

    def __init__(self, run_dir: Path, *, read_only: bool = False):
        self.run_dir, self.folder = run_dir, run_dir.absolute() / "checkpoints"
        self.manager: Any = None
        if read_only and not self.folder.is_dir():
            raise CheckpointError(
                f"{run_dir}: no run is kept there (it has no folder checkpoints/){runs_hint(run_dir)}"
            )
        self._quiet = contextlib.ExitStack()
        if not read_only:
            with quiet():
                self._set_aside()
                self.manager = ocp.CheckpointManager(self.folder, options=_options())

    def __enter__(self) -> "Checkpoints":
        self._quiet.enter_context(quiet())
        return self

    def __exit__(self, *_: object) -> None:
        with self._quiet, writing():
            if self.manager is not None:
                self.manager.close()  # waits for the last checkpoint

    def path(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are written, the latest first."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted((int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name)), reverse=True)

    def latest(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        if self.manager is not None:
            return self.manager.latest_step()  # it may be half written
        return next(iter(self.steps()), None)

    def ranked(self) -> list[int]:
        """All steps, the best first: by validation accuracy, then those without one; the later of two equal ones."""

        def rank(step: int) -> tuple[float, int]:
            try:
                accuracy = stored.accuracy_of(self.restore_meta(step))
            except Damaged:
                return float("inf"), step  # it may be the best one: whoever reads it finds and reports the damage
            return -1.0 if accuracy is None else accuracy, step

        return sorted(self.steps(), key=rank, reverse=True)

    def first_good(self, steps: Iterable[int], read: Callable[[int], Result]) -> Result:
        """read(step) for the first of the steps whose checkpoint is good; the damaged ones before it are reported.

        read: raises Damaged for a damaged checkpoint. CheckpointError if there is no checkpoint, or no good one.
        """
        damaged: list[Damaged] = []
        for step in steps:
            try:
                result = read(step)
            except Damaged as error:
                damaged.append(error)
                continue
            for error in damaged:
                if error.path.exists():  # a run that is being trained removes its old checkpoints
                    tqdm.write(f"{error}; using the one of step {step}")
            return result
        raise self._none_good(damaged)

    def keep_latest(self) -> None:
        """Remove the checkpoints before the latest one, to save disk space."""
        for step in self.steps()[1:]:
            shutil.rmtree(self.path(step))

    def newest_good(self) -> int:
        """The step of the newest checkpoint that is good, which is read as a whole; see first_good."""
        return self.first_good(self.steps(), self._checked)

    def _checked(self, step: int) -> int:
        stored.check(self.path(step))
        return step

    def _none_good(self, damaged: list[Damaged]) -> CheckpointError:
        if gone := [error.path for error in damaged if not error.path.exists()]:
            return CheckpointError(f"{gone[0]} is gone; if the run is being trained just now, try again")
        if len(damaged) == 1:
            return CheckpointError(f"{damaged[0]}; the run has no other one")
        if damaged:
            steps = ", ".join(error.path.name for error in damaged)
            return CheckpointError(f"{damaged[0]}; the run has no good one (damaged: {steps})")
        return CheckpointError(f"{self.run_dir}: the run has no checkpoint yet")

    def _set_aside(self) -> None:
        """Rename damaged checkpoints, so that the latest one is good; nothing is renamed if none is good."""
        steps, damaged = self.steps(), []
        if not steps and any(self.folder.glob(f"{SET_ASIDE}*")):
            raise CheckpointError(f"{self.folder}: the run has no good checkpoint, only damaged ones ({SET_ASIDE}*)")
        good: int | None = None
        for step in steps:
            try:  # those before the newest good one may be large; Orbax reads their metrics alone
                meta = stored.check(self.path(step)) if good is None else self.restore_meta(step)
            except Damaged as error:
                damaged.append(error)
                continue
            good = step if good is None else good
            self._mend_metrics(step, meta)
        if steps and good is None:
            raise self._none_good(damaged)
        for error in damaged:
            new = _unused(self.folder / f"{SET_ASIDE}{error.path.name}")
            error.path.rename(new)
            tqdm.write(f"{error}; it is now named {new.name}, and the run continues from step {good}")

    def _mend_metrics(self, step: int, meta: Meta) -> None:
        """Write the file that Orbax keeps the validation accuracy in again, if it is damaged."""
        path = self.path(step)
        if stored.metrics_are_good(path, meta):
            return
        accuracy, file = stored.accuracy_of(meta), path / stored.METRICS_FILE
        file.parent.mkdir(exist_ok=True)
        with whole_file(file) as part:
            part.write_text(json.dumps({} if accuracy is None else {METRIC: accuracy}), encoding="utf-8")
        tqdm.write(f"{file} was damaged; it was written again from the checkpoint's meta")

    def save(self, state: TrainState, meta: dict[str, Any], validation_accuracy: float | None = None) -> None:
        """Write a checkpoint of state.step in the background. validation_accuracy: None if it has not been measured."""
        host = jax.device_get(state)  # numpy restores on any number of devices
        step, items = int(host.step), _items(host)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(items)):
            raise diverged(f"the weights of step {step} are not finite")
        meta = meta | {"step": step, METRIC: validation_accuracy}
        meta = stored.sealed(meta | {"digests": {name: digests(tree) for name, tree in items.items()}})
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        metrics = None if validation_accuracy is None else {METRIC: validation_accuracy}
        composite = ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta))
        with writing():
            saved = self.manager.save(step, args=composite, metrics=metrics)
        if not saved:  # Orbax returns False and does not raise
            raise CheckpointError(f"{self.folder}: step {step} was not saved; the latest there is {self.latest()}")

    def restore_meta(self, step: int) -> Meta:
        """The JSON item of a checkpoint; Damaged if it is not what was saved."""
        return stored.read_meta(self.path(step))

    def restore(self, step: int, like: TrainState, seed: int) -> TrainState:
        """The state of a checkpoint, as numpy arrays. like: its shapes and dtypes."""
        items = stored.read_items(self.path(step), self.restore_meta(step), _items(like), whole=True)
        return like.replace(step=np.int32(step), seed=np.uint32(seed), **items)

    def restore_variables(self, step: int, like: PyTree) -> dict[str, PyTree]:
        """The variables of a checkpoint, as numpy arrays: the averaged ones if it has averages.

        like: their shapes and dtypes.
        """
        own = {name: tree for name, tree in like.items() if name in (PARAMS, STATISTICS)}
        others = {name: tree for name, tree in like.items() if name not in own}
        meta = self.restore_meta(step)
        items = ({"averages": own} if "averages" in meta["digests"] else own) | {"others": others}
        items = {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}
        items = stored.read_items(self.path(step), meta, items)
        return like | items.pop("others", {}) | items.pop("averages", {}) | items


def _options() -> ocp.CheckpointManagerOptions:
    """Keep the latest checkpoints and the best one."""
    best = checkpoint_managers.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        best_fn=_metric,
        best_mode="max",
        # max_to_keep with best_fn would delete the newest checkpoint
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(n=KEPT), best]),
    )


def _unused(path: Path) -> Path:
    """The path itself, or with the first number behind it that names nothing."""
    return next(new for i in range(1, 1000) if not (new := path if i == 1 else Path(f"{path}-{i}")).exists())


@contextlib.contextmanager
def kept_checkpoints(run_dir: Path, continued: str) -> Iterator[Checkpoints]:
    """The checkpoints of a run that is being trained. If the last one cannot be written, CheckpointError is raised.

    continued: how the run is continued from its latest checkpoint with a lower learning rate. The error of a run that
    has diverged says so, if there is a checkpoint.
    """
    with kept_in(run_dir):
        checkpoints = Checkpoints(run_dir)
    checkpoints.__enter__()
    try:
        yield checkpoints
    except Diverged as error:
        checkpoints.manager.wait_until_finished()
        if (step := checkpoints.latest()) is None:
            raise
        raise Diverged(f"{error}; or continue from the checkpoint of step {step}: {continued}") from error
    finally:
        with kept_in(run_dir):
            checkpoints.__exit__()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn the errors of Orbax and TensorStore for a failed write into the OSError behind them."""
    try:
        with late_errors():
            yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        number = stored.os_error_code(error)
        if number is not None:
            raise OSError(number, os.strerror(number)) from error
        raise OSError(errno.EIO, one_line(error)) from error


def _metric(metrics: dict[str, float]) -> float:
    return metrics.get(METRIC, -1.0)  # older runs have the test accuracy instead


def _items(state: TrainState) -> dict[str, PyTree]:
    names = ("params", "batch_stats", "opt_state", "others", "averages")
    items = {name: getattr(state, name) for name in names}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}  # Orbax saves no empty tree
