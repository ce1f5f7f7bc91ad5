"""What training changes: one pytree, the same on every device, with no device axis."""

from typing import Any

import jax
import optax
from flax import linen as nn
from flax import struct
from jax import numpy as jnp

PyTree = Any
Device = Any  # a jax.Device, which a type checker does not know


class TrainState(struct.PyTreeNode):
    """step: () int32, updates made so far; params and batch_stats: the model's; opt_state: the optimizer's."""

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def trained(params: PyTree, freeze: bool) -> PyTree:
    """The params that training changes, and that the optimizer knows: all, or with freeze the head's alone."""
    return {"head": params["head"]} if freeze else params


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    freeze: bool = False,
) -> TrainState:
    """The state of step 0 for images of (H, W, C), a pure function of seed."""

    def init() -> TrainState:
        variables = model.init(jax.random.key(seed), jnp.zeros((1, *image_shape)))
        params = variables["params"]
        return TrainState(jnp.int32(0), params, variables["batch_stats"], optimizer.init(trained(params, freeze)))

    return jax.jit(init)()
