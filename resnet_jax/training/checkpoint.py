"""Checkpoints of a run: the latest and the best. The only file that names Orbax.

Each has the items params, batch_stats and opt_state, so that inference restores the first two alone, and meta, a
JSON item. Orbax gives a flipped bit back as it is, and casts a wrong dtype silently: meta holds the digest of
every leaf, and what is restored is checked against it.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from resnet_jax.errors import CheckpointError, one_line
from resnet_jax.training.metrics import diverged
from resnet_jax.training.state import PyTree, TrainState

METRIC = "test_accuracy"

# what Orbax warns of though it is meant: a checkpoint inside an epoch has no metrics, load() opens a folder to read,
# and what a run that was killed had half written is removed
MEANT = ("did not provide metrics", "read_only=True", "directory is read only", "since it is not finalized")


def _worth_saying(record: logging.LogRecord) -> bool:
    """Whether Orbax's log should have it: not what is meant, nor the traceback of an error that is raised as well."""
    raised = record.exc_info is not None and "orbax" in record.pathname
    return not raised and not any(text in record.getMessage() for text in MEANT)


def _retrieved(record: logging.LogRecord) -> bool:
    """Whether asyncio's log should have it: not an error of one more array, when that of the first has been raised."""
    message = record.getMessage()
    return "exception was never retrieved" not in message or "tensorstore" not in message


def _unraisable(unraisable: Any, before: Callable[[Any], object] = sys.unraisablehook) -> None:
    """After an error of one array TensorStore calls back for the others, in an event loop that Orbax has left."""
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)


logging.getLogger("absl").addFilter(_worth_saying)
logging.getLogger("asyncio").addFilter(_retrieved)
sys.unraisablehook = _unraisable


def digests(tree: PyTree) -> dict[str, str]:
    """Path of each leaf -> sha256 of its dtype, shape and bytes."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        head = f"{array.dtype} {array.shape} ".encode()
        out[jax.tree_util.keystr(path)] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return out


class Checkpoints:
    """The checkpoints of a run's folder; a context manager, since leaving without closing would lose the last one.

    They are written in the background: that one cannot be, an OSError, is told by the next save or on leaving.
    """

    def __init__(self, run_dir: Path, *, read_only: bool = False):
        self.folder = run_dir.absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{run_dir}: no run is kept there (it has no folder checkpoints/)")
        best = checkpoint_managers.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_metric,
            best_mode="max",
            # not max_to_keep, which with best_fn would delete the newest
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(n=1), best]),
            read_only=read_only,
        )
        with damage(self.folder / "*" / "metrics"):  # it reads those of all checkpoints
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with writing():
            self.manager.close()  # waits for what is being written

    def latest(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step of the checkpoint of the highest test accuracy, or the latest if none has been evaluated."""
        return self.manager.best_step() or self.manager.latest_step()

    def existing(self, step: int | None) -> int:
        """The step that latest or best gives; CheckpointError where there is none."""
        if step is None:
            raise CheckpointError(f"{self.folder.parent}: the run has no checkpoint yet")
        return step

    def save(self, state: TrainState, meta: dict[str, Any], test_accuracy: float | None = None) -> None:
        """Write a checkpoint of state.step, in the background. test_accuracy: where it has been evaluated."""
        host = jax.device_get(state)  # numpy restores on any number of devices
        step, items = int(host.step), _items(host)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(items)):
            raise diverged(f"the weights of step {step} are not finite")
        meta = meta | {"step": step, "digests": {name: digests(tree) for name, tree in items.items()}}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        metrics = None if test_accuracy is None else {METRIC: test_accuracy}
        composite = ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta))
        with writing():
            saved = self.manager.save(step, args=composite, metrics=metrics)
        if not saved:  # it does not raise
            raise CheckpointError(f"{self.folder}: step {step} was not saved; the latest there is {self.latest()}")

    def restore_meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a checkpoint."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with damage(self.folder / str(step)):
            return self.manager.restore(step, args=args)["meta"]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a checkpoint, as numpy arrays; like gives shapes and dtypes."""
        items = self._restore_items(step, _items(like))
        return TrainState(step=np.int32(step), **items)

    def restore_variables(self, step: int, like: PyTree) -> PyTree:
        """The items params and batch_stats of a checkpoint, as numpy arrays; like gives shapes and dtypes."""
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


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever Orbax, TensorStore or json raise of a damaged checkpoint, as one line."""
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
    """Whatever Orbax or TensorStore raise where a checkpoint cannot be written, as the OSError behind it."""
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
    return metrics[METRIC]


def _check_form(item: str, path: Any, like: np.ndarray, leaf: np.ndarray) -> None:
    """ValueError where a leaf has not the form that it is wanted in; Orbax gives it as it was saved."""
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        name = item + jax.tree_util.keystr(path)
        raise ValueError(f"{name} is {leaf.dtype} {leaf.shape}, the network's {like.dtype} {like.shape}")


def _items(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "batch_stats": state.batch_stats, "opt_state": state.opt_state}
