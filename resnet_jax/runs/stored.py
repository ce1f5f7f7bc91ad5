"""One checkpoint's folder: what it holds, and the proof that it is damaged.

A checkpoint has the items params, batch_stats, opt_state, others and averages, and meta, a JSON item. Orbax restores
a flipped bit and casts a wrong dtype without an error. So meta holds the SHA-256 digest of every array, and its own.
Arrays are read without a template and found by their digests: a checkpoint of another network is not mistaken for a
damaged one.
"""

import collections
import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.errors import CheckpointError, UserError, listed, one_line
from resnet_jax.runs.quiet import late_errors
from resnet_jax.training.parallel import PyTree

METRIC = "validation_accuracy"  # never a test metric: the test set does not choose
METRICS_FILE = Path("metrics", "metrics")  # where Orbax keeps the metrics of a checkpoint
REASON = 300  # characters of an error of TensorStore, which names two paths
SELF = "digest"  # the key of meta's own digest
Meta = dict[str, Any]
# TensorStore's words for a machine in trouble; they say nothing about the files
TROUBLE = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "PERMISSION_DENIED")


class Damaged(CheckpointError):
    """A file of the checkpoint is missing, has an invalid format, or does not match its digest.

    path: the checkpoint's folder. reason: what is wrong, in one line.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: the checkpoint is damaged ({reason})")
        self.path, self.reason = path, reason


def digests(tree: PyTree) -> dict[str, str]:
    """Path of each leaf -> sha256 of its dtype, shape and bytes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in leaves}


def digest(leaf: Any) -> str:
    """The sha256 of an array's dtype, shape and bytes."""
    array = np.ascontiguousarray(leaf)
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def sealed(meta: Meta) -> Meta:
    """The meta with its own digest."""
    return meta | {SELF: _digest_of(meta)}


def _digest_of(meta: Meta) -> str:
    content = {key: value for key, value in meta.items() if key != SELF}
    content = json.loads(json.dumps(content))  # as it is read: keys are text
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_meta(path: Path) -> Meta:
    """The JSON item of the checkpoint in the folder `path`. Damaged if it is not what was saved."""
    with _reading(path):
        meta = _restored(path, {"meta": ocp.args.JsonRestore()})["meta"]
    held = meta.get("digests") if isinstance(meta, dict) else None
    if not isinstance(held, dict) or not all(isinstance(item, dict) for item in held.values()):
        raise Damaged(path, "meta has no digests")
    if meta.get(SELF, _digest_of(meta)) != _digest_of(meta):  # old checkpoints have no digest of meta
        raise Damaged(path, "meta is not what was saved")
    return meta


def read_arrays(path: Path, meta: Meta, names: list[str]) -> dict[str, dict[str, list[np.ndarray]]]:
    """The arrays of some items: for each item, digest -> the arrays with it. Damaged if one is not what was saved."""
    with _reading(path):
        trees = _restored(path, {name: ocp.args.StandardRestore() for name in names})
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for name in names:
        arrays = found[name] = {}
        for leaf in jax.tree.leaves(trees.get(name)):
            arrays.setdefault(digest(leaf), []).append(leaf)
        counts = collections.Counter(meta["digests"][name].values())  # equal arrays have one digest
        for where, wanted in meta["digests"][name].items():
            if len(arrays.get(wanted, ())) < counts[wanted]:
                raise Damaged(path, f"{name}{where} is not what was saved")
    return found


def check(path: Path) -> Meta:
    """Read the whole checkpoint, and return its meta. Damaged if anything in it is not what was saved."""
    meta = read_meta(path)
    for name in meta["digests"]:  # one after the other: an optimizer's state is as large as the weights
        read_arrays(path, meta, [name])
    return meta


def read_items(path: Path, meta: Meta, like: dict[str, PyTree], *, whole: bool = False) -> dict[str, PyTree]:
    """Items of the checkpoint as numpy arrays. like: their shapes and dtypes. CheckpointError if these differ.

    whole: the checkpoint must have no other items.
    """
    _check_same_network(path, meta, dict.fromkeys(meta["digests"]) | like if whole else like)
    arrays = read_arrays(path, meta, list(like))

    def leaf_of(name: str, where: Any, shape: Any) -> np.ndarray:
        leaf = np.asarray(arrays[name][meta["digests"][name][jax.tree_util.keystr(where)]].pop())
        if (leaf.shape, leaf.dtype) != (shape.shape, shape.dtype):
            network = f"{shape.dtype} {shape.shape}"
            raise _other(path, f"{name}{jax.tree_util.keystr(where)} is {leaf.dtype} {leaf.shape}, not {network}")
        return leaf

    return {
        name: jax.tree.map_with_path(lambda where, shape, name=name: leaf_of(name, where, shape), tree)
        for name, tree in like.items()
    }


def _check_same_network(path: Path, meta: Meta, like: dict[str, PyTree]) -> None:
    """Raise CheckpointError if the checkpoint has other arrays than `like`."""
    for name, tree in like.items():
        held = set(meta["digests"].get(name, ()))
        wanted = {jax.tree_util.keystr(where) for where, _ in jax.tree_util.tree_leaves_with_path(tree)}
        if missing := sorted(wanted - held):
            raise _other(path, f"it has no {listed(f'{name}{where}' for where in missing)}")
        if more := sorted(held - wanted):
            raise _other(path, f"it also has {listed(f'{name}{where}' for where in more)}")


def _other(path: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint is of another network, and is not damaged ({difference}); "
        "give the network and the optimizer that the run has"
    )


def accuracy_of(meta: Meta) -> float | None:
    """The validation accuracy of a checkpoint; None if it has not been measured."""
    if METRIC in meta:
        return meta[METRIC]
    ended = meta.get("history") and not meta.get("sums", {}).get("count")  # inside an epoch nothing is evaluated
    return meta["history"][-1].get(METRIC) if ended else None  # old checkpoints


def metrics_are_good(path: Path, meta: Meta) -> bool:
    """Whether Orbax can read the metrics of the checkpoint, and they are those of its meta."""
    accuracy, file = accuracy_of(meta), path / METRICS_FILE
    if not file.exists():
        return accuracy is None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        return isinstance(held, dict) and (accuracy is None or held.get(METRIC) == accuracy)
    except ValueError:  # of JSON or of UTF-8
        return False


@contextlib.contextmanager
def understood(path: Path, meta: Meta) -> Iterator[None]:
    """Turn the errors of parsing a meta into a CheckpointError: it is what was saved, but not in this version's form.

    Old checkpoints have no digest of their meta. There a missing entry counts as damage.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeyError) and SELF not in meta:
            raise Damaged(path, f"meta has no {error}") from None
        writer = meta.get("versions", {}).get("resnet_jax", "unknown")
        raise CheckpointError(
            f"{path}: this version of resnet_jax does not understand the checkpoint, which version {writer} wrote "
            f"({type(error).__name__}: {one_line(error)}); it is not damaged, so use the version that wrote it"
        ) from error


def _restored(path: Path, args: dict[str, Any]) -> Any:
    for name in args:  # Orbax takes this file for an object without a check
        file = path / name / "_METADATA"
        if file.is_file() and not isinstance(json.loads(file.read_bytes()), dict):
            raise Damaged(path, f"{name}/{file.name} is not a JSON object")
    with late_errors(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.Composite(**args))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors that prove damage into Damaged, and those of the system into a CheckpointError of one line.

    Other exceptions stay as they are: they say nothing about the files.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:  # of JSON, TensorStore and Orbax
        number = os_error_code(error)
        if number is not None and number not in (errno.ENOENT, errno.ENOTDIR):
            raise _unreadable(path, os.strerror(number)) from error
        if str(error).startswith(TROUBLE):
            raise _unreadable(path, one_line(error, REASON)) from error
        raise Damaged(path, one_line(error, REASON)) from error
    except OSError as error:
        if error.errno is None:  # a time-out of the coordination between processes
            raise
        raise _unreadable(path, os.strerror(error.errno)) from error


def os_error_code(error: Exception) -> int | None:
    """The number of the system's error behind one of TensorStore, which names it at the end of a long ValueError."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return int(number[1]) if number else None


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {reason}; this does not mean that it is damaged")
