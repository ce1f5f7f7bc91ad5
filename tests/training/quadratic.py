"""A network whose loss is a quadratic, so that every step can be computed by hand, and running statistics to watch."""

from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import create_state, train_step
from resnet_jax.training.state import TrainState

START = np.array([1.0, -2.0], np.float32)
RATE = 0.1


class Quadratic(nn.Module):
    """logits = w * x for images of one pixel; the mean of the pixels, with a momentum of 1/2, as batch statistics."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        w = self.param("w", lambda key: jnp.asarray(START))
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            mean.value = mean.value / 2 + x.mean() / 2
        return w * x.reshape(-1, 1)


def half_square(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of an image: half the squared distance of its logits to its label."""
    return jnp.square(logits - labels[:, None]).sum(-1) / 2


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By w, of the mean loss of images x with labels y, by hand."""
    return (x[:, None] * (x[:, None] * w - y[:, None])).mean(0)


def batches(count: int, size: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of so many batches."""
    rng = np.random.default_rng(0)
    return [(rng.uniform(0, 2, size).astype(np.float32), rng.integers(0, 3, size)) for _ in range(count)]


def new_state(**options: Any) -> TrainState:
    return create_state(Quadratic(), optax.sgd(RATE), (1, 1, 1), loss=half_square, **options)


def trained(state: TrainState, data: list[tuple[np.ndarray, np.ndarray]]) -> list[TrainState]:
    """The states after each step."""
    step, states = jax.jit(train_step), []
    for x, y in data:
        state, _ = step(state, (x.reshape(-1, 1, 1, 1), y))
        states.append(jax.device_get(state))
    return states
