"""Checkpoints of a run: the latest and the best. The only file that names Orbax.

Each has the items params, batch_stats and opt_state, so that inference restores the first two alone, and meta, a JSON
item. Orbax restores a flipped bit and casts a wrong dtype without an error. So meta holds the SHA-256 digest of every
array, and restored arrays are checked against it.
"""

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from resnet_jax.errors import CheckpointError, one_line
from resnet_jax.runs.quiet import quiet
from resnet_jax.runs.rundir import kept_in
from resnet_jax.training.metrics import diverged
from resnet_jax.training.parallel import PyTree
from resnet_jax.training.state import TrainState

METRIC = "validation_accuracy"  # never a test metric: the test set does not choose


def digests(tree: PyTree) -> dict[str, str]:
    """Path of each leaf -> sha256 of its dtype, shape and bytes."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        head = f"{array.dtype} {array.shape} ".encode()
        out[jax.tree_util.keystr(path)] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return out


class Checkpoints:
    """The checkpoints in a run's folder. Use it as a context manager: leaving it waits for the last checkpoint.

    Orbax writes in the background. If it fails, the next save or the end of the with block raises an OSError.
    """

    def __init__(self, run_dir: Path, *, read_only: bool = False):
        self.run_dir, self.folder = run_dir, run_dir.absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{run_dir}: no run is kept there (it has no folder checkpoints/)")
        self._quiet = contextlib.ExitStack()
        with quiet(), damage(self.folder / "*" / "metrics"):  # Orbax reads the metrics of all checkpoints
            self.manager = ocp.CheckpointManager(self.folder, options=_options(read_only))

    def __enter__(self) -> "Checkpoints":
        self._quiet.enter_context(quiet())
        return self

    def __exit__(self, *_: object) -> None:
        with self._quiet, writing():
            self.manager.close()  # waits for the last checkpoint

    def latest(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step of the checkpoint with the highest validation accuracy; the latest one without a validation part."""
        best = self.manager.best_step()
        measured = best is not None and METRIC in (self.manager.metrics(best) or {})
        return best if measured else self.manager.latest_step()

    def existing(self, step: int | None) -> int:
        """The step itself; CheckpointError for None."""
        if step is None:
            raise CheckpointError(f"{self.folder.parent}: the run has no checkpoint yet")
        return step

    def save(self, state: TrainState, meta: dict[str, Any], validation_accuracy: float | None = None) -> None:
        """Write a checkpoint of state.step in the background. validation_accuracy: None if it has not been measured."""
        host = jax.device_get(state)  # numpy restores on any number of devices
        step, items = int(host.step), _items(host)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(items)):
            raise diverged(f"the weights of step {step} are not finite")
        meta = meta | {"step": step, "digests": {name: digests(tree) for name, tree in items.items()}}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        metrics = None if validation_accuracy is None else {METRIC: validation_accuracy}
        composite = ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta))
        with writing():
            saved = self.manager.save(step, args=composite, metrics=metrics)
        if not saved:  # Orbax returns False and does not raise
            raise CheckpointError(f"{self.folder}: step {step} was not saved; the latest there is {self.latest()}")

    def restore_meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a checkpoint."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with damage(self.folder / str(step)):
            return self.manager.restore(step, args=args)["meta"]

    def restore(self, step: int, like: TrainState, seed: int) -> TrainState:
        """The state of a checkpoint, as numpy arrays. like: its shapes and dtypes."""
        return like.replace(step=np.int32(step), seed=np.uint32(seed), **self._restore_items(step, _items(like)))

    def restore_variables(self, step: int, like: PyTree) -> PyTree:
        """The variables of a checkpoint, as numpy arrays. like: their shapes and dtypes."""
        return self._restore_items(step, like)

    def _restore_items(self, step: int, like: dict[str, PyTree]) -> dict[str, PyTree]:
        meta = self.restore_meta(step)
        templates = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in templates.items()}
        with damage(self.folder / str(step)):
            restored = self.manager.restore(step, args=ocp.args.Composite(**args))
            items = {name: restored[name] for name in like}
            for name, tree in items.items():
                jax.tree.map_with_path(partial(_check_form, name), templates[name], tree)
                wrong = sorted(set(digests(tree).items()) ^ set(meta["digests"][name].items()))
                if wrong:
                    raise ValueError(f"{name}{wrong[0][0]} is not what was saved")
        return items


def _options(read_only: bool) -> ocp.CheckpointManagerOptions:
    """Keep the latest and the best checkpoint."""
    best = checkpoint_managers.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        best_fn=_metric,
        best_mode="max",
        # max_to_keep with best_fn would delete the newest checkpoint
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(n=1), best]),
        read_only=read_only,
    )


@contextlib.contextmanager
def kept_checkpoints(run_dir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run that is being trained. If the last one cannot be written, CheckpointError is raised."""
    with kept_in(run_dir):
        checkpoints = Checkpoints(run_dir)
    checkpoints.__enter__()
    try:
        yield checkpoints
    finally:
        with kept_in(run_dir):
            checkpoints.__exit__()


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn the errors of Orbax, TensorStore and json for a damaged checkpoint into a CheckpointError of one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise CheckpointError(f"{path} cannot be read: {error.strerror}; it may well be whole") from error
        if path.name.isdigit() and not path.exists():
            raise CheckpointError(f"{path} is gone; if the run is being trained just now, try again") from error
        alone = path.name.isdigit() and len(list(path.parent.glob("[0-9]*"))) == 1
        advice = "the run has no other one" if alone else "delete that checkpoint's folder to use the other one"
        raise CheckpointError(
            f"{path}: the checkpoint is damaged or of another network ({one_line(error)}); {advice}"
        ) from error


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn the errors of Orbax and TensorStore for a failed write into the OSError behind them."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, at the end of a long ValueError
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise OSError(errno.EIO, one_line(error)) from error


def _metric(metrics: dict[str, float]) -> float:
    return metrics.get(METRIC, -1.0)  # older runs have the test accuracy instead


def _check_form(item: str, path: Any, like: np.ndarray, leaf: np.ndarray) -> None:
    """Raise ValueError if a leaf has another shape or dtype than the network's; Orbax restores it as it was saved."""
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        name = item + jax.tree_util.keystr(path)
        raise ValueError(f"{name} is {leaf.dtype} {leaf.shape}, the network's {like.dtype} {like.shape}")


def _items(state: TrainState) -> dict[str, PyTree]:
    names = ("params", "batch_stats", "opt_state", "others")
    items = {name: getattr(state, name) for name in names}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}  # Orbax saves no empty tree
