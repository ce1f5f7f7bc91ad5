"""States that are saved without training anything."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.training.state import TrainState


def make_state(step: int = 3, width: int = 5, dtype: Any = np.float32) -> TrainState:
    """A little of everything: several axes, one number, an integer, an optimizer's tuple with an empty part."""
    rng = np.random.default_rng(step)
    params = {"conv": {"kernel": rng.random((3, 3, 2, width)).astype(dtype), "bias": rng.random(width).astype(dtype)}}
    stats = {"bn": {"mean": rng.random(width).astype(np.float32), "var": rng.random(width).astype(np.float32)}}
    opt_state = ((), (jax.tree.map(np.negative, params), np.int32(step)))
    unused: Any = None  # a checkpoint holds neither model nor optimizer
    return TrainState(np.int32(step), params, stats, opt_state, {}, np.uint32(0), unused, unused)


def assert_same(mine: TrainState, theirs: TrainState) -> None:
    """Every bit, dtype and place in the tree."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), mine, theirs)


def save(run_dir: Path, *steps: tuple[int, float | None]) -> None:
    with Checkpoints(run_dir) as checkpoints:
        for step, accuracy in steps:
            checkpoints.save(make_state(step), {"history": []}, accuracy)
